"""kvproxy starts only in front of the right engines and ends without cutting anyone off."""

import pathlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import COMPLETIONS, ask
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose


class Starter(Protocol):
    def __call__(self, **settings: Any) -> ProxyProcess: ...


@pytest.fixture
def start(fleet: Fleet, logs: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    """Start a kvproxy of the test's own over the first pair of the fleet, unless told otherwise."""
    with ExitStack() as running:

        def one(**settings: Any) -> ProxyProcess:
            [port] = free_ports(1)
            pair = {"prefill": [fleet["prefill-0"].address], "decode": [fleet["decode-0"].address]}
            log = logs / f"{request.node.name}-{port}.log"
            return running.enter_context(ProxyProcess(port, log, **(pair | settings)))

        yield one


async def ready(session: aiohttp.ClientSession, proxy: ProxyProcess) -> int | None:
    try:
        async with session.get(f"{proxy.url}/ready") as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return None


def test_another_model_ends_the_start(start: Starter) -> None:
    proxy = start(model="another")
    assert proxy.wait(30) == 2
    said = proxy.tail()
    assert "another" in said
    assert "tiny" in said


async def test_an_engine_that_is_down_is_waited_for(session: aiohttp.ClientSession, start: Starter) -> None:
    [nobody] = free_ports(1)
    proxy = start(decode=[f"127.0.0.1:{nobody}"], flags=["--queue-timeout", "0.5"])
    proxy.wait_status("/health")
    assert await ready(session, proxy) == 503
    refused = await ask(session, proxy.url, COMPLETIONS, {"model": "tiny", "prompt": "x"})
    assert refused.status == 503
    assert refused.headers["Retry-After"]
    assert refused.json["error"]["code"] == 503
    proxy.terminate()
    assert proxy.wait(15) == 0


async def test_terminated_while_streaming(session: aiohttp.ClientSession, start: Starter, plain: str) -> None:
    proxy = start()
    proxy.wait_status("/ready")
    body = {
        "model": "tiny",
        "prompt": prose(50, "ending"),
        "max_tokens": 300,
        "temperature": 0,
        "ignore_eos": True,
    }
    expected = await ask(session, plain, COMPLETIONS, body)
    async with session.post(proxy.url + COMPLETIONS, json=body | {"stream": True}) as answer:
        assert answer.status == 200
        beginning = await answer.content.readline()
        proxy.terminate()

        async def not_ready() -> bool:
            return await ready(session, proxy) != 200

        await wait_until(not_ready, 5, "no new requests are taken")
        rest = await answer.read()
    events = (beginning + rest).split(b"\n\n")
    assert events[-2] == b"data: [DONE]"
    assert len(events) > 100
    assert expected.usage["completion_tokens"] == 300
    assert proxy.wait(15) == 0


async def test_one_engine_that_does_both(
    session: aiohttp.ClientSession, start: Starter, fleet: Fleet, plain: str
) -> None:
    proxy = start(prefill=[], decode=[], both=[fleet["plain-0"].address], flags=["--decision-headers"])
    proxy.wait_status("/ready")
    body = {"model": "tiny", "prompt": prose(80, "alone"), "max_tokens": 8, "temperature": 0}
    expected = await ask(session, plain, COMPLETIONS, body)
    got = await ask(session, proxy.url, COMPLETIONS, body)
    assert (got.status, got.text) == (200, expected.text)


async def test_a_late_joiner_learns_from_the_replay(
    session: aiohttp.ClientSession, start: Starter, fleet: Fleet
) -> None:
    body = {"model": "tiny", "prompt": prose(150, "long ago"), "max_tokens": 4}
    assert (await ask(session, fleet["prefill-0"].url, COMPLETIONS, body)).status == 200
    proxy = start(flags=["--decision-headers"])
    proxy.wait_status("/ready")

    async def predicted() -> bool:
        answer = await ask(session, proxy.url, COMPLETIONS, body)
        assert answer.predicted in {None, answer.reported}
        return answer.predicted == answer.reported > 0

    await wait_until(predicted, 10, "the replay has been read")


@pytest.mark.parametrize("policy", ["round_robin", "least_load"])
async def test_other_policies(
    session: aiohttp.ClientSession, start: Starter, fleet: Fleet, policy: str
) -> None:
    addresses = [spec.address for spec in fleet.of_role("prefill")]
    proxy = start(prefill=addresses, flags=["--decision-headers", "--policy", policy])
    proxy.wait_status("/ready")
    body = {"model": "tiny", "prompt": prose(40, policy), "max_tokens": 2}

    async def both_used() -> bool:
        used = {(await ask(session, proxy.url, COMPLETIONS, body)).prefill for _ in range(4)}
        return used == set(addresses)

    await wait_until(both_used, 20, "both prefill engines are used")
