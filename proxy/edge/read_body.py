"""Where a body ends is said in one way only, and a body must keep coming: a slow one does not hold a connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.errors import BadRequestError, RequestTimeoutError

BODY_GRACE_S = 30.0
"""How long any body may take; what nginx waits for a piece of one is twice that."""

BODY_LEAST_BYTES_S = 16 << 10
"""Each so many bytes that have come give a second more: a slow mobile uplink. mod_reqtimeout asks for 500 only,
with which the largest body could take a day and a half."""

BODY_STALL_S = 10.0
"""What has come gives no more than this from now on: a body that came fast and then stops is not waited for by its size.
A connection that is handed from one mobile cell to another pauses for a few seconds."""

LOOK_EVERY_S = 1.0
"""How often a body under way is looked at."""


class Pace:
    """How long a body may still take: a credit of seconds that runs down, and that bytes fill up to a bound."""

    def __init__(self, now: float) -> None:
        """`now`: seconds, when its head was there."""
        self._grace_ends_at = self._due = now + BODY_GRACE_S
        self._received_bytes = 0

    def due(self, now: float, received_bytes: int) -> float:
        """When it is too slow unless more comes; of it so much has come by now."""
        new_bytes = received_bytes - self._received_bytes
        self._received_bytes = received_bytes
        self._due = min(self._due + new_bytes / BODY_LEAST_BYTES_S, self._latest(now))
        return self._due

    def _latest(self, now: float) -> float:
        """A body that is small by now holds next to nothing, so all of its grace is its own."""
        small = self._received_bytes <= BODY_STALL_S * BODY_LEAST_BYTES_S
        return max(self._grace_ends_at, now + BODY_STALL_S) if small else now + BODY_STALL_S


def check_framing(request: web.Request) -> None:
    """Raises BadRequestError, and has the connection closed, for framing that others may read otherwise.

    aiohttp refuses most of it. It takes any list of transfer codings that ends in `chunked`, takes one in
    HTTP/1.0, which has none, and answers in versions that it does not speak.
    """
    coding = request.headers.get("Transfer-Encoding")
    if request.version not in {HttpVersion10, HttpVersion11}:
        words = "HTTP/1.1 and HTTP/1.0 are spoken here"
    elif coding is not None and coding.strip().lower() != "chunked":
        words = "the only transfer coding taken is chunked"
    elif coding is not None and request.version == HttpVersion10:
        words = "HTTP/1.0 has no transfer codings"
    else:
        return
    raise BadRequestError(words, headers={"Connection": "close"})


@contextlib.asynccontextmanager
async def in_time(request: web.Request) -> AsyncIterator[None]:
    """Read a body inside, by whatever means. Raises RequestTimeoutError once it comes too slowly."""
    if request.content.is_eof():  # it came with its head, as most do
        yield
        return
    loop = asyncio.get_running_loop()
    pace = Pace(loop.time())
    scope = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        now = loop.time()
        due = pace.due(now, request.content.total_bytes)
        if now < due:
            timer = loop.call_at(min(due, now + LOOK_EVERY_S), look)
        else:
            scope.reschedule(now)

    timer = loop.call_later(min(BODY_GRACE_S, LOOK_EVERY_S), look)
    try:
        async with scope:
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if not scope.expired():
            raise
        raise RequestTimeoutError(
            f"the request body came too slowly: less than {BODY_LEAST_BYTES_S} bytes a second"
            f" after {BODY_GRACE_S:g} s, or nothing for {BODY_STALL_S:g} s",
            headers={"Connection": "close"},
        ) from None
