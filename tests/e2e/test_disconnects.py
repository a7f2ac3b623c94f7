"""Clients leave at any moment; nothing of their requests stays behind, in kvproxy or in an engine."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.words import prose

REQUESTS = 300
AT_ONCE = 6
AT_REST_S = 2.0


async def leave_after(
    session: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any], wait_s: float
) -> bool:
    """Send a request and close its connection after `wait_s` seconds; whether it was answered before."""
    try:
        async with asyncio.timeout(wait_s):
            await ask(session, url, path, body)
    except TimeoutError:
        return False
    return True


async def leave_in_stream(
    session: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any], events: int
) -> None:
    """Send a streamed request and close its connection after some events."""
    async with session.post(url + path, json=body | {"stream": True}) as answer:
        assert answer.status == 200
        for _ in range(events):
            if not await answer.content.readline():
                return
        answer.close()


def some_body(dice: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    words = dice.choice([5, 60, 200, 600])
    fields = {"model": "tiny", "temperature": 0, "max_tokens": dice.choice([1, 8, 64])}
    if dice.random() < 0.5:
        return COMPLETIONS, fields | {"prompt": prose(words, f"leaving {number}")}
    if dice.random() < 0.3:
        return COMPLETIONS, fields | {
            "prompt": [prose(words // 3, f"leaving {number} {n}") for n in range(3)]
        }
    return CHAT, fields | {"messages": [{"role": "user", "content": prose(words, f"leaving {number}")}]}


async def at_rest(session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess) -> float:
    return await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, AT_REST_S)


async def expired(session: aiohttp.ClientSession, fleet: Fleet) -> float:
    pages = [await read_metrics(session, spec.url) for spec in fleet.of_role("prefill")]
    return sum(page.total("vllm:nixl_num_kv_expired_reqs_total") for page in pages)


@pytest.fixture(autouse=True)
async def pairs_have_met(session: aiohttp.ClientSession, fleet: Fleet) -> None:
    """Each pair has transferred once: the first release between strangers takes seconds
    (test_restarts.py)."""
    for prefill in fleet.of_role("prefill"):
        for decode in fleet.of_role("decode"):
            body = {"model": "tiny", "prompt": prose(40, f"{prefill.name} {decode.name}"), "max_tokens": 1}
            first = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
            held = await ask(session, prefill.url, COMPLETIONS, body | first)
            params = {"kv_transfer_params": held.json["kv_transfer_params"]}
            assert (await ask(session, decode.url, COMPLETIONS, body | params)).status == 200


@pytest.fixture
async def nothing_expires(session: aiohttp.ClientSession, fleet: Fleet) -> AsyncIterator[None]:
    before = await expired(session, fleet)
    yield
    assert await expired(session, fleet) == before, "prefilled blocks were left to their lease"


@pytest.mark.usefixtures("nothing_expires")
async def test_300_clients_leave_at_random_moments(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess
) -> None:
    dice = random.Random(20)
    before = await read_metrics(session, proxy.url)
    answered = 0
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        nonlocal answered
        path, body = some_body(dice, number)
        async with room:
            if dice.random() < 0.3:
                await leave_in_stream(session, proxy.url, path, body, dice.randrange(1, 20))
            elif await leave_after(
                session, proxy.url, path, body, dice.choice([0.002, 0.02, 0.08, 0.2, 0.5]) * dice.random()
            ):
                answered += 1

    async with asyncio.TaskGroup() as group:
        for number in range(REQUESTS):
            group.create_task(one(number))

    took_s = await at_rest(session, fleet, proxy)
    print(f"{REQUESTS} clients, {answered} answered in full, at rest after {took_s:.2f} s")
    assert REQUESTS - answered > 0
    after = await read_metrics(session, proxy.url)
    stranded = "kvproxy_holds_total"
    assert after.total(stranded, end="stranded") == before.total(stranded, end="stranded")
    assert after.total("kvproxy_instance_up") == before.total("kvproxy_instance_up") == 4


@pytest.mark.usefixtures("nothing_expires")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait_ms", [0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30, 40, 60])
async def test_a_client_leaves_early(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, wait_ms: int, stream: bool
) -> None:
    body = {"model": "tiny", "max_tokens": 64, "ignore_eos": True, "stream": stream}
    for again in range(3):
        prompt = {"prompt": prose(200, f"early {wait_ms} {stream} {again}")}
        with contextlib.suppress(TimeoutError):
            await leave_after(session, proxy.url, COMPLETIONS, body | prompt, wait_ms / 1000)
    await at_rest(session, fleet, proxy)


@pytest.mark.usefixtures("nothing_expires")
async def test_answers_stay_right_while_others_leave(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str
) -> None:
    dice = random.Random(21)
    bodies = [
        {"model": "tiny", "temperature": 0, "max_tokens": 16, "prompt": prose(40 + 15 * n, f"staying {n}")}
        for n in range(20)
    ]
    expected = [(await ask(session, plain, COMPLETIONS, body)).text for body in bodies]

    async def leavers() -> None:
        for number in range(60):
            path, body = some_body(dice, 1000 + number)
            await leave_after(session, proxy.url, path, body, 0.06 * dice.random())

    async with asyncio.TaskGroup() as group:
        group.create_task(leavers())
        group.create_task(leavers())
        got = [(await ask(session, proxy.url, COMPLETIONS, body)).text for body in bodies]
    assert got == expected
    await at_rest(session, fleet, proxy)
