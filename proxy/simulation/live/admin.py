"""Invariant: faults happen between the socket and the handlers, and no handler knows of them.

For tests and chaos runs: a record of the requests that arrived, the middleware that makes them fail, and an
endpoint on a port of its own through which another process commands both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.simulation.api.errors import BadRequestError, FaultError
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.http_edge import FAULT, cut, json_answer, pause, read_json, refusals

if TYPE_CHECKING:
    from proxy.simulation.live.stand_in import StandIn

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived, for tests that ask what a proxy sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body."""
        return msgspec.json.decode(self.body)


def watch(engine: "StandIn") -> Middleware:
    """Record each request that arrives, then make it fail if a fault says so."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        engine.asked[request.path] += 1
        if request.method == "POST":
            engine.seen.append(Seen(request.method, request.path, request.headers, await request.read()))
        fault = engine.faults.take(request.path)
        if fault is None:
            return await handler(request)
        match fault.kind:
            case "hang":
                await engine.faults.hang()
            case "slow":
                await asyncio.sleep(fault.delay_s)
            case "status":
                told = None if fault.retry_after is None else {"Retry-After": fault.retry_after}
                return json_answer(FaultError(fault.status).body(), fault.status, told)
            case "cut":
                return await _cut(request, handler, fault)
            case "stall":
                return await _stall(request, handler, fault)
            case "error":
                return await _fail(request, handler, fault)
        return await handler(request)

    return middleware


async def _cut(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    if not fault.after_bytes:
        return await cut(request)
    request[FAULT] = fault
    response = await handler(request)
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return response
    part = web.StreamResponse(status=response.status, headers=response.headers)
    part.content_length = len(response.body)
    await part.prepare(request)
    await part.write(response.body[: fault.after_bytes])
    return await cut(request)


async def _fail(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    request[FAULT] = fault
    body = await read_json(request)
    if isinstance(body, dict) and body.get("stream"):
        return await handler(request)
    return json_answer(FaultError(fault.status).body(), fault.status)  # a request that fails holds nothing


async def _stall(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    request[FAULT] = fault
    response = await handler(request)
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return response
    if not fault.after_bytes:
        await pause(fault)
        return response
    whole = web.StreamResponse(status=response.status, headers=response.headers)
    whole.content_length = len(response.body)
    await whole.prepare(request)
    await whole.write(response.body[: fault.after_bytes])
    await pause(fault)
    await whole.write(response.body[fault.after_bytes :])
    await whole.write_eof()
    return whole


def admin_app(engine: "StandIn") -> web.Application:
    """GET /faults has the faults in force, what is held, running and cached, and how many batches of events
    each rank has published; POST changes the faults.

    {"add": a fault}, {"clear": true}, or {"do": verb} with one of restart, refuse, accept, die,
    freeze_events, thaw_events, drop_events (with "count").
    """

    async def get(_: web.Request) -> web.Response:
        state = {
            "faults": engine.faults.active(),
            "dead": engine.dead,
            "refusing": engine.refusing,
            "holds": sum(len(rank.model.holds) for rank in engine.ranks),
            "cached_blocks": [rank.model.cache.pool.cached_blocks for rank in engine.ranks],
            "unfinished": sum(rank.load for rank in engine.ranks),
            "published": [rank.publisher.next_number for rank in engine.ranks if rank.publisher is not None],
        }
        return json_answer(state)

    async def post(request: web.Request) -> web.Response:
        body = await read_json(request)
        if not isinstance(body, dict):
            raise BadRequestError("an object is needed")
        if body.get("clear"):
            engine.faults.clear()
        if "add" in body:
            try:
                engine.faults.add(msgspec.convert(body["add"], Fault))
            except msgspec.ValidationError as error:
                raise BadRequestError(str(error), "add") from error
        if "do" in body:
            await _do(engine, body["do"], int(body.get("count", 1)))
        return await get(request)

    app = web.Application(middlewares=[refusals])
    app.add_routes([web.get("/faults", get), web.post("/faults", post)])
    return app


async def _do(engine: "StandIn", verb: Any, count: int) -> None:
    publishers = [rank.publisher for rank in engine.ranks if rank.publisher is not None]
    match verb:
        case "restart":
            await engine.restart()
        case "refuse":
            await engine.refuse()
        case "accept":
            await engine.accept()
        case "die":
            engine.die()
        case "freeze_events":
            for publisher in publishers:
                publisher.freeze()
        case "thaw_events":
            for publisher in publishers:
                publisher.thaw()
        case "drop_events":
            for publisher in publishers:
                publisher.drop(count)
        case _:
            raise BadRequestError(f"unknown verb {verb!r}", "do")
