"""A connection that sends no request in time is cut; one that sends anything but HTTP gets one error in the
envelope.

What it sent is neither repeated in that error nor logged: a header that was cut short may hold a key.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import http_exceptions, web

from proxy.edge.exact_paths import ExactPaths
from proxy.edge.ids import new_id
from proxy.edge.middlewares import SERVER, enveloped
from proxy.edge.patience import PATIENCE, Patience
from proxy.edge.sockets.doors import Door
from proxy.edge.visit import VISIT, Visit
from proxy.errors import BadRequestError, RequestError, envelope
from proxy.headers import REQUEST_ID

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 << 10
"""The longest line of a head: tokens and cookies of some clients are longer than aiohttp's 8 KiB."""

MAX_HEAD_BYTES = 128 << 10
"""The largest head. aiohttp bounds the length and the number of its lines, which leaves room for 8 MiB."""

MAX_FRAMING_RATIO = 8
"""The most bytes of a connection for each byte of a chunked body, beside MAX_HEAD_BYTES. A chunk of one byte
takes six; more than that are chunk extensions, which no limit on bodies counts."""


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_body_bytes", "_counted", "_door", "_head_bytes", "_head_timer", "patience")

    def __init__(self, manager: web.Server, door: Door, patience: Patience, **settings: Any) -> None:
        super().__init__(manager, keepalive_timeout=patience.idle_s, **settings)
        self.patience = patience
        self._door = door
        self._head_bytes = 0
        self._body_bytes = 0
        self._counted = 0
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request: for its first (aiohttp may not wait yet), or for another."""
        return self._waits and not self._messages

    @property
    def is_reading(self) -> bool:
        """Whether the body of the request that is being answered has not fully arrived."""
        return self._current_request is not None and not self._current_request.content.is_eof()

    @property
    def _waits(self) -> bool:
        return not self._waiter.done() if self._waiter is not None else not self._request_count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection if its door has a place for it; the door closes it otherwise."""
        super().connection_made(transport)
        self._door.comes(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and count them for a head or for a body.

        They belong to a head if aiohttp still waits for a request after them, or does not wait for the first
        one yet, or if a request is being answered whose body has arrived already.
        """
        if self._payload_parser is not None:  # a WebSocket is open: nothing is a head any more
            super().data_received(data)
            return
        ahead = self._current_request is not None and self._current_request.content.is_eof()
        super().data_received(data)
        if not self._waits and not (ahead and not self._messages):
            self._head_bytes = 0
            if self._head_timer is not None:
                self._head_ended()
            self._count_body(len(data))
        elif data:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._cut("a request head of more than %d bytes", MAX_HEAD_BYTES)
            elif self._head_timer is None:
                self._await_head()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading if that was paused. aiohttp asks for it with each piece of a body that is taken."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self.patience.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._current_request is not None:  # the request before it is still being answered
            self._await_head()
        else:
            self._cut("no complete request head within %g s", self.patience.head_s)

    def _count_body(self, received_bytes: int) -> None:
        if self._counted != self._request_count:  # another request has begun
            self._counted, self._body_bytes = self._request_count, 0
        self._body_bytes += received_bytes
        request = self._current_request
        if request is None or request.content.is_eof():
            return
        if self._body_bytes > MAX_HEAD_BYTES + MAX_FRAMING_RATIO * request.content.total_bytes:
            self._cut("%d bytes came for next to no body", self._body_bytes)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the connection's place back, and stop its timer."""
        self._door.closed(self)
        self._head_ended()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it quotes what was sent
    ) -> web.StreamResponse:
        """The answer to bytes that could not be read as HTTP, or to a failure outside all handlers."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already; a second one must not follow")
        request_id = new_id()
        if status < 500:
            log.info("a connection sent what is not valid HTTP (%s, id %s)", type(exc).__name__, request_id)
            body = envelope(_words(exc), BadRequestError.kind, status)
        else:
            log.error("a request failed outside its handler (id %s)", request_id, exc_info=exc)
            body = envelope("kvproxy failed on this request", RequestError.kind, status)
        response = web.json_response(body, status=status, headers={REQUEST_ID: request_id, "Server": SERVER})
        response.force_close()
        return response

    def _head_ended(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self, why: str, bound: float) -> None:
        log.debug("a connection was closed: " + why, bound)  # noqa: G003  # `why` is one of our own formats
        self._head_ended()
        self.force_close()


def _words(error: BaseException | None) -> str:
    """What is wrong with a request, in words that repeat nothing of it."""
    if isinstance(error, http_exceptions.LineTooLong):
        return f"a line of the request's head is longer than {MAX_HEADER_BYTES} bytes"
    if isinstance(error, http_exceptions.BadHttpMethod):
        return "the request does not begin with an HTTP method"
    if isinstance(error, http_exceptions.InvalidURLError):
        return "the request's target is not a valid URL"
    return "the request is not valid HTTP/1.1"


class _Server(web.Server):
    """Makes a `Connection` of each accepted socket; aiohttp has no setting for that."""

    def __init__(self, made: web.Server, door: Door, patience: Patience, settings: dict[str, Any]) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )
        self._door = door
        self._patience = patience
        self._settings = settings

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self._door, self._patience, loop=asyncio.get_running_loop(), **self._settings)


def _at_door(door: Door, handle: Callable[..., Awaitable[web.StreamResponse]]) -> Callable[..., Any]:
    """Begin the visit of each request, and tell the door which connections have one; close spare connections
    after their answer.

    Errors that arise before all middlewares (as an unknown `Expect`) get the envelope as well.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, Connection):
            raise TypeError("a request of a connection that is not ours")
        is_spare = door.is_spare(connection)
        visit = Visit(request.headers.get(REQUEST_ID), connection.patience, is_spare=is_spare)
        request[VISIT] = visit
        if is_spare:
            connection._lingering_time = 0.0  # noqa: SLF001  # an unread body would occupy it for longer
        door.works(connection)
        try:
            response = await handle(request)
        except web.HTTPException as error:
            response = enveloped(error)
            response.headers[REQUEST_ID] = visit.request_id
            response.headers["Server"] = SERVER
            response.force_close()
        finally:
            door.rests(connection)
        if is_spare:
            response.force_close()
        return response

    return answer


class Runner(web.AppRunner):
    """Runs an application with the server settings that kvproxy relies on.

    A client that leaves cancels its handler, and bodies are not decompressed.
    """

    __slots__ = ("_door", "_patience", "_settings")

    def __init__(self, app: web.Application, door: Door, patience: Patience = PATIENCE) -> None:
        self._door = door
        self._patience = patience
        self._settings: dict[str, Any] = {
            "access_log": None,  # kvproxy's own says more (`observability/access_log.py`)
            "auto_decompress": False,
            "max_line_size": MAX_HEADER_BYTES,
            "max_field_size": MAX_HEADER_BYTES,
        }
        super().__init__(
            app,
            handler_cancellation=True,
            shutdown_timeout=0.1,  # aiohttp waits twice this time, and for ever with 0
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        made.request_handler = _at_door(self._door, ExactPaths(self._app, made.request_handler).answer)
        return _Server(made, self._door, self._patience, self._settings)
