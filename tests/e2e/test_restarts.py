"""An engine dies while serving and comes back on its port: noticed, forgotten, learned again."""

import asyncio
import contextlib
import dataclasses
import itertools
import pathlib
import signal
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, Answer, ask, read_answer
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.fleets import LEASE_S, START_S

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}
NOTICED_S = 10
BACK_S = 30
CLIENTS = 6
THINKING_S = 0.3  # leaves starting engines some of the CPU
HOLDS = "kvproxy_holds_total"
EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"
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
    """A prefill engine that no decode engine has met: what a client leaves behind there is given back all the
    same."""
    [port] = free_ports(1)
    decode = [spec.address for spec in fleet.of_role("decode")]
    with ProxyProcess(
        port, logs / "strangers.log", prefill=[fleet[name].address], decode=decode, flags=["--bypass", "off"]
    ) as proxy:
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


async def streams_whose_blocks_die(
    session: aiohttp.ClientSession,
    fleet: Fleet,
    proxy: ProxyProcess,
    victim: str,
    bodies: list[dict[str, Any]],
) -> list[Answer]:
    """Kill a prefill engine when it has prefilled these, which it has cached, and nobody has fetched them
    yet."""
    before = await read_metrics(session, proxy.url)

    async def held() -> bool:
        page = await read_metrics(session, fleet[victim].url)
        at_work = page.total("vllm:num_requests_running") + page.total("vllm:num_requests_waiting")
        told = (await read_metrics(session, proxy.url)).total("kvproxy_prompt_tokens_total")
        prefilled = told > before.total("kvproxy_prompt_tokens_total")
        return prefilled and not at_work and page.total("vllm:kv_cache_usage_perc") > 0

    decode = [spec.name for spec in fleet.of_role("decode")]
    async with asyncio.TaskGroup() as group:
        try:
            for name in decode:
                fleet.send(name, signal.SIGSTOP)
            asked = [
                group.create_task(ask(session, proxy.url, CHAT, body | {"stream": True})) for body in bodies
            ]
            await wait_until(held, 10, f"{victim} holds what nobody fetches")
            fleet.kill(victim)
        finally:
            for name in decode:
                fleet.send(name, signal.SIGCONT)
    after = await read_metrics(session, proxy.url)
    failed = [
        page.total("kvproxy_retries_total", phase="decode", reason="status") for page in (before, after)
    ]
    assert failed[1] > failed[0], "decode engines told that they could not fetch, and were asked again"
    return [task.result() for task in asked]


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
                streams.extend(
                    await streams_whose_blocks_die(
                        session, fleet, proxy, victim, [bodies[n] for n in held_there]
                    )
                )

    streams: list[Answer] = []
    async with asyncio.TaskGroup() as group:
        for lane in range(3):
            group.create_task(keep_asking(lane))
    assert [(answer.status, answer.text, answer.complete) for answer in streams] == [
        (200, expected[n], True) for n in held_there
    ], "a stream whose blocks died is served from elsewhere, and nobody sees it"
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


@dataclasses.dataclass(frozen=True)
class Got:
    """One answer under load; `text` is None if its stream was cut."""

    prefill: str
    decode: str
    status: int
    text: str | None
    right: str


async def take(session: aiohttp.ClientSession, url: str, body: dict[str, Any], right: str) -> Got:
    async with session.post(url + COMPLETIONS, json=body) as response:
        prefill, decode = (response.headers.get(f"X-Kvproxy-{role}", "") for role in ("Prefill", "Decode"))
        try:
            raw = await response.read()
        except aiohttp.ClientPayloadError:
            return Got(prefill, decode, response.status, None, right)
    text = read_answer(response.status, response.headers, raw).text
    return Got(prefill, decode, response.status, text, right)


@pytest.mark.timeout(3 * START_S)  # two real engines start while others serve
async def test_both_kinds_of_engine_die_under_load_and_all_recovers(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str
) -> None:
    bodies = [
        GREEDY
        | {
            "prompt": prose(120, f"under load {n}"),
            "max_tokens": 60,
            "ignore_eos": True,
            "stream": n % 2 == 1,
        }
        for n in range(16)
    ]
    right = [(await ask(session, plain, COMPLETIONS, body)).text for body in bodies]
    dying = [fleet.of_role("prefill")[0], fleet.of_role("decode")[0]]
    others = [spec for spec in fleet.specs.values() if spec not in dying]
    before = await read_metrics(session, proxy.url)
    expired = [(await read_metrics(session, spec.url)).total(EXPIRED) for spec in others]
    got: list[Got] = []
    enough = asyncio.Event()

    async def client(number: int) -> None:
        for n in itertools.count(number):
            if enough.is_set():
                return
            got.append(await take(session, proxy.url, bodies[n % len(bodies)], right[n % len(bodies)]))
            await asyncio.sleep(THINKING_S)

    async def answers(more: int) -> None:
        goal = len(got) + more

        async def come() -> bool:
            return len(got) >= goal

        await wait_until(come, 60, f"{more} more answers")

    fresh = itertools.count()
    used: set[str] = set()

    async def used_again() -> bool:
        """Ask what nobody has cached: what is cached elsewhere goes there."""
        asked = [
            ask(
                session, proxy.url, COMPLETIONS, GREEDY | {"prompt": prose(40, f"fresh {n}"), "max_tokens": 4}
            )
            for n in itertools.islice(fresh, 4)
        ]
        for answer in await asyncio.gather(*asked):
            assert answer.status == 200
            used.update({answer.prefill, answer.decode})
        return {spec.address for spec in dying} <= used

    async def recover() -> None:
        try:
            await answers(CLIENTS)
            fleet.kill(dying[0].name)
            await answers(CLIENTS // 2)
            fleet.kill(dying[1].name)
            await answers(CLIENTS)
            for spec in dying:
                fleet.restart(spec.name)
            await asyncio.to_thread(fleet.wait_healthy, [spec.name for spec in dying], START_S)
            for spec in dying:
                await wait_back(session, proxy, spec.address, spec.role)
            await wait_until(used_again, 60, "both serve again")
        finally:
            enough.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(recover())
        for number in range(CLIENTS):
            group.create_task(client(number))

    cut = [answer for answer in got if answer.text is None]
    assert {answer.decode for answer in cut} <= {dying[1].address}, (
        "only its own engine's death cuts a stream"
    )
    wrong = [
        answer
        for answer in got
        if answer.text is not None and (answer.status, answer.text) != (200, answer.right)
    ]
    assert wrong == []

    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, LEASE_S + NOTICED_S)
    after = await read_metrics(session, proxy.url)
    stranded = after.total(HOLDS, end="stranded") - before.total(HOLDS, end="stranded")
    assert stranded <= CLIENTS, "no more than the dead prefill engine can have held"
    assert [(await read_metrics(session, spec.url)).total(EXPIRED) for spec in others] == expired
    for spec in dying:
        await wait_back(session, proxy, spec.address, spec.role)


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
