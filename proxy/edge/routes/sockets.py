"""A client's WebSocket is joined to an engine's: messages cross one by one, and each end hears how the other
has closed.
"""

import asyncio
import contextlib
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from proxy.config.cors import ANY
from proxy.edge.middlewares import IN_FLIGHT_KEY
from proxy.errors import (
    BadRequestError,
    EngineFailedError,
    ForbiddenError,
    GatewayTimeoutError,
    LegError,
    NotFoundError,
    RequestError,
    UnavailableError,
    cut,
)
from proxy.request.body import Body
from proxy.request.deadlines import TimeLimit
from proxy.request.dialects import Dialect
from proxy.request.generation import GenerationRequest
from proxy.service import Service
from proxy.serving.exchange import Handshake, OpenSocket
from proxy.tasks import TaskOwner

MAX_MESSAGE_BYTES = 16 << 20
"""The largest message of a client, as of uvicorn, which answers for vLLM (`ws_max_size`)."""

HEARTBEAT_S = 20.0
"""How often a client that sends nothing is pinged. One that does not answer in half that time has left."""

CLOSE_S = 1.0
"""How long a client may take to answer that its socket is closed, before its connection is."""

MAX_PROTOCOLS = 16
MAX_REASON_BYTES = 123
"""RFC 6455 section 5.5: a control frame holds 125 bytes, two of them the code."""

_NEVER_SENT = frozenset({1005, 1006, 1015})
"""Codes that stand for no code (RFC 6455 section 7.4.1)."""

_DATA = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})
_NO_MEMBERS = b"{}"


async def socket_request(
    request: web.Request, service: Service, dialect: Dialect
) -> tuple[GenerationRequest, Handshake]:
    """What a client asks that wants a WebSocket. Raises RequestError."""
    if service.stopping.is_set():
        raise UnavailableError("kvproxy is shutting down", headers={"Connection": "close"})
    spoken = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
    protocols = tuple(filter(None, (each.strip() for each in spoken.split(","))))
    if len(protocols) > MAX_PROTOCOLS:
        raise BadRequestError(f"more than {MAX_PROTOCOLS} subprotocols")
    if not web.WebSocketResponse(protocols=protocols).can_prepare(request).ok:
        raise BadRequestError(f"{dialect.path} is asked by WebSocket (Upgrade: websocket)")
    _check_origin(request, service)
    model = request.query.get("model") or service.config.model
    if not await service.adapters.known(model):
        raise NotFoundError(f"The model `{cut(model)}` does not exist.", param="model")
    generation = GenerationRequest(
        dialect, Body.parse(_NO_MEMBERS), model, False, 1, 1, whole=True, answer_limit=None
    )
    query = request.raw_path.partition("?")[2]
    return generation, Handshake(f"?{query}" if query else "", protocols)


def _check_origin(request: web.Request, service: Service) -> None:
    """Raise ForbiddenError for a page of another site: browsers ask nobody before they open a socket."""
    origin = request.headers.get("Origin")
    allowed = service.config.cors.allowed_origins
    if origin is None or ANY in allowed or origin in allowed or _host_of(origin) == request.host:
        return
    raise ForbiddenError(f"pages of {cut(origin)} may not open sockets here (--allowed-origins)")


def _host_of(origin: str) -> str | None:
    """The host and port of an origin; None if it is none, as with half an IPv6 address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


async def join(
    request: web.Request, socket: OpenSocket, limit: TimeLimit
) -> tuple[web.StreamResponse, RequestError | None]:
    """Pass messages both ways until one end closes. Returns the answer, and the error that both ends were cut
    with (None if one of them closed in order).
    """
    client = web.WebSocketResponse(
        protocols=(socket.protocol,) if socket.protocol is not None else (),
        heartbeat=HEARTBEAT_S,
        timeout=CLOSE_S,
        max_msg_size=MAX_MESSAGE_BYTES,
        autoclose=False,
        compress=False,
    )
    await client.prepare(request)
    error: RequestError | None = None
    try:
        with limit.enforced():
            code = await _both_ways(client, socket)
    except asyncio.CancelledError:
        if not request.app[IN_FLIGHT_KEY].cutting.is_set():
            raise
        code, error = aiohttp.WSCloseCode.GOING_AWAY, UnavailableError("kvproxy is shutting down")
    except GatewayTimeoutError as late:
        code, error = aiohttp.WSCloseCode.INTERNAL_ERROR, late
    except LegError as failed:
        code, error = aiohttp.WSCloseCode.INTERNAL_ERROR, EngineFailedError(failed.words)
    if isinstance(error, UnavailableError | GatewayTimeoutError):
        await socket.finish(aiohttp.WSCloseCode.GOING_AWAY)
    reason = b"" if error is None else str(error).encode()[:MAX_REASON_BYTES]
    with contextlib.suppress(asyncio.CancelledError):  # its connection closes with it, which cancels this
        await client.close(code=code, message=reason)
    return client, error


async def _both_ways(client: web.WebSocketResponse, socket: OpenSocket) -> int:
    """Returns the code with which one end has closed. Raises LegError if the engine's end breaks,
    ConnectionError if the client's does.
    """
    tasks = TaskOwner("socket")
    ways = {
        tasks.create(_to_engine(client, socket), name="to engine"),
        tasks.create(_to_client(client, socket), name="to client"),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if client.close_code is not None:
            await asyncio.wait(ways, timeout=CLOSE_S)  # for the engine to hear it
        for way in ways:
            if way.done() and isinstance(error := way.result(), Exception):
                raise error
    finally:
        await tasks.close()
    code = client.close_code or socket.close_code
    return aiohttp.WSCloseCode.OK if code in _NEVER_SENT else code


async def _to_engine(client: web.WebSocketResponse, socket: OpenSocket) -> LegError | ConnectionError | None:
    """Returns what ended it; None if the client has closed its end, which the engine was told then."""
    try:
        while (message := await client.receive()).type in _DATA:
            await socket.send(message.data)
    except (LegError, ConnectionError) as error:
        return error
    if message.type is not aiohttp.WSMsgType.CLOSE:
        return ConnectionResetError("the client has left")
    code = client.close_code or aiohttp.WSCloseCode.OK
    await socket.finish(aiohttp.WSCloseCode.OK if code in _NEVER_SENT else code)
    return None


async def _to_client(client: web.WebSocketResponse, socket: OpenSocket) -> LegError | ConnectionError | None:
    """Returns what ended it; None if the engine has closed its end."""
    try:
        while (message := await socket.receive()) is not None:
            if isinstance(message, str):
                await client.send_str(message)
            else:
                await client.send_bytes(message)
    except (LegError, ConnectionError) as error:
        return error
    return None
