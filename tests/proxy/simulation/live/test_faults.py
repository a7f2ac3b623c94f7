"""A stand-in goes wrong exactly as a test tells it to, in every way that tests need."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from proxy.simulation import Fault, StandIn
from proxy.simulation.live.faults import Faults
from tests.proxy.simulation.conftest import Ask, Start
from tests.proxy.simulation.driving import CHAT, COMPLETIONS

BODY = {"model": "tiny", "prompt": "the import", "temperature": 0, "max_tokens": 5}


def test_rules_are_used_in_order_and_used_up() -> None:
    faults = Faults()
    twice, always = Fault(kind="status", status=500, times=2), Fault(kind="status", path=CHAT)
    faults.add(always)
    faults.add(twice)
    assert [faults.take(COMPLETIONS) for _ in range(3)] == [twice, twice, None]
    assert [faults.take(CHAT) for _ in range(3)] == [always] * 3
    assert faults.take("/health") is None
    assert faults.active() == [always]
    faults.clear()
    assert faults.take(CHAT) is None


async def test_a_status_instead_of_an_answer(engine: StandIn, ask: Ask) -> None:
    engine.faults.add(Fault(kind="status", status=503, times=1))
    status, body = await ask(engine, BODY)
    assert (status, body["error"]["code"]) == (503, 503)
    assert (await ask(engine, BODY))[0] == 200
    assert engine.model.stats.prompt_tokens == 2


async def test_a_request_that_hangs(
    engine: StandIn, http: aiohttp.ClientSession, ask: Ask, until: Any
) -> None:
    engine.faults.add(Fault(kind="hang", path=CHAT))
    with pytest.raises(TimeoutError):
        await http.post(engine.url + CHAT, json={}, timeout=aiohttp.ClientTimeout(total=0.05))
    assert (await ask(engine, BODY))[0] == 200


async def test_requests_that_hang_are_released_and_later_ones_hang_again(
    engine: StandIn, ask: Ask, until: Any
) -> None:
    engine.faults.add(Fault(kind="hang", path=COMPLETIONS))
    for asked in (2, 4):
        hanging = asyncio.gather(ask(engine, BODY), ask(engine, BODY))
        await until(lambda asked=asked: engine.asked[COMPLETIONS] == asked)
        assert not hanging.done()
        engine.faults.release()
        assert [status for status, _ in await hanging] == [200, 200]


async def test_a_slow_request(engine: StandIn, ask: Ask) -> None:
    engine.faults.add(Fault(kind="slow", delay_s=0.05, times=1))
    began_s = asyncio.get_running_loop().time()
    assert (await ask(engine, BODY))[0] == 200
    assert asyncio.get_running_loop().time() - began_s >= 0.05


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("after_bytes", [0, 1, 100])
async def test_an_answer_cut_off(
    engine: StandIn, http: aiohttp.ClientSession, streamed: bool, after_bytes: int
) -> None:
    engine.faults.add(Fault(kind="cut", after_bytes=after_bytes))
    received = b""

    async def read() -> None:
        nonlocal received
        async with http.post(engine.url + COMPLETIONS, json={**BODY, "stream": streamed}) as response:
            async for data in response.content.iter_any():
                received += data

    with pytest.raises(aiohttp.ClientError):
        await read()
    assert len(received) <= after_bytes
    assert (received != b"") == (after_bytes > 0)
    assert engine.model.unfinished == 0


@pytest.mark.parametrize(("streamed", "after_chunks"), [(False, 0), (True, 0), (True, 2), (True, 100)])
async def test_an_error_inside_an_answer(
    engine: StandIn, http: aiohttp.ClientSession, streamed: bool, after_chunks: int
) -> None:
    engine.faults.add(Fault(kind="error", status=500, after_chunks=after_chunks, times=1))
    body = {**BODY, "ignore_eos": True, "stream": streamed}
    async with http.post(engine.url + COMPLETIONS, json=body) as response:
        assert response.status == (200 if streamed else 500)
        events = (await response.text()).removesuffix("\n\n").split("\n\n")
    error = {"message": "a fault", "type": "InternalServerError", "param": None, "code": 500}
    said = [json.loads(event.removeprefix("data: ")) for event in events if "[DONE]" not in event]
    assert [said.index(event) for event in said if event == {"error": error}] == (
        [after_chunks] if after_chunks < 100 else []
    )
    assert len(said) == (after_chunks + 1 if after_chunks < 100 else 5)
    assert (events[-1] == "data: [DONE]") is streamed
    assert engine.model.unfinished == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("after_bytes", [0, 100])
async def test_an_answer_that_stalls_goes_on_as_it_would_have(
    engine: StandIn, http: aiohttp.ClientSession, streamed: bool, after_bytes: int
) -> None:
    body = {**BODY, "stream": streamed}

    async def text() -> bytes:
        async with http.post(engine.url + COMPLETIONS, json=body) as response:
            return b"".join([data async for data in response.content.iter_any()])

    expected = len(await text())
    engine.faults.add(Fault(kind="stall", after_bytes=after_bytes, delay_s=0.05, times=1))
    began_s = asyncio.get_running_loop().time()
    assert len(await text()) == expected
    assert asyncio.get_running_loop().time() - began_s >= 0.05
    engine.faults.add(Fault(kind="stall", after_bytes=after_bytes))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await text()


async def test_refused_and_accepted_again(engine: StandIn, http: aiohttp.ClientSession, ask: Ask) -> None:
    await ask(engine, BODY)
    port = engine.port
    await engine.refuse()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(engine.url + "/health")
    await engine.accept()
    assert engine.port == port
    _, body = await ask(engine, {**BODY, "prompt": [300] * 9})
    assert engine.model.stats.prompt_tokens > 9  # the engine is the same
    assert body["usage"]["prompt_tokens"] == 9


async def test_requests_under_way_when_an_engine_dies(
    engine: StandIn, http: aiohttp.ClientSession, ask: Ask
) -> None:
    async with http.post(
        engine.url + COMPLETIONS, json={**BODY, "max_tokens": 190, "stream": True}
    ) as response:
        first = await response.content.readuntil(b"\n\n")
        engine.die()
        rest = await response.read()
    assert b'"text"' in first
    assert b"EngineCore encountered an issue" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    await engine.ended.wait()


async def test_a_test_can_ask_what_arrived(engine: StandIn, ask: Ask) -> None:
    await ask(engine, BODY, COMPLETIONS, **{"X-Request-Id": "mine"})
    [seen] = engine.seen
    assert (seen.method, seen.path, seen.headers["X-Request-Id"]) == ("POST", COMPLETIONS, "mine")
    assert seen.json() == BODY


async def test_the_admin_port_commands_all_of_it(start: Start, http: aiohttp.ClientSession, ask: Ask) -> None:
    engine = await start(admin=0)
    admin = f"http://127.0.0.1:{engine.admin_port}/faults"

    async def do(**body: Any) -> tuple[int, Any]:
        async with http.post(admin, json=body) as response:
            return response.status, await response.json()

    status, state = await do(add={"kind": "status", "status": 500, "times": 1})
    assert status == 200
    assert state["faults"][0]["status"] == 500
    assert (await ask(engine, BODY))[0] == 500
    await do(add={"kind": "hang"})
    _, state = await do(clear=True)
    assert (state["faults"], state["dead"], state["refusing"]) == ([], False, False)
    assert (state["holds"], state["unfinished"]) == (0, 0)
    assert (state["published"], state["cached_blocks"]) == ([0], [0])
    assert (await do(do="refuse"))[1]["refusing"] is True
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(engine, BODY)
    assert (await do(do="accept"))[1]["refusing"] is False
    before = engine.model.engine_id
    await do(do="restart")
    assert engine.model.engine_id != before
    await do(do="freeze_events")
    await ask(engine, {**BODY, "prompt": [300] * 40})
    await do(do="thaw_events")
    await do(do="drop_events", count=3)
    _, state = await do()
    assert (state["published"], state["cached_blocks"]) == ([1], [2])
    assert (await do(do="nonsense"))[0] == 400
    assert (await do(add={"kind": "nonsense"}))[0] == 400
    await do(do="die")
    await engine.ended.wait()
    async with http.get(admin) as response:
        assert (await response.json())["dead"] is True
