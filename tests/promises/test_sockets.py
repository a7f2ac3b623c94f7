"""A WebSocket is joined to one engine's: what one end says the other hears, the close and
its code included.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.config import Cors, Retries, Security
from proxy.edge.app import shut_down
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from tests.helpers.service import Engines, InOrder, Pair, kvproxy, wait_until

HEARD = "/v1/realtime"


class Hears:
    """An engine's model that hears: it repeats what it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.open = 0
        self.closed_with: list[int | None] = []

    def middleware(self) -> Any:
        @web.middleware
        async def hears(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path != HEARD:
                return await handler(request)
            self.asked.append((request.path_qs, request.headers.copy()))
            socket = web.WebSocketResponse(protocols=("realtime",))
            await socket.prepare(request)
            self.open += 1
            try:
                await socket.send_str('{"type":"session.created"}')
                async for message in socket:
                    if message.data == "break" and request.transport is not None:
                        request.transport.abort()
                    elif message.data == "close":
                        await socket.close(code=4001)
                    elif message.type is aiohttp.WSMsgType.TEXT:
                        await socket.send_str(message.data)
                    else:
                        await socket.send_bytes(message.data)
                self.closed_with.append(socket.close_code)
            finally:
                self.open -= 1
            return socket

        return hears


@contextlib.asynccontextmanager
async def hearing(decode: int = 1, **settings: Any) -> AsyncIterator[tuple[Pair, list[Hears]]]:
    policy = settings.pop("policy", None)
    async with contextlib.AsyncExitStack() as stack:
        models = [Hears() for _ in range(decode)]
        made = [
            (await stack.enter_async_context(StandIn(StandInConfig(), before=[model.middleware()])), model)
            for model in models
        ]
        made.sort(key=lambda each: each[0].address)
        prefill = await stack.enter_async_context(StandIn(StandInConfig()))
        engines = Engines([prefill], [engine for engine, _ in made], [])
        config = engines.config(kv_events=False, **settings)
        service = await stack.enter_async_context(kvproxy(config, policy))
        yield Pair(engines, service), [model for _, model in made]


@contextlib.asynccontextmanager
async def socket(
    pair: Pair, query: str = "", **settings: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
    async with pair.service.session.ws_connect(pair.service.url + HEARD + query, **settings) as opened:
        assert await opened.receive_str() == '{"type":"session.created"}'
        yield opened


async def closed(opened: aiohttp.ClientWebSocketResponse[bool]) -> int | None:
    assert (await opened.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
    return opened.close_code


async def gone(pair: Pair, models: list[Hears]) -> None:
    await wait_until(
        lambda: pair.service.claims == 0 and not any(model.open for model in models), "both ends' close"
    )


async def test_messages_cross_both_ways_and_it_is_counted() -> None:
    async with hearing() as (pair, models):
        async with socket(pair, "?model=tiny&x=%20y", protocols=("other", "realtime")) as opened:
            assert opened.protocol == "realtime"
            assert pair.service.claims == 1
            large = "x" * (1 << 20)
            for text in ("hello", "Żółć", "", large):
                await opened.send_str(text)
                assert await opened.receive_str(timeout=20) == text
            await opened.send_bytes(b"\x00\xff")
            assert await opened.receive_bytes(timeout=20) == b"\x00\xff"
            await opened.close(code=4000)
        await gone(pair, models)
        assert models[0].closed_with == [4000]
        ((path, headers),) = models[0].asked
        assert path == f"{HEARD}?model=tiny&x=%20y"
        assert headers["X-Request-Id"]
        await pair.service.counts(1, "kvproxy_requests_total", outcome="ok", route="realtime")


async def test_the_engines_close_reaches_the_client() -> None:
    async with hearing() as (pair, models), socket(pair) as opened:
        await opened.send_str("close")
        assert await closed(opened) == 4001
        await gone(pair, models)


async def test_an_engine_that_breaks_closes_it_with_1011() -> None:
    async with hearing() as (pair, models), socket(pair) as opened:
        await opened.send_str("break")
        assert await closed(opened) == aiohttp.WSCloseCode.INTERNAL_ERROR
        await gone(pair, models)
        await pair.service.counts(1, "kvproxy_requests_total", outcome="cut", route="realtime")


async def test_a_client_that_leaves_frees_the_instance() -> None:
    async with hearing() as (pair, models):
        async with socket(pair) as opened:
            transport = opened.get_extra_info("socket")
            assert transport is not None
            opened._response.close()
            await gone(pair, models)
        await pair.service.counts(1, "kvproxy_requests_total", outcome="client_left", route="realtime")


async def test_a_time_limit_closes_it() -> None:
    async with hearing() as (pair, models):
        async with socket(pair, headers={"X-Request-Timeout-Ms": "300"}) as opened:
            assert await closed(opened) == aiohttp.WSCloseCode.INTERNAL_ERROR
        await gone(pair, models)
        await pair.service.counts(1, "kvproxy_requests_total", outcome="timeout", route="realtime")


async def test_a_shutdown_closes_it_in_order() -> None:
    async with hearing() as (pair, models), socket(pair) as opened:
        ending = asyncio.get_running_loop().create_task(shut_down(pair.service.runner, 0.0, asyncio.Event()))
        message = await opened.receive(timeout=20)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        assert message.extra == "kvproxy is shutting down"
        await ending
        await wait_until(lambda: not models[0].open, "the engine's end")
        assert models[0].closed_with == [aiohttp.WSCloseCode.GOING_AWAY]


@pytest.mark.parametrize("how", ["refuse", "status", "cut"])
async def test_another_instance_opens_it_if_the_first_does_not(how: str) -> None:
    async with hearing(2, policy=InOrder()) as (pair, models):
        first = pair.engines.decode[0]
        if how == "refuse":
            await first.refuse()
        else:
            first.faults.add(Fault(kind=how, status=500, path=HEARD))  # type: ignore[arg-type]  # one of two
        async with socket(pair) as opened:
            await opened.send_str("hello")
            assert await opened.receive_str(timeout=20) == "hello"
        assert [len(model.asked) for model in models] == [0, 1]


async def test_what_opens_no_socket_is_answered() -> None:
    async with hearing(retries=Retries(max_attempts=1)) as (pair, _):
        service = pair.service
        plain = await service.ask(HEARD)
        assert (plain.status, plain.json["error"]["type"]) == (400, "BadRequestError")
        pair.engines.decode[0].faults.add(Fault(kind="status", status=403, path=HEARD))
        for url, headers, status in (
            (HEARD, {}, 403),
            (f"{HEARD}?model=none", {}, 404),
            (HEARD, {"Origin": "https://elsewhere.example"}, 403),
            (HEARD, {"Origin": "http://[::1"}, 403),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await service.session.ws_connect(service.url + url, headers=headers)
            assert refused.value.status == status
        assert service.claims == 0


async def test_it_needs_a_key_and_an_allowed_page(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice key-of-alice\n")
    keys.chmod(0o600)
    page = "https://page.example"
    security, cors = Security(api_key_file=keys), Cors(allowed_origins=(page,))
    async with hearing(security=security, cors=cors, engine_api_key="engine-key") as (pair, models):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await pair.service.session.ws_connect(pair.service.url + HEARD)
        assert refused.value.status == 401
        headers = {"Authorization": "Bearer key-of-alice", "Origin": page}
        async with socket(pair, headers=headers):
            assert models[0].asked[0][1]["Authorization"] == "Bearer engine-key"
