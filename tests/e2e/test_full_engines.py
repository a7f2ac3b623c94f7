"""A decode engine that is full refuses legs; another serves them, or they wait until there is room. No client
is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.fleets import QUEUED_REQUESTS

UNDER_WAY_S = 20
AT_REST_S = 5
REFUSED = "kvproxy_engine_full_total"


def chat(seed: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prose(100, seed)}]
    return {"model": "tiny", "temperature": 0, "max_tokens": 8, "messages": messages} | more


@contextlib.asynccontextmanager
async def filled(session: aiohttp.ClientSession, spec: EngineSpec) -> AsyncIterator[None]:
    """Somebody else has all the places of an engine, for longer than this lasts."""
    body = {
        "model": "tiny",
        "prompt": prose(20, f"all of {spec.name}"),
        "n": QUEUED_REQUESTS,
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
    }

    async def under_way() -> bool:
        page = await read_metrics(session, spec.url)
        running = page.total("vllm:num_requests_running") + page.total("vllm:num_requests_waiting")
        return running == QUEUED_REQUESTS

    async with session.post(spec.url + COMPLETIONS, json=body) as answer:
        assert answer.status == 200
        await wait_until(under_way, UNDER_WAY_S, f"{spec.name} is full")
        yield
        answer.close()


async def test_what_a_full_engine_refuses_is_served_by_another_or_waits(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str
) -> None:
    first, second = fleet.of_role("decode")
    bodies = [chat(f"no room {n}", stream=n % 2 == 1) for n in range(8)]
    right = [(await ask(session, plain, CHAT, body)).text for body in bodies]
    before = await read_metrics(session, proxy.url)

    async def waits() -> bool:
        return (await read_metrics(session, proxy.url)).total("kvproxy_queued_requests") == len(bodies)

    async with asyncio.TaskGroup() as group:
        async with filled(session, first):
            served = [await ask(session, proxy.url, CHAT, body) for body in bodies]
            assert [answer.text for answer in served] == right
            assert {answer.decode for answer in served} == {second.address}
            async with filled(session, second):
                asked = [group.create_task(ask(session, proxy.url, CHAT, body)) for body in bodies]
                await wait_until(waits, UNDER_WAY_S, "all wait, none is refused")
        late = [await task for task in asked]
    assert [(answer.status, answer.text, answer.complete) for answer in late] == [
        (200, text, True) for text in right
    ]

    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, AT_REST_S)
    after = await read_metrics(session, proxy.url)
    for spec in (first, second):
        refused = [page.total(REFUSED, instance=spec.address, phase="decode") for page in (before, after)]
        assert refused[1] > refused[0], f"{spec.name} was asked while it was full"
    for count in (
        {"name": "kvproxy_holds_total", "end": "stranded"},
        {"name": "kvproxy_circuit_transitions_total"},
    ):
        assert after.total(**count) == before.total(**count), count
