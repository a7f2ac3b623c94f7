"""Instances leave and join at run time, on real engines."""

from typing import Any

import aiohttp

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, ask
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose

KEY = {"X-API-Key": "for-tests"}


def chat(seed: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "temperature": 0,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": prose(100, seed)}],
    }


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    async with session.post(url, json=body, headers=KEY) as answer:
        return answer.status


async def status(session: aiohttp.ClientSession, proxy: ProxyProcess) -> dict[str, Any]:
    async with session.get(f"{proxy.url}/status") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_an_instance_leaves_and_joins(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess
) -> None:
    stays, leaves = (spec.address for spec in fleet.of_role("prefill"))
    body = {"type": "prefill", "instance": leaves}
    assert await post(session, f"{proxy.url}/instances/remove", body) == 200
    try:
        assert (await status(session, proxy))["prefill_nodes"] == [stays]
        for n in range(4):
            answer = await ask(session, proxy.url, CHAT, chat(f"one is gone {n}"))
            assert (answer.status, answer.prefill) == (200, stays)
        assert await post(session, f"{proxy.url}/instances/remove", body) == 404
    finally:
        assert await post(session, f"{proxy.url}/instances/add", body) == 200
    assert await post(session, f"{proxy.url}/instances/add", body) == 409
    found = await status(session, proxy)
    assert found["prefill_node_count"] == 2
    assert sorted(found["prefill_nodes"]) == sorted([stays, leaves])

    async def exact() -> bool:
        terms = (await explain(session, proxy, chat("is it known"))).candidate(leaves)
        return bool(terms["usable"] and terms["index"] == "exact")

    await wait_until(exact, 15, "the index of the new instance is exact")
    # Its cache filled while nobody listened; the replay tells.
    again = chat("known from the replay")
    assert (await ask(session, fleet[fleet.named(leaves)].url, CHAT, again)).status == 200

    async def known() -> bool:
        return bool((await explain(session, proxy, again)).cached()[leaves])

    await wait_until(known, 5, "what it cached is known")
    answer = await ask(session, proxy.url, CHAT, again)
    assert answer.prefill == leaves
    assert answer.predicted == answer.reported > 0


async def test_an_address_without_an_engine_is_not_added(
    session: aiohttp.ClientSession, proxy: ProxyProcess
) -> None:
    own = proxy.url.removeprefix("http://")
    for address in ("127.0.0.1:9", own + "0", "nonsense"):
        assert (
            await post(session, f"{proxy.url}/instances/add", {"type": "decode", "instance": address}) == 400
        )
    assert (await status(session, proxy))["decode_node_count"] == 2


async def test_the_key_is_asked_for(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    for path in ("/instances/add", "/instances/remove", "/explain"):
        async with session.post(proxy.url + path, json={}) as answer:
            assert answer.status == 401
        async with session.post(proxy.url + path, json={}, headers={"X-API-Key": "wrong"}) as answer:
            assert answer.status == 403


async def test_status_tells_what_runs(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess
) -> None:
    found = await status(session, proxy)
    assert (found["prefill_node_count"], found["decode_node_count"]) == (2, 2)
    assert sorted(found["decode_nodes"]) == sorted(spec.address for spec in fleet.of_role("decode"))
    assert len(found["instances"]) == 4
