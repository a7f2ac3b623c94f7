"""kvproxy is killed in front of engines that go on: the next one says at once what they will reuse, and they
do."""

import os
import pathlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, ask
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.fleets import LEASE_S

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 4}
SEVERAL = 4


def chat(number: int) -> dict[str, Any]:
    return GREEDY | {"messages": [{"role": "user", "content": prose(150, f"before the kill {number}")}]}


@contextmanager
def kept(fleet: Fleet, state: pathlib.Path, log: pathlib.Path) -> Iterator[ProxyProcess]:
    [port] = free_ports(1)
    flags = ["--decision-headers", "--kv-lease-s", str(LEASE_S), "--state-dir", str(state)]
    flags += ["--policy", "cache_affinity"]
    with ProxyProcess(
        port,
        log,
        prefill=[spec.address for spec in fleet.of_role("prefill")],
        decode=[spec.address for spec in fleet.of_role("decode")],
        flags=[*flags, "--state-interval", "0.2"],
        admin_key="for-tests",
    ) as proxy:
        proxy.wait_status("/ready")
        yield proxy


async def ranks(session: aiohttp.ClientSession, proxy: ProxyProcess) -> list[Any]:
    async with session.get(f"{proxy.url}/status") as answer:
        return [each["ranks"][0] for each in (await answer.json())["instances"]]


async def test_what_was_known_before_the_kill_is_known_after_it(
    session: aiohttp.ClientSession, fleet: Fleet, logs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    state = tmp_path / "state"
    with kept(fleet, state, logs / "warm-1.log") as proxy:

        async def exact() -> bool:
            return all(r["index"] == "exact" for r in await ranks(session, proxy))

        await wait_until(exact, 30, "all indexes are exact")
        bodies = [chat(number) for number in range(SEVERAL)]
        homes = [(await ask(session, proxy.url, CHAT, body)).prefill for body in bodies]

        async def written() -> bool:
            found = await ranks(session, proxy)
            return all(r["snapshot"]["blocks"] >= r["blocks"] for r in found)

        await wait_until(written, 30, "all that is known is on disk")
        before = [r["blocks"] for r in await ranks(session, proxy)]
        os.kill(proxy.pid, signal.SIGKILL)
        proxy.wait(10)
    with kept(fleet, state, logs / "warm-2.log") as proxy:
        await wait_until(exact, 30, "all indexes are exact again")
        found = await ranks(session, proxy)
        assert [r["blocks"] for r in found] == before
        assert [r["snapshot"]["restored"] for r in found if r["blocks"]] == ["restored"] * sum(
            count > 0 for count in before
        )
        for body, home in zip(bodies, homes, strict=True):
            told = await explain(session, proxy, body)
            assert told.prefill == home
            answer = await ask(session, proxy.url, CHAT, body)
            assert told.cached()[answer.prefill] == answer.reported
            assert answer.reported
