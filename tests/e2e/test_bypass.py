"""With --bypass TOKENS one leg on a decode engine serves a short prompt, and one that it has cached, and two
serve a long one; the answers are the plain engine's either way.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, Answer, ask
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.fleets import LEASE_S

TOKENS = 100
EVENTS_S = 10
FOLLOWED_S = 30  # a replay of all that other tests have stored there
AT_REST_S = 5


@pytest.fixture(scope="module")
def bypassing(fleet: Fleet, logs: pathlib.Path) -> Iterator[ProxyProcess]:
    """A kvproxy of its own in front of the same engines."""
    [port] = free_ports(1)
    with ProxyProcess(
        port,
        logs / "kvproxy-bypass.log",
        prefill=[spec.address for spec in fleet.of_role("prefill")],
        decode=[spec.address for spec in fleet.of_role("decode")],
        flags=["--decision-headers", "--kv-lease-s", str(LEASE_S), "--bypass", str(TOKENS)],
        admin_key="for-tests",
    ) as running:
        running.wait_status("/ready")
        yield running


def asked(path: str, words: int, about: str, **more: Any) -> dict[str, Any]:
    text = prose(words, f"bypass {path} {about}")
    prompt = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    stream = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
    return {"model": "tiny", "temperature": 0, "max_tokens": 12} | prompt | stream | more


async def computed(session: aiohttp.ClientSession, fleet: Fleet) -> dict[str, float]:
    """The prompt tokens that each engine has computed itself so far."""
    name, label = "vllm:prompt_tokens_by_source_total", {"source": "local_compute"}
    return {
        spec.address: (await read_metrics(session, spec.url)).total(name, **label)
        for spec in fleet.specs.values()
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_answers_are_the_plain_engines_by_one_leg_and_by_two(
    session: aiohttp.ClientSession, fleet: Fleet, bypassing: ProxyProcess, plain: str, path: str, stream: bool
) -> None:
    prefill = {spec.address for spec in fleet.of_role("prefill")}
    decode = {spec.address for spec in fleet.of_role("decode")}

    async def served(body: dict[str, Any], why: str | None) -> Answer:
        """What kvproxy answers, which is what it explained before and what the plain engine says."""
        told = await explain(session, bypassing, body)
        assert told.decision["bypass"] == why
        before = await computed(session, fleet)
        answer = await ask(session, bypassing.url, path, body)
        right = await ask(session, plain, path, body)
        assert (answer.status, answer.text) == (200, right.text)
        assert answer.complete
        assert answer.prompt_tokens == right.prompt_tokens == told.prompt_tokens
        assert answer.predicted == answer.reported
        assert answer.decode in decode
        after = await computed(session, fleet)
        grew = {address for address in prefill | decode if after[address] > before[address]}
        assert grew == {answer.decode if why else answer.prefill}, "one engine computes it"
        assert (answer.prefill == answer.decode) is (why is not None)
        assert why is not None or answer.prefill in prefill
        return answer

    short = asked(path, 40, f"short {stream}", stream=stream)

    async def followed() -> bool:
        decision = (await explain(session, bypassing, short)).decision
        candidates = decision["prefill"]["candidates"] + decision["decode"]["candidates"]
        return all(each["index"] == "exact" for each in candidates)

    await wait_until(followed, FOLLOWED_S, "the engines' earlier events are known")
    assert (await served(short, "short")).predicted == 0
    long = asked(path, 200, f"long {stream}", stream=stream)
    first = await served(long, None)
    assert first.prompt_tokens > TOKENS

    async def known() -> bool:
        cached = (await explain(session, bypassing, long)).decision["decode"]["candidates"]
        return any(c["instance"] == first.decode and c["cached_tokens"] for c in cached)

    await wait_until(known, EVENTS_S, "the blocks that the decode engine fetched are known")
    again = await served(long, "cached")
    assert again.decode == first.decode
    assert again.reported > first.prompt_tokens - TOKENS
    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], bypassing.url, AT_REST_S)


async def test_several_answers_and_adapters_are_served_by_one_leg(
    session: aiohttp.ClientSession, fleet: Fleet, bypassing: ProxyProcess, plain: str
) -> None:
    for more in ({"n": 3, "temperature": 1.0, "seed": 7}, {"model": "alpha"}):
        body = asked(COMPLETIONS, 40, str(more), **more)
        answer, right = (
            await ask(session, bypassing.url, COMPLETIONS, body),
            await ask(session, plain, COMPLETIONS, body),
        )
        assert (answer.status, answer.choices) == (200, right.choices)
        assert answer.prefill == answer.decode != ""
    page = await read_metrics(session, bypassing.url)
    assert page.total("kvproxy_bypassed_requests_total", reason="short") >= 2
    assert page.total("kvproxy_retries_total") == 0
    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], bypassing.url, AT_REST_S)


async def test_a_client_that_leaves_ends_the_leg(
    session: aiohttp.ClientSession, fleet: Fleet, bypassing: ProxyProcess
) -> None:
    body = asked(COMPLETIONS, 40, "leaves", stream=True, max_tokens=1500, ignore_eos=True)
    async with session.post(bypassing.url + COMPLETIONS, json=body) as answer:
        assert answer.headers["X-Kvproxy-Prefill"] == answer.headers["X-Kvproxy-Decode"]
        await answer.content.readany()
        answer.close()
    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], bypassing.url, AT_REST_S)
    ended = await read_metrics(session, bypassing.url)
    assert ended.total("kvproxy_requests_total", outcome="client_left") == 1
