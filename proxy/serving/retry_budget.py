"""Retries never make an overload worse: at any moment they are a small share of the running requests.

The budget is one for all requests, not a number for each, as Envoy's retry budgets are. A retry takes from it
from the moment it is granted until its attempt is over; a request counts as running until its answer has
ended. Pure: nothing waits here and no clock is read.
"""

import random
from collections.abc import Callable

MIN_RETRIES = 3
"""How many retries may run however few requests do, so that a single failure always has budget. It is Envoy's
default (`min_retry_concurrency`)."""

BACKOFF_BASE_S = 0.025
MAX_BACKOFF_S = 0.25
"""Envoy's defaults: a base interval of 25 ms, and ten times that at most."""


class RetryBudget:
    """Counts the running requests and the retries among them; one for the whole process."""

    def __init__(self, share: Callable[[], float]) -> None:
        """`share` returns which share of the running requests may be in a retry, from 0 to 1."""
        self._share = share
        self.requests = 0
        """Requests that run now."""
        self.retries = 0
        """Retries that run now."""

    @property
    def most(self) -> int:
        """How many retries may run now."""
        return max(MIN_RETRIES, int(self._share() * self.requests))

    def begin(self) -> None:
        """A request runs from now on; `end` MUST follow."""
        self.requests += 1

    def end(self) -> None:
        """It is over."""
        self.requests -= 1

    def take(self) -> bool:
        """Take one retry from the budget, if it has room; whoever gets True MUST `give_back`."""
        if self.retries >= self.most:
            return False
        self.retries += 1
        return True

    def give_back(self) -> None:
        """A retry that was taken is over."""
        self.retries -= 1


def backoff_s(pauses: int, rng: random.Random) -> float:
    """The pause before a retry, in seconds, with full jitter; `pauses`: those of the request so far."""
    return rng.uniform(0.0, min(MAX_BACKOFF_S, BACKOFF_BASE_S * 2.0 ** min(pauses, 10)))
