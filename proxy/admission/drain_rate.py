"""How fast a queue is served, so that a request that finds it full is told when to come back."""

import math

DRAIN_WINDOW_S = 10.0
"""Seconds over which the pace of the queue is measured: long enough for several requests of a busy fleet."""

MAX_RETRY_AFTER_S = 30
"""The longest Retry-After in seconds: a longer one would guess about a fleet that may have changed by
then."""


class DrainRate:
    """How fast requests leave the queue, as an average in which old requests count less and less. Times are
    seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._recent = 0.0
        self._at = -math.inf

    def left(self, now: float) -> None:
        """A request was let in."""
        self._decay(now)
        self._recent += 1

    def retry_after_s(self, ahead: int, now: float) -> int:
        """Whole seconds, from 1 to MAX_RETRY_AFTER_S, until a request behind `ahead` others might be let
        in.
        """
        self._decay(now)
        per_second = self._recent / DRAIN_WINDOW_S
        if ahead >= per_second * MAX_RETRY_AFTER_S:
            return MAX_RETRY_AFTER_S if ahead else 1
        return max(1, math.ceil(ahead / per_second))

    def _decay(self, now: float) -> None:
        self._recent *= math.exp(min(0.0, self._at - now) / DRAIN_WINDOW_S)
        self._at = now
