"""An answer that ends cleanly is complete: a stream that was cut gets an error event between two events, then
the cut.

Events come whole, so there is always a boundary to put the error at.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from aiohttp import web

from proxy.errors import (
    DeadlineError,
    EngineFailedError,
    GatewayTimeoutError,
    LegError,
    RequestError,
    StreamFailedError,
    UnavailableError,
)
from proxy.request.deadlines import NO_LIMIT, TimeLimit
from proxy.request.dialects import Dialect

CUT_GRACE_S = 1.0
"""How long a client may take to read what it was sent before its connection was cut."""


class Relayed(NamedTuple):
    """A stream that has ended."""

    cut: RequestError | None
    """What it was cut with; None if it is complete."""
    before: bytes = b""
    """The last run but one of one that is complete."""
    last: bytes = b""
    """Its last run: with the one before it holds all that is said after the answer."""


async def relay_stream(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncIterator[bytes],
    dialect: Dialect,
    cutting: asyncio.Event,
    limit: TimeLimit = NO_LIMIT,
) -> Relayed:
    """Pass runs of whole events on, at the client's pace.

    `events` end once the stream is complete, and raise otherwise. What the client's side raises passes
    through. If the engine's side fails, time is up, or kvproxy ends (`cutting` is set, and then this is
    cancelled), the client gets an error event and its connection is closed without the mark that ends a
    complete answer.
    """
    before = last = b""
    await response.prepare(request)
    try:
        with limit.enforced():
            async for run in events:
                await response.write(run)
                before, last = last, run
            await response.write_eof()
    except asyncio.CancelledError:
        if not cutting.is_set():
            raise
        stopping = UnavailableError("kvproxy is shutting down")
        return Relayed(await cut_stream(request, response, dialect, stopping))
    except GatewayTimeoutError as error:
        return Relayed(await cut_stream(request, response, dialect, error))
    except StreamFailedError as error:
        failed = EngineFailedError(error.words)
        return Relayed(await cut_stream(request, response, dialect, failed, error.event))
    except (LegError, ValueError) as error:
        words = error.words if isinstance(error, LegError) else str(error)
        kind = GatewayTimeoutError if isinstance(error, DeadlineError) else EngineFailedError
        return Relayed(await cut_stream(request, response, dialect, kind(words)))
    return Relayed(None, before, last)


async def cut_stream(
    request: web.Request,
    response: web.StreamResponse,
    dialect: Dialect,
    error: RequestError,
    event: bytes = b"",
) -> RequestError:
    """Say why, with the engine's own `event` if it had one, and close the connection.

    A client that does not read keeps it for CUT_GRACE_S at most.
    """
    transport = request.transport
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_GRACE_S):
            await response.write(event or dialect.error_event(error))
    if transport is None:
        return error
    transport.close()  # what was written still goes out; the end of the chunked body does not

    def drop() -> None:
        if transport.get_write_buffer_size():
            transport.abort()

    asyncio.get_running_loop().call_later(CUT_GRACE_S, drop)
    return error
