"""An engine dies while serving and comes back on its port: noticed, forgotten, learned again."""

import asyncio
import contextlib
import itertools
import pathlib
from typing import Any

import aiohttp
from live.asking import CHAT, COMPLETIONS, Answer, ask
from live.explaining import explain
from live.metrics import read_metrics
from live.ports import free_ports
from live.proxy import ProxyProcess
from live.quiet import wait_quiet
from live.waiting import wait_until
from live.words import prose
from vllm_cpu.fleet import Fleet

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}
NOTICED_S = 10
BACK_S = 30
STRANGERS_S = 8  # well below the lease, so that nothing has just expired


def chat(seed: str, words: int = 150) -> dict[str, Any]:
    return GREEDY | {"messages": [{"role": "user", "content": prose(words, seed)}]}


async def instance_up(session: aiohttp.ClientSession, proxy: ProxyProcess, address: str) -> bool:
    return (await read_metrics(session, proxy.url)).total("kvproxy_instance_up", instance=address) == 1


async def wait_noticed(session: aiohttp.ClientSession, proxy: ProxyProcess, address: str) -> None:
    async def noticed() -> bool:
        return not await instance_up(session, proxy, address)

    await wait_until(noticed, NOTICED_S, f"{address} is known to be down")


async def wait_back(session: aiohttp.ClientSession, proxy: ProxyProcess, address: str, role: str) -> None:
    async def back() -> bool:
        told = await explain(session, proxy, chat("is it back"))
        terms = told.candidate(address, role)
        return bool(terms["usable"] and terms["index"] == "exact")

    await wait_until(back, BACK_S, f"{address} is usable again and its index exact")


async def bring_back(session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, name: str) -> None:
    fleet.restart(name)
    await asyncio.to_thread(fleet.wait_healthy, [name])
    await wait_back(session, proxy, fleet[name].address, fleet[name].role)


async def a_client_leaves_strangers(
    session: aiohttp.ClientSession, fleet: Fleet, name: str, logs: pathlib.Path
) -> None:
    """A prefill engine that no decode engine has met: what a client leaves behind there is given back all the same."""
    [port] = free_ports(1)
    decode = [spec.address for spec in fleet.of_role("decode")]
    with ProxyProcess(port, logs / "strangers.log", prefill=[fleet[name].address], decode=decode) as proxy:
        proxy.wait_status("/ready")

        async def left_something() -> bool:
            with contextlib.suppress(TimeoutError):
                body = chat(f"leaving {asyncio.get_running_loop().time()}", 1500)
                await asyncio.wait_for(ask(session, proxy.url, CHAT, body), 0.015)
            with contextlib.suppress(TimeoutError):  # another one would help this one's release along
                return await wait_until(prefilled, 0.5, "its prompt has been prefilled")
            return False

        async def prefilled() -> bool:
            return (await read_metrics(session, fleet[name].url)).total("vllm:kv_cache_usage_perc") > 0

        await wait_until(left_something, 10, "a client has left while its prompt was prefilled")
        await wait_quiet(session, [fleet[name].url], proxy.url, STRANGERS_S)

        async def released() -> bool:
            return (await read_metrics(session, proxy.url)).total("kvproxy_holds_total", end="released") > 0

        await wait_until(released, STRANGERS_S, "the hold is counted as released")
    assert (await read_metrics(session, fleet[name].url)).total("vllm:nixl_num_kv_expired_reqs_total") == 0


