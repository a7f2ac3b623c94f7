"""Whoever is not let in is told why and when to come back, and is told of under the same reason."""

import math
from collections.abc import Collection

from proxy.config import Rules
from proxy.errors import RateLimitError, RequestError, UnavailableError, nothing_usable
from proxy.happenings import Refused, Tell
from proxy.phases import Phase

ENGINES_FULL = "engines_full"
"""The reason of an error that tells of engines that say they are full."""


class Refusals:
    """Makes the errors; each call tells of one request."""

    def __init__(self, rules: Rules, tell: Tell) -> None:
        self._rules = rules
        self._limits = rules.admission
        """As they were at the start, for what is cold."""
        self._tell = tell

    def queue_full(self, retry_after_s: int) -> RequestError:
        """There is no place in the queue."""
        self._tell(Refused("queue_full"))
        return self._full("the queue is full", "queue_full", retry_after_s)

    def shed(self, retry_after_s: int, parts: int) -> list[RequestError]:
        """It had a place in the queue, which a client with fewer gets. One error for each of its parts."""
        self._tell(Refused("shed"))
        why = "the queue is full, and this client has most of it"
        return [self._full(why, "shed", retry_after_s) for _ in range(parts)]

    def _full(self, why: str, reason: str, retry_after_s: int) -> RequestError:
        return RateLimitError(
            f"{why} ({self._limits.max_queue} requests, --max-queue): come back later",
            reason=reason,
            headers=_come_back(retry_after_s),
        )

    def client_limit(self, retry_after_s: int) -> RequestError:
        """Its client had as many requests running as one may, for as long as it may wait."""
        self._tell(Refused("client_limit"))
        return RateLimitError(
            f"{self._limits.max_client_requests} requests of this client are being served "
            f"(--max-client-requests), and none of them ended for {self._waited}: send fewer at a time",
            reason="client_limit",
            headers=_come_back(retry_after_s),
        )

    def missing(self, phases: Collection[Phase], reason: str = "no_engine") -> RequestError:
        """No instance is usable for these phases. `reason`: `no_engine`, or `no_prefill` if nobody waits for
        one.
        """
        self._tell(Refused(reason))
        return nothing_usable(list(phases), reason)

    def engines_full(self, left_s: float) -> RequestError:
        """Engines said that they are full; the next may have room in so many seconds."""
        self._tell(Refused(ENGINES_FULL))
        return UnavailableError(
            f"the engines said for {self._waited} that they are full",
            reason=ENGINES_FULL,
            headers=_come_back(max(1, math.ceil(left_s))),
        )

    def busy(self, retry_after_s: int) -> RequestError:
        """The engines had no room by our limits, for as long as it may wait."""
        self._tell(Refused("queue_timeout"))
        return UnavailableError(
            f"the engines were busy for {self._waited}",
            reason="queue_timeout",
            headers=_come_back(retry_after_s),
        )

    def stopping(self) -> RequestError:
        """Nobody new is let in any more."""
        self._tell(Refused("stopping"))
        return UnavailableError(
            "kvproxy is shutting down", headers={"Connection": "close"}, reason="stopping"
        )

    @property
    def _waited(self) -> str:
        return f"{self._rules.admission.queue_timeout_s:g} s (--queue-timeout)"


def _come_back(in_s: int) -> dict[str, str]:
    return {"Retry-After": str(in_s)}
