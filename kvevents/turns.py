"""Subscribers that share turns apply events one at a time, and others run in between however much there is to apply."""

import asyncio
import time

_TURN_S = 0.002  # of applying events between two turns of the loop
_OTHERS = 4  # turns of the loop between two long ones: a request needs dozens
_REPLAYS = (
    4  # of subscribers that share turns, at once: what is replayed faster than it is applied fills memory
)


class Turns:
    """Of all subscribers that share it, one has the turn."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served
        self._ends_at = 0.0
        self._owed = 0
        self._replays = 0
        self._waiting: set[asyncio.Event] = set()

    def begin_replay(self, wake: asyncio.Event) -> bool:
        """Take one of few places; False: there is none, and `wake` is set when one may be free."""
        if self._replays >= _REPLAYS:
            self._waiting.add(wake)
            return False
        self._replays += 1
        return True

    def end_replay(self) -> None:
        """Give the place back."""
        self._replays -= 1
        for wake in self._waiting:
            wake.set()
        self._waiting.clear()

    @property
    def over(self) -> bool:
        """The turn has lasted long enough."""
        return time.monotonic() >= self._ends_at

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._lock.acquire()
        try:
            for _ in range(self._owed):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._lock.release()
            raise
        self._ends_at = time.monotonic() + _TURN_S

    def end(self) -> None:
        """Give the turn to the next, who begins when the event loop has run others, some times after a long one."""
        self._owed = _OTHERS if self.over else 0
        self._lock.release()
