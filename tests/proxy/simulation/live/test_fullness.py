"""A stand-in with a limit refuses what is too much as vLLM does, and goes on as it was."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from proxy.simulation import Fault, StandIn
from proxy.simulation.engine.latency import PROFILES
from tests.proxy.simulation.conftest import Ask, Start
from tests.proxy.simulation.driving import CHAT, COMPLETIONS

BODY = {"model": "tiny", "prompt": "the import", "temperature": 0, "max_tokens": 5}
BUSY = {
    "error": {
        "message": "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
    }
}

BACKLOG = (
    "The engine has reached its prefill token backlog limit. "
    "Please try again later or on a different instance."
)


def begin(ask: Ask, engine: StandIn, body: dict[str, Any]) -> "asyncio.Task[tuple[int, Any]]":
    async def asking() -> tuple[int, Any]:
        return await ask(engine, body)

    return asyncio.get_running_loop().create_task(asking())


async def test_one_more_than_the_limit_is_refused_until_one_has_ended(
    start: Start, ask: Ask, until: Any
) -> None:
    engine = await start(max_queued_requests=2, profile=PROFILES["tiny-cpu"])
    long = {**BODY, "max_tokens": 2000, "ignore_eos": True, "n": 2, "temperature": 1}
    running = begin(ask, engine, long)
    await until(lambda: engine.model.unfinished == 2)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    assert await ask(engine, BODY) == (503, BUSY)
    assert await ask(engine, {**BODY, "stream": True}) == (503, BUSY)  # before a stream has a head
    assert await ask(engine, chat, CHAT) == (503, BUSY)
    assert (await ask(engine, {**BODY, "model": "other"}))[0] == 404  # that is found out first
    assert await ask(engine, {**BODY, "temperature": -1}) == (503, BUSY)  # and that is not
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/health") as healthy:
        assert healthy.status == 200
    running.cancel()
    await until(lambda: engine.model.unfinished == 0)
    assert (await ask(engine, BODY))[0] == 200


async def test_several_sequences_need_as_many_places(start: Start, ask: Ask) -> None:
    engine = await start(max_queued_requests=2)
    assert await ask(engine, {**BODY, "n": 3}) == (503, BUSY)
    assert (await ask(engine, {**BODY, "n": 2, "temperature": 1}))[0] == 200
    # Each prompt of a list is asked about by itself, when a stream has its head already.
    assert await ask(engine, {**BODY, "prompt": ["a", "b", "c"]}) == (503, BUSY)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            engine.url + COMPLETIONS, json={**BODY, "prompt": ["a", "b", "c"], "stream": True}
        ) as response,
    ):
        assert response.status == 200
        first, *_ = (await response.text()).split("\n\n")
    assert json.loads(first.removeprefix("data: ")) == BUSY


async def test_prompts_without_a_first_token_count(start: Start, ask: Ask, until: Any) -> None:
    engine = await start(max_queued_tokens=1, profile=PROFILES["tiny-cpu"])
    assert (await ask(engine, BODY))[0] == 200
    long = {**BODY, "prompt": list(range(100, 4000)), "max_tokens": 1}
    running = begin(ask, engine, long)
    await until(lambda: engine.model.unfinished == 1)
    status, body = await ask(engine, BODY)
    assert (status, body["error"]["message"]) == (503, BACKLOG)
    assert (await running)[0] == 200
    assert (await ask(engine, BODY))[0] == 200


async def test_prompts_of_a_list_count_for_those_behind(start: Start, ask: Ask) -> None:
    engine = await start(max_queued_tokens=100)
    prompts = [[300 + n] * 50 for n in range(3)]
    assert (await ask(engine, {**BODY, "prompt": prompts[:2]}))[0] == 200
    status, body = await ask(engine, {**BODY, "prompt": prompts})
    assert (status, body["error"]["message"]) == (503, BACKLOG)
    assert (await ask(engine, {**BODY, "prompt": prompts[:2], "n": 2, "temperature": 1}))[0] == 503
    assert (await ask(engine, BODY))[0] == 200


async def test_refusals_are_counted_by_the_limit(start: Start, ask: Ask, http: aiohttp.ClientSession) -> None:
    engine = await start(max_queued_requests=1, max_queued_tokens=0)
    assert [(await ask(engine, BODY | {"n": n}))[0] for n in (2, 2, 1)] == [503, 503, 503]
    async with http.get(f"{engine.url}/metrics") as answer:
        page = await answer.text()
    for limit, count in (("reqs", 2), ("tokens", 1)):
        labels = f'model_name="tiny",reason="max_num_queued_{limit}"'
        assert f"vllm:admission_rejections_total{{{labels}}} {count}.0" in page


async def test_a_decode_leg_that_is_refused_gives_its_hold_back(start: Start, ask: Ask, until: Any) -> None:
    prefill, decode = await start(), await start(max_queued_requests=0)
    params = {"do_remote_decode": True, "do_remote_prefill": False}
    _, answer = await ask(prefill, {**BODY, "prompt": list(range(100, 150)), "kv_transfer_params": params})
    assert len(prefill.model.holds) == 1
    carried = {**BODY, "kv_transfer_params": answer["kv_transfer_params"]}
    for _ in range(2):  # the first only begins a handshake
        assert await ask(decode, carried) == (503, BUSY)
        await until(lambda: prefill.model.engine_id in decode.model.peers)
    await until(lambda: len(prefill.model.holds) == 0)


@pytest.mark.parametrize("told", [None, "3", "Mon, 30 Nov 2026 06:00:00 GMT"])
async def test_a_fault_may_say_when_to_come_back(
    engine: StandIn, http: aiohttp.ClientSession, told: str | None
) -> None:
    engine.faults.add(Fault(kind="status", status=429, retry_after=told))
    async with http.post(engine.url + COMPLETIONS, json=BODY) as response:
        assert response.status == 429
        assert response.headers.get("Retry-After") == told
