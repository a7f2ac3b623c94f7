"""An answer that ends cleanly is complete: a stream that was cut gets an error event between two events, then the cut.

Events are passed on whole, so there is always a boundary to put the error at.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from proxy.deadlines import NO_LIMIT, TimeLimit
from proxy.errors import (
    DeadlineError,
    EngineFailedError,
    GatewayTimeoutError,
    LegBrokenError,
    LegError,
    RequestError,
    UnavailableError,
    envelope,
)
from proxy.exchange import MAX_EVENT_BYTES

DONE = b"data: [DONE]"
"""How every complete stream of completions ends."""

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")

CUT_GRACE_S = 1.0
"""How long a client may take to read what it was sent before its connection was cut."""


class EventCutter:
    """Cuts bytes into runs of whole events; what is left of an unfinished one waits."""

    def __init__(self) -> None:
        self._tail = b""
        self.done = False
        """Whether the last event passed on is the one that ends a complete stream."""

    def feed(self, chunk: bytes) -> bytes:
        """All events that are complete with `chunk`. Raises ValueError if one grows beyond all reason."""
        data = self._tail + chunk if self._tail else chunk
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _EVENT_ENDS)
        self._tail = data[end:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        whole = data[:end]
        if whole:
            self.done = whole[-len(DONE) - 4 :].rstrip().endswith(DONE)
        return whole


async def relay_stream(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncIterator[bytes],
    instance: str,
    cutting: asyncio.Event,
    limit: TimeLimit = NO_LIMIT,
) -> RequestError | None:
    """Pass a stream of events on, at the client's pace; return what it was cut with, None if it is complete.

    What the client's side raises passes through. If the engine's side fails, time is up, or kvproxy ends (`cutting` is
    set, and then this is cancelled), the client gets an error event and its connection is closed without the mark that
    ends a complete answer.
    """
    cutter = EventCutter()
    await response.prepare(request)
    try:
        async with limit.enforced():
            async for chunk in events:
                if whole := cutter.feed(chunk):
                    await response.write(whole)
            if not cutter.done:
                raise LegBrokenError(instance, "the stream ended without its last event")
            await response.write_eof()
    except asyncio.CancelledError:
        if not cutting.is_set():
            raise
        return await _cut(request, response, UnavailableError("kvproxy is shutting down"))
    except GatewayTimeoutError as error:
        return await _cut(request, response, error)
    except (LegError, ValueError) as error:
        words = error.words if isinstance(error, LegError) else str(error)
        kind = GatewayTimeoutError if isinstance(error, DeadlineError) else EngineFailedError
        return await _cut(request, response, kind(words))
    return None


async def _cut(request: web.Request, response: web.StreamResponse, error: RequestError) -> RequestError:
    """Say why and close the connection; a client that does not read keeps it for CUT_GRACE_S at most."""
    transport = request.transport
    body = msgspec.json.encode(envelope(str(error), error.kind, error.status))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_GRACE_S):
            await response.write(b"data: " + body + b"\n\n")
    if transport is None:
        return error
    transport.close()  # what was written still goes out; the end of the chunked body does not

    def drop() -> None:
        if transport.get_write_buffer_size():
            transport.abort()

    asyncio.get_running_loop().call_later(CUT_GRACE_S, drop)
    return error
