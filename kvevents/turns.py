"""Subscribers that share turns apply events one at a time, and other tasks run in between, however much there
is to apply.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import islice

# The length of a turn, unless other tasks keep the loop busy.
_TURN_S = 0.002
_MAX_TURN_S = 0.005
# Turns of the event loop between two long turns of subscribers: a request needs dozens.
_OTHERS = 4
# The share of time for applying events while other tasks keep the loop busy, so that events do not starve;
# also the share for sweeping.
_SHARE = 0.25
# Replays that run at once, for all subscribers that share turns: replayed batches that wait to be applied
# fill memory.
_MAX_REPLAYS = 4


class Turns:
    """Gives the turn to one of its subscribers at a time, and places for replays to a few."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that never go back."""
        self._clock = clock
        self._lock = asyncio.Lock()  # gives turns in the order they were asked for
        self._ends_at = 0.0
        self._ended_at = 0.0
        self._owed = 0
        self._replays = 0
        self._waiting: dict[asyncio.Event, None] = {}  # for a place for a replay, in the order they asked
        self._may_sweep = True

    @property
    def may_replay(self) -> bool:
        """Whether a place for a replay is free, and no subscriber waits for it."""
        return self._replays + len(self._waiting) < _MAX_REPLAYS

    def begin_replay(self, wake: asyncio.Event) -> bool:
        """Take a place for a replay. Returns False if none is free; `wake` is set when one is free for this
        caller.
        """
        self._waiting.setdefault(wake)
        if wake not in self._next():
            return False
        del self._waiting[wake]
        self._replays += 1
        return True

    def end_replay(self) -> None:
        """Give back a place for a replay."""
        self._replays -= 1
        self._wake()

    def leave(self, wake: asyncio.Event) -> None:
        """Wait no longer for a place for a replay."""
        self._waiting.pop(wake, None)
        self._wake()

    def sweep(self, sweep: Callable[[], bool], wake: asyncio.Event) -> None:
        """Do a slice of sweeping, unless one was done just now; `wake` is set when the next is due.

        A hundred subscribers that each swept once a turn would leave no time for other tasks.
        """
        if not self._may_sweep:
            return
        begun = self._clock()
        if sweep():
            self._may_sweep = False
            pause_s = _pause_after(self._clock() - begun)
            asyncio.get_running_loop().call_later(pause_s, self._sweep_again, wake)

    def _sweep_again(self, wake: asyncio.Event) -> None:
        self._may_sweep = True
        wake.set()

    def _next(self) -> list[asyncio.Event]:
        return list(islice(self._waiting, max(0, _MAX_REPLAYS - self._replays)))

    def _wake(self) -> None:
        for wake in self._next():
            wake.set()

    @property
    def over(self) -> bool:
        """Whether the turn has lasted long enough."""
        return self._clock() >= self._ends_at

    async def begin(self) -> None:
        """Wait for the turn."""
        asked_at = self._clock()
        await self._lock.acquire()
        since = max(asked_at, self._ended_at)  # the time before that was idle, or another subscriber's turn
        others_s = 0.0
        try:
            for _ in range(self._owed):
                await asyncio.sleep(0)
                others_s = self._clock() - since
                if others_s >= _TURN_S / _SHARE:
                    break
        except asyncio.CancelledError:
            self._lock.release()
            raise
        self._ends_at = self._clock() + min(max(_TURN_S, _SHARE * others_s), _MAX_TURN_S)

    def end(self) -> None:
        """Give the turn to the next subscriber; after a long turn that one begins when the event loop has run
        other tasks for a while.
        """
        self._owed = _OTHERS if self.over else 0
        self._ended_at = self._clock()
        self._lock.release()


async def sweep_away(sweep: Callable[[], bool]) -> None:
    """Call `sweep` until it returns False; other tasks have the event loop most of the time."""
    begun = time.monotonic()
    while sweep():
        await asyncio.sleep(_pause_after(time.monotonic() - begun))
        begun = time.monotonic()


def _pause_after(slice_s: float) -> float:
    return slice_s * (1 / _SHARE - 1)
