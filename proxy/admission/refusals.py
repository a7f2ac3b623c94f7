"""A request that is not let in gets the reason and when to come back; a happening has the same reason."""

import math
from collections.abc import Collection

from proxy.config import Rules
from proxy.errors import RateLimitError, RequestError, UnavailableError, nothing_usable
from proxy.happenings import Refused, Tell
from proxy.headers import TTFT_MS
from proxy.phases import Phase
from proxy.scheduling.goals import Lateness

ENGINES_FULL = "engines_full"
"""The reason of an error because engines say that they are full."""


class Refusals:
    """Makes the errors of refused requests; each call also tells a `Refused` for one request."""

    def __init__(self, rules: Rules, tell: Tell) -> None:
        self._rules = rules
        self._limits = rules.admission
        """The limits of the start, for cold settings."""
        self._tell = tell

    def queue_full(self, retry_after_s: int) -> RequestError:
        """The error when the queue has no place."""
        self._tell(Refused("queue_full"))
        return self._full("the queue is full", "queue_full", retry_after_s)

    def shed(self, retry_after_s: int, parts: int) -> list[RequestError]:
        """The errors of a request whose place in the queue goes to a client with fewer; one for each of its
        parts.
        """
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
        """The error when a client had as many requests running as one may, for as long as a request may
        wait.
        """
        self._tell(Refused("client_limit"))
        return RateLimitError(
            f"{self._limits.max_client_requests} requests of this client are being served "
            f"(--max-client-requests), and none of them ended for {self._waited}: send fewer at a time",
            reason="client_limit",
            headers=_come_back(retry_after_s),
        )

    def missing(self, phases: Collection[Phase], reason: str = "no_engine") -> RequestError:
        """The error when no instance is usable for these phases. `reason`: `no_engine`, or `no_prefill` where
        requests do not wait for prefill instances.
        """
        self._tell(Refused(reason))
        return nothing_usable(list(phases), reason)

    def engines_full(self, left_s: float) -> RequestError:
        """The error when engines say that they are full; in `left_s` seconds the next may have room."""
        self._tell(Refused(ENGINES_FULL))
        return UnavailableError(
            f"the engines said for {self._waited} that they are full",
            reason=ENGINES_FULL,
            headers=_come_back(max(1, math.ceil(left_s))),
        )

    def busy(self, retry_after_s: int) -> RequestError:
        """The error when engines had no room by kvproxy's limits, for as long as a request may wait."""
        self._tell(Refused("queue_timeout"))
        return UnavailableError(
            f"the engines were busy for {self._waited}",
            reason="queue_timeout",
            headers=_come_back(retry_after_s),
        )

    def late(self, lateness: Lateness) -> RequestError:
        """The error when the first token is predicted far later than its client wants it."""
        self._tell(Refused("late"))
        comes_ms = lateness.goal_ms - lateness.left_ms + lateness.ttft_ms
        return UnavailableError(
            f"the first token is predicted {comes_ms:.0f} ms after the request came, and wanted within "
            f"{lateness.goal_ms:.0f} ms ({TTFT_MS}, --refuse-late): come back later",
            reason="late",
            headers=_come_back(max(1, math.ceil((lateness.ttft_ms - lateness.left_ms) / 1000))),
        )

    def stopping(self) -> RequestError:
        """The error when no new request is let in any more."""
        self._tell(Refused("stopping"))
        return UnavailableError(
            "kvproxy is shutting down", headers={"Connection": "close"}, reason="stopping"
        )

    @property
    def _waited(self) -> str:
        return f"{self._rules.admission.queue_timeout_s:g} s (--queue-timeout)"


def _come_back(in_s: int) -> dict[str, str]:
    return {"Retry-After": str(in_s)}
