"""Retries never make an overload worse: those that run at one moment are a small share of the running
requests.

As Envoy's retry budgets: what limits retries is not a number a request but how many others there are. A retry
counts from the moment it is granted until its attempt is over; a request counts until its answer has ended.
Pure: nothing waits here and no clock is read.
"""

import random
from collections.abc import Callable

MIN_RETRIES = 3
"""May run however few requests there are, so that a single failure always has budget; Envoy's default,
too."""

BACKOFF_BASE_S = 0.025
BACKOFF_MOST_S = 0.25
"""Envoy's base interval and, ten times that, its longest one."""


class RetryBudget:
    """Counts the running requests and the retries among them; one for the whole process."""

    def __init__(self, share: Callable[[], float]) -> None:
        """`share` tells how many of the running requests may be in a retry, from 0 to 1."""
        self._share = share
        self.requests = 0
        """Running now."""
        self.retries = 0
        """Running now."""

    @property
    def most(self) -> int:
        """How many retries may run now."""
        return max(MIN_RETRIES, int(self._share() * self.requests))

    def request(self) -> "_Running":
        """A request runs inside."""
        return _Running(self)

    def take(self) -> bool:
        """Count one more retry if the budget has room for it; it is to be given back then."""
        if self.retries >= self.most:
            return False
        self.retries += 1
        return True

    def give_back(self) -> None:
        """A retry is over."""
        self.retries -= 1


class _Running:
    """A request that counts, as a context manager."""

    __slots__ = ("_budget",)

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget

    def __enter__(self) -> None:
        self._budget.requests += 1

    def __exit__(self, *_: object) -> None:
        self._budget.requests -= 1


def backoff_s(pauses: int, rng: random.Random) -> float:
    """How long to pause after so many other pauses of the same request: full jitter, in seconds."""
    return rng.uniform(0.0, min(BACKOFF_MOST_S, BACKOFF_BASE_S * 2.0 ** min(pauses, 10)))
