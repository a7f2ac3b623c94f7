"""In a closed loop a request waits for the last one of its session known to have ended before it came.

What was observed is when requests came and ended; who waited for whom is concluded from it. Where several had
to end (an agent that waits for its sub-agents), the last of them is the one that counts.
"""

import bisect
from typing import NamedTuple

_LAST = 1 << 62


class Waited(NamedTuple):
    """What a request waited for."""

    after: int
    think_s: float
    """From its end to the request that waited."""
    began_s: float
    """When the loop began."""


class Loop:
    """The requests that one conversation or agent could have waited for, by the time of their end."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, int, float]] = []

    def add(self, ended_s: float, index: int, began_s: float) -> None:
        """A request ended then; `began_s`: when its loop began."""
        bisect.insort(self._ends, (ended_s, index, began_s))

    def ended_later(self, ended_s: float) -> None:
        """The request that ended last ended then, if that is later."""
        if self._ends and ended_s > self._ends[-1][0]:
            self._ends[-1] = (ended_s, *self._ends[-1][1:])

    def waited(self, at_s: float, slack_s: float = 0.0) -> Waited | None:
        """What a request that came then had waited for; None if nothing had ended.

        `slack_s`: by how much an end may lie after `at_s`, since both are rounded.
        """
        place = bisect.bisect_right(self._ends, (at_s + slack_s, _LAST, 0.0))
        if not place:
            return None
        ended_s, index, began_s = self._ends[place - 1]
        return Waited(index, max(at_s - ended_s, 0.0), began_s)
