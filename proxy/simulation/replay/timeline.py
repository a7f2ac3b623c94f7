"""Moments come in order, and what happens at one moment comes in the order of `Turn`, then of its planning.

So a request that arrives as a step ends can be in the next step, and a run is the same every time.
"""

import heapq
from collections.abc import Callable
from enum import IntEnum
from typing import Any


class Turn(IntEnum):
    """What comes first at one moment."""

    END = 0
    """Steps and transfers end."""
    HEAR = 1
    """Events and gauges of engines reach the router."""
    ASK = 2
    """Requests arrive, or are tried again."""
    LOOK = 3
    """The queue is looked at."""
    BEGIN = 4
    """Engines begin steps with all that is there by now."""


class Timeline:
    """A heap of moments, in seconds since the run began."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._planned: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, at_s: float, turn: Turn, do: Callable[..., None], *what: Any) -> None:
        """Call `do(*what)` at a moment that is not over."""
        self._number += 1
        heapq.heappush(self._planned, (at_s, turn, self._number, do, what))

    def after(self, seconds: float, turn: Turn, do: Callable[..., None], *what: Any) -> None:
        """Call `do(*what)` so many seconds from now."""
        self.at(self.now_s + seconds, turn, do, *what)

    def step(self) -> bool:
        """Let the next thing happen. Returns False if nothing is planned."""
        if not self._planned:
            return False
        self.now_s, _, _, do, what = heapq.heappop(self._planned)
        do(*what)
        return True
