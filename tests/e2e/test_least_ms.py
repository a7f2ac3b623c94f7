"""`least_ms` on engines that it has to get to know: it gives one leg where that is cheaper, answers are the
plain engine's, and it tells how well it predicts.
"""

import asyncio
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import COMPLETIONS, Answer, ask
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.fleets import LEASE_S

REQUESTS = 48
AT_ONCE = 2
EVENTS_S = 10
AT_REST_S = 5
LEARNED, DECISIONS = "least_ms.json", "least_ms.jsonl"
"""What came of it, beside the logs: what `/status` told at the end, and each decision with its prediction."""


@pytest.fixture(scope="module")
def learning(fleet: Fleet, logs: pathlib.Path) -> Iterator[ProxyProcess]:
    """A kvproxy of its own in front of the same engines, which knows nothing of their speed."""
    [port] = free_ports(1)
    with ProxyProcess(
        port,
        logs / "kvproxy-least-ms.log",
        prefill=[spec.address for spec in fleet.of_role("prefill")],
        decode=[spec.address for spec in fleet.of_role("decode")],
        flags=[
            *("--policy", "least_ms", "--decision-log", str(logs / DECISIONS)),
            *("--decision-headers", "--kv-lease-s", str(LEASE_S)),
        ],
        admin_key="for-tests",
    ) as running:
        running.wait_status("/ready")
        yield running


def asked(words: int, about: str, *, stream: bool = False) -> dict[str, Any]:
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    prompt = prose(words, f"least_ms {about}")
    return {"model": "tiny", "temperature": 0, "max_tokens": 12, "prompt": prompt} | streaming


async def test_it_learns_the_engines_and_gives_one_leg_where_that_is_cheaper(
    session: aiohttp.ClientSession, fleet: Fleet, learning: ProxyProcess, plain: str, logs: pathlib.Path
) -> None:
    decode = {spec.address for spec in fleet.of_role("decode")}
    at_once = asyncio.Semaphore(AT_ONCE)

    async def served(body: dict[str, Any], right: Answer) -> Answer:
        async with at_once:
            answer = await ask(session, learning.url, COMPLETIONS, body)
        assert (answer.status, answer.text, answer.complete) == (200, right.text, True)
        assert answer.decode in decode
        return answer

    async def right(body: dict[str, Any]) -> Answer:
        return await ask(session, plain, COMPLETIONS, body)

    bodies = [asked(10 + 29 * (n % 16), f"{n % 24}", stream=n % 2 == 0) for n in range(REQUESTS)]
    expected = await asyncio.gather(*map(right, bodies))  # first, so that no engine is slow for it later
    answers = await asyncio.gather(*map(served, bodies, expected))

    short = asked(8, "short")
    told = await explain(session, learning, short)
    assert told.decision["bypass"] == "policy", told.decision
    answer = await served(short, await right(short))
    assert answer.prefill == answer.decode, "its prompt was computed where it was answered"

    long = asked(400, "long")
    first = await served(long, await right(long))

    async def known() -> bool:
        cached = (await explain(session, learning, long)).decision["decode"]["candidates"]
        return any(c["instance"] == first.decode and c["cached_tokens"] for c in cached)

    await wait_until(known, EVENTS_S, "the blocks of the decode engine are known")
    again = await served(long, await right(long))
    assert again.prefill == again.decode == first.decode, "all but its end is cached there"
    assert again.predicted == again.reported > 0

    page = await read_metrics(session, learning.url)
    one_leg = sum(each.prefill == each.decode for each in (*answers, answer, first, again))
    assert page.total("kvproxy_bypassed_requests_total", reason="policy") == one_leg
    async with session.get(f"{learning.url}/status") as status:
        learned = (await status.json())["latency"]
    told_ms = {"one_leg": one_leg, "of": len(answers) + 3, "latency": learned}
    (logs / LEARNED).write_text(json.dumps(told_ms, indent=1))
    fitted = {(each["kind"], each["role"]): each for each in learned["fitted"]}
    prefill = fitted["prefill", "decode"]
    assert prefill["observations"] > 0
    assert prefill["error_p50"] > 0, "the median error of its predictions"
    assert page.total("kvproxy_ttft_prediction_error_seconds_count") == REQUESTS / 2, "of each stream"
    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], learning.url, AT_REST_S)
