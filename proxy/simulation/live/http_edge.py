"""Invariant: every body in or out of the stand-in's HTTP passes through here, so it is worded as vLLM words
it.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NoReturn

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.simulation.api.errors import ApiError, BadRequestError, FaultError, MediaTypeError, SchemaError
from proxy.simulation.api.schema import problem
from proxy.simulation.live.faults import Fault

FAULT = web.RequestKey("fault", Fault)
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


async def cut(request: web.Request) -> NoReturn:
    """Close the connection; unsent bytes stay unsent. The server cancels the handler, which waits here."""
    if request.transport is not None:
        request.transport.abort()
    while True:
        await asyncio.Event().wait()


async def pause(fault: Fault) -> None:
    """Send nothing for as long as the fault says. If the client does not wait, the server cancels the
    handler.
    """
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    else:
        await asyncio.Event().wait()


class InFlight:
    """Requests being answered."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts a request while it is answered."""
        self.count += 1
        self._none.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._none.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is being answered, at most `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer as vLLM's framework writes it: no charset."""
    return web.Response(body=encode(body), status=status, headers=headers, content_type="application/json")


class EventStream:
    """Server-sent events of one answer, cut off, held up or failing where a fault says so."""

    def __init__(self, response: web.StreamResponse, request: web.Request, *, named: bool = False) -> None:
        """`named`: whether each event has its type as a name."""
        self._response = response
        self._named = named
        fault = request.get(FAULT)
        self._fault = fault if fault is not None and fault.kind in {"cut", "stall"} else None
        self._left = fault.after_bytes if fault is not None else 0
        self._chunks_left = fault.after_chunks if fault is not None and fault.kind == "error" else None
        self._failure = FaultError(fault.status) if fault is not None else None
        self._request = request

    async def send(self, event: Any) -> None:
        """Send an event of a generation. Raises ApiError where a fault makes it fail."""
        if self._chunks_left == 0 and self._failure is not None:
            raise self._failure
        if self._chunks_left is not None:
            self._chunks_left -= 1
        await self.say(event)

    async def say(self, event: Any) -> None:
        """Send an event of a generation that failed."""
        name = f"event: {event['type']}\n".encode() if self._named else b""
        await self._write(name + b"data: " + encode(event) + b"\n\n")

    async def end(self, mark: bytes) -> None:
        """Send the end of the stream."""
        await self._write(b"data: " + mark + b"\n\n")

    async def _write(self, data: bytes) -> None:
        if self._fault is None:
            await self._response.write(data)
            return
        await self._response.write(data[: self._left])
        if self._left > len(data):
            self._left -= len(data)
            return
        if self._fault.kind == "cut":
            await cut(self._request)
        await pause(self._fault)
        rest, self._fault = data[self._left :], None
        await self._response.write(rest)


async def read_json(request: web.Request) -> Any:
    """The parsed body. Raises SchemaError, in vLLM's words, for wrong types and broken JSON."""
    if request.content_type != "application/json":
        raise MediaTypeError
    data = await request.read()
    if not data:
        return None
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            return json.loads(data)
        except json.JSONDecodeError as error:
            found = problem("json_invalid", f"body.{error.pos}", "JSON decode error", {}, error=error.msg)
            raise SchemaError([found]) from None
        except ValueError as error:  # not UTF-8, or a number with too many digits
            raise BadRequestError("There was an error parsing the body") from error


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Put the client's id, or one made here, into the head of every answer."""
    response.headers["X-Request-Id"] = request.headers.get("X-Request-Id") or uuid.uuid4().hex


async def let_any_origin_read(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of vLLM's framework when all origins are allowed."""
    if "Origin" in request.headers:
        response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Vary"] = "Origin"


def guard(key: str | None) -> Middleware:
    """Refuse requests to /v1 that do not show `key`; None: refuse none."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if key and request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
            return json_answer({"error": "Unauthorized"}, 401)
        return await handler(request)

    return middleware


@web.middleware
async def refusals(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Give errors vLLM's bodies: its own, and its framework's for routes that do not exist."""
    try:
        response: web.StreamResponse = await handler(request)
    except ApiError as error:
        return json_answer(error.body(), error.status)
    except ConnectionError:
        return web.Response(status=499)  # its client has left, so it is never read
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return json_answer({"detail": HTTPStatus(error.status).phrase}, error.status, allow)
    return response
