"""A body whose end could be read in two ways is refused, and one that arrives too slowly is given up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.edge.patience import PATIENCE, Patience
from proxy.errors import BadRequestError, RequestTimeoutError

PATIENCE_KEY: web.RequestKey[Patience] = web.RequestKey("patience", Patience)
"""How long clients of the socket that a request came by may take."""


class Pace:
    """How long a body may still take: a credit of seconds that runs down, and that arriving bytes raise up to
    a bound.
    """

    def __init__(self, now: float, patience: Patience = PATIENCE) -> None:
        """`now`: when the head had arrived, in seconds of any monotonic clock."""
        self._patience = patience
        self._grace_ends_at = self._due = now + patience.body_grace_s
        self._received_bytes = 0

    def due(self, now: float, received_bytes: int) -> float:
        """When the body is given up unless more of it arrives; `received_bytes`: how much has arrived."""
        new_bytes = received_bytes - self._received_bytes
        self._received_bytes = received_bytes
        self._due = min(self._due + new_bytes / self._patience.body_least_bytes_s, self._latest(now))
        return self._due

    def _latest(self, now: float) -> float:
        """The latest time that the credit may reach. A small body, which holds hardly any memory, keeps its
        whole grace.
        """
        stall_s = self._patience.body_stall_s
        small = self._received_bytes <= stall_s * self._patience.body_least_bytes_s
        return max(self._grace_ends_at, now + stall_s) if small else now + stall_s


_VERSIONS = (HttpVersion10, HttpVersion11)


def check_framing(request: web.Request) -> None:
    """Raise BadRequestError, which closes the connection, for framing that another server may read otherwise.

    aiohttp refuses most of it. But it takes any list of transfer codings that ends in `chunked`, takes one in
    HTTP/1.0, which has none, and answers requests of HTTP versions that it does not speak.
    """
    coding = request.headers.get("Transfer-Encoding")
    if request.version not in _VERSIONS:
        words = "HTTP/1.1 and HTTP/1.0 are spoken here"
    elif coding is not None and coding.strip().lower() != "chunked":
        words = "the only transfer coding taken is chunked"
    elif coding is not None and request.version == HttpVersion10:
        words = "HTTP/1.0 has no transfer codings"
    else:
        return
    raise BadRequestError(words, headers={"Connection": "close"})


def in_time(request: web.Request) -> AbstractAsyncContextManager[None]:
    """A context in which to read a body. Raises RequestTimeoutError once the body arrives too slowly."""
    # Most bodies have arrived with their heads.
    return contextlib.nullcontext() if request.content.is_eof() else _in_time(request)


@contextlib.asynccontextmanager
async def _in_time(request: web.Request) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    patience = request.get(PATIENCE_KEY, PATIENCE)
    pace = Pace(loop.time(), patience)
    scope = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        now = loop.time()
        due = pace.due(now, request.content.total_bytes)
        if now < due:
            timer = loop.call_at(min(due, now + patience.body_look_every_s), look)
        else:
            scope.reschedule(now)

    timer = loop.call_later(min(patience.body_grace_s, patience.body_look_every_s), look)
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
            f"the request body came too slowly: less than {patience.body_least_bytes_s:g} bytes a second"
            f" after {patience.body_grace_s:g} s, or nothing for {patience.body_stall_s:g} s",
            headers={"Connection": "close"},
        ) from None
