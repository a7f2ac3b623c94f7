"""A client whose stream takes long to begin gets the head, with status 200, and comments until it begins.

Once the stream has begun, nothing is added to what its engine sends. An error after the first comment can
only be sent as an event, so a handler has to look whether the head went out (`KeepAlive.response`).
"""

import asyncio
import contextlib

from aiohttp import web

from proxy.headers import for_streaming_client
from proxy.request.sse import KEEP_ALIVE
from proxy.tasks import TaskOwner

_EVENTS = ("Content-Type", "text/event-stream; charset=utf-8")


class KeepAlive:
    """Sends comments to a client while its request waits for the reply, until it is closed."""

    def __init__(self, request: web.Request, every_s: float) -> None:
        """`every_s`: seconds until the head and the first comment, and between comments; 0 for none."""
        self._request = request
        self._every_s = every_s
        self._begins = asyncio.get_running_loop().call_later(every_s, self._begin) if every_s else None
        self._tasks: TaskOwner | None = None
        """Owner of the task that writes; made with the first comment, since most streams begin before."""
        self.response: web.StreamResponse | None = None
        """The answer whose head went out; None if none did."""

    async def close(self) -> None:
        """Send no more comments. `response` stays as it is from the moment of the call."""
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
