"""A client that waits long for the head of its stream hears that it is being served; from then on its status
is 200.

Only until the stream begins: afterwards its engine sends what there is. What goes wrong after the first
comment can only be told in an event, so whoever answers has to look whether the head is out.
"""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from aiohttp import web

from proxy.headers import for_streaming_client
from proxy.request.sse import KEEP_ALIVE
from proxy.tasks import TaskOwner

_EVENTS = ("Content-Type", "text/event-stream; charset=utf-8")


class KeepAlive:
    """Sends comments while something else, inside its context, finds out what the answer is."""

    def __init__(self, request: web.Request, every_s: float) -> None:
        """`every_s`: the first comment, with the head, comes after so long, and then one each time; 0 for
        none.
        """
        self._request = request
        self._every_s = every_s
        self._begins: asyncio.TimerHandle | None = None
        self._tasks: TaskOwner | None = None
        """Owner of what writes, once there is something to write: most streams begin before."""
        self.response: web.StreamResponse | None = None
        """The answer whose head the client has; None if none went out."""

    async def __aenter__(self) -> Self:
        if self._every_s:
            self._begins = asyncio.get_running_loop().call_later(self._every_s, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begins is not None:
            self._begins.cancel()
        if self._tasks is not None:
            await self._tasks.close()

    def _begin(self) -> None:
        self._tasks = TaskOwner("keep-alive")
        self._tasks.create(self._comment(), name=self._request.path)

    async def _comment(self) -> None:
        with contextlib.suppress(
            ConnectionError
        ):  # the client has left: its request is about to be cancelled
            self.response = web.StreamResponse(headers=for_streaming_client([_EVENTS]))
            await self.response.prepare(self._request)
            while True:
                await self.response.write(KEEP_ALIVE)
                await asyncio.sleep(self._every_s)
