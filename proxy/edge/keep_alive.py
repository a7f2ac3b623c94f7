"""A client whose stream takes long to begin gets the head, with status 200, and comments until it begins.

Once the stream has begun, nothing is added to what its engine sends. An error after the first comment can
only be sent as an event, so a handler has to look whether the head went out (`KeepAlive.response`).
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
    """A context manager that sends comments to a client while its body waits for the reply."""

    def __init__(self, request: web.Request, every_s: float) -> None:
        """`every_s`: seconds until the head and the first comment, and between comments; 0 for none."""
        self._request = request
        self._every_s = every_s
        self._begins: asyncio.TimerHandle | None = None
        self._tasks: TaskOwner | None = None
        """Owner of the task that writes; made with the first comment, since most streams begin before."""
        self.response: web.StreamResponse | None = None
        """The answer whose head went out; None if none did."""

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
