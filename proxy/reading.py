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


def allowed_s(received_bytes: int) -> float:
    """How long a body may take of which so much has come."""
    return BODY_GRACE_S + received_bytes / BODY_LEAST_BYTES_S


@contextlib.asynccontextmanager
async def in_time(request: web.Request) -> AsyncIterator[None]:
    """Read a body inside, by whatever means. Raises RequestTimeoutError once it comes too slowly."""
    if request.content.is_eof():  # it came with its head, as most do
        yield
        return
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    scope = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        due = began_at + allowed_s(request.content.total_bytes)
        if loop.time() < due:
            timer = loop.call_at(due, look)
        else:
            scope.reschedule(loop.time())

    timer = loop.call_at(began_at + allowed_s(0), look)
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
            f" after {BODY_GRACE_S:g} s",
            headers={"Connection": "close"},
        ) from None
