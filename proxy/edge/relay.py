"""An answer that ends cleanly is complete: a stream that fails gets an error event, and then its connection
is cut.

Streams arrive in runs of whole events, so the error event always goes between two events.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from aiohttp import web

from proxy.edge.splice import CountingSplice, Splice
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
from proxy.serving.exchange import Runs

CUT_GRACE_S = 1.0
"""How long a client whose stream is cut may take to read what was sent before."""


class Relayed(NamedTuple):
    """How a stream has ended."""

    cut: RequestError | None
    """The error that it was cut with; None if it is complete."""
    before: bytes = b""
    """The last run but one of a complete stream."""
    last: bytes = b""
    """The last run of a complete stream: these two hold all that follows the answer's text, as its usage."""
    events: int | None = None
    """How many events a complete stream had, if they were counted."""


async def relay_stream(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncIterator[bytes],
    dialect: Dialect,
    cutting: asyncio.Event,
    limit: TimeLimit = NO_LIMIT,
    *,
    counting: bool = False,
) -> Relayed:
    """Pass runs of whole events on to the client, at its pace.

    `events` MUST end only if the stream is complete, and raise otherwise. If they raise, if the time of
    `limit` is over, or if kvproxy ends (`cutting` is set, then this is cancelled), the client gets an error
    event, and its connection is closed without the event that ends a complete answer. Errors of writing to
    the client are raised on. `counting`: count the events.
    """
    await response.prepare(request)
    splice = CountingSplice(request, response) if counting else Splice(request, response)
    try:
        with limit.enforced():
            async for run in events:
                await response.write(run)
                splice.note(run)
                if isinstance(events, Runs):
                    await events.pour(splice.take)
                    await splice.room()
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
    counted = splice.events if isinstance(splice, CountingSplice) else None
    return Relayed(None, splice.before, splice.last, counted)


async def cut_stream(
    request: web.Request,
    response: web.StreamResponse,
    dialect: Dialect,
    error: RequestError,
    event: bytes = b"",
) -> RequestError:
    """Send an error event (`event`: the engine's own, if it sent one) and close the connection.

    A client that does not read keeps the connection for CUT_GRACE_S at most.
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