async def test_a_prefill_engine_dies_while_serving(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str, logs: pathlib.Path
) -> None:
    bodies = [chat(f"before the crash {n}") for n in range(6)]
    expected = [(await ask(session, plain, CHAT, body)).text for body in bodies]
    first = [await ask(session, proxy.url, CHAT, body) for body in bodies]
    assert [a.text for a in first] == expected
    lost = first[0].prefill
    victim = fleet.named(lost)
    held_there = [n for n, answer in enumerate(first) if answer.prefill == lost]

    results: list[Answer] = []

    async def keep_asking(lane: int) -> None:
        for n in range(12):
            results.append(await ask(session, proxy.url, CHAT, chat(f"during the crash {lane} {n}", 300)))
            if lane == 0 and n == 3:
                fleet.kill(victim)

    async with asyncio.TaskGroup() as group:
        for lane in range(3):
            group.create_task(keep_asking(lane))
    failed = [answer.body for answer in results if answer.status != 200]
    assert failed == [], "a prefill leg that failed is made elsewhere"

    await wait_noticed(session, proxy, lost)
    told = await explain(session, proxy, bodies[held_there[0]])
    assert told.candidate(lost)["usable"] is False
    assert told.candidate(lost)["why"]
    assert told.prefill not in {None, lost}

    await bring_back(session, fleet, proxy, victim)
    for n in held_there:
        told = await explain(session, proxy, bodies[n])
        assert told.candidate(lost)["cached_tokens"] == 0, (
            "the new process has nothing of the old one's cache"
        )

    await a_client_leaves_strangers(session, fleet, victim, logs)

    # And it is right again: what it says it will reuse, it reuses.
    used, found = set(), 0
    for n in range(12):
        body = chat(f"after the crash {n}")
        for _ in range(2):
            told = await explain(session, proxy, body)
            answer = await ask(session, proxy.url, CHAT, body)
            assert told.cached()[answer.prefill] == answer.predicted == answer.reported
        used.add(answer.prefill)
        found += answer.reported > 0
    assert found >= 11, "the first answer of the new process may make kvproxy read its cache once more"
    assert lost in used
    assert [(await ask(session, proxy.url, CHAT, body)).text for body in bodies] == expected


async def test_a_decode_engine_dies_while_streaming(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str
) -> None:
    body = GREEDY | {
        "prompt": prose(100, "streaming"),
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": True,
    }
    whole = [chat(f"unbroken {n}") | {"max_tokens": 400, "ignore_eos": True} for n in range(4)]
    expected_texts = [(await ask(session, plain, CHAT, one)).text for one in whole]
    answers = [await session.post(proxy.url + COMPLETIONS, json=body) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    lost = answers[0].headers["X-Kvproxy-Decode"]
    unary = asyncio.gather(*(ask(session, proxy.url, CHAT, one) for one in whole))

    async def all_decode() -> bool:
        return (await read_metrics(session, proxy.url)).total(
            "kvproxy_in_flight_requests", role="decode"
        ) == 8

    await wait_until(all_decode, 10, "all eight are being decoded")
    fleet.kill(fleet.named(lost))

    async def ends_cleanly(answer: aiohttp.ClientResponse) -> bool:
        try:
            whole: bytes = await answer.read()
        except (aiohttp.ClientPayloadError, ConnectionError):
            return False
        return whole.rstrip().endswith(b"data: [DONE]")

    clean = [await ends_cleanly(answer) for answer in answers]
    assert clean == [answer.headers["X-Kvproxy-Decode"] != lost for answer in answers]

    assert [(answer.status, answer.text) for answer in await unary] == [
        (200, text) for text in expected_texts
    ], "what has not begun to answer is begun again elsewhere"

    for n in range(8):
        again = chat(f"without it {n}")
        expected, got = await ask(session, plain, CHAT, again), await ask(session, proxy.url, CHAT, again)
        assert (got.status, got.text) == (200, expected.text)
        assert got.decode != lost
    await wait_noticed(session, proxy, lost)

    await bring_back(session, fleet, proxy, fleet.named(lost))

    number = itertools.count()

    async def used_again() -> bool:
        answer = await ask(session, proxy.url, CHAT, chat(f"with it again {next(number)}"))
        assert answer.status == 200
        return answer.decode == lost

    await wait_until(used_again, 20, f"{lost} decodes again")

    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, NOTICED_S)


async def test_a_cache_reset_is_learned_with_the_next_request(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess
) -> None:
    body = chat("before the reset")
    holder = (await ask(session, proxy.url, CHAT, body)).prefill
    assert (await explain(session, proxy, body)).cached()[holder]
    async with session.post(f"{fleet[fleet.named(holder)].url}/reset_prefix_cache") as answer:
        assert answer.status == 200
    # An idle engine announces the reset with its next event only: this request makes that event.
    async with session.post(f"{fleet[fleet.named(holder)].url}{CHAT}", json=chat("makes an event")) as answer:
        assert answer.status == 200

    async def forgotten() -> bool:
        return (await explain(session, proxy, body)).cached()[holder] == 0

    await wait_until(forgotten, 5, "the index has forgotten the cleared blocks")
