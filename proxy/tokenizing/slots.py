"""A limited number of jobs run at once, and the others take fair turns: clients by what they asked, and of
one client's jobs the smaller first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from proxy.fair_queue import FairQueue


class FairSlots:
    """A semaphore whose waiters are served as `FairQueue` orders them; used from one event loop."""

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(0)
        self._most = 1
        self._taken = 0

    def __len__(self) -> int:
        """The number of jobs that wait."""
        return len(self._queue)

    @contextlib.asynccontextmanager
    async def slot(self, client: str, size: int, most: int) -> AsyncIterator[None]:
        """Take one of `most` slots, which is the number of slots from now on; may be cancelled while it
        waits.
        """
        self._most = most
        turn = asyncio.get_running_loop().create_future()
        waiting, _ = self._queue.push(client, None, size, size, turn, needs_place=False)
        self._give()
        try:
            await turn
            yield
        finally:
            if not self._queue.drop(waiting):
                self._taken -= 1
            self._give()

    def _give(self) -> None:
        while self._taken < self._most and (waiting := self._queue.next()) is not None:
            self._queue.take(waiting)
            self._taken += 1
            if not waiting.item.done():  # otherwise its waiter has left, and gives the slot back
                waiting.item.set_result(None)
