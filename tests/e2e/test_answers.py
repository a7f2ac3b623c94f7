"""Conversations through kvproxy against the plain engine: same words, no token computed twice, right
predictions."""

import dataclasses
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, Answer, ask
from scripts.workshop.live.metrics import Page, read_metrics
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.words import prose

PROMPTS = 20
TURNS = 3
KINDS = (CHAT, COMPLETIONS)
GIVEN_BACK_S = 6  # a release between engines that never met is repeated after their handshake


@dataclasses.dataclass(frozen=True)
class Asked:
    """One turn of one conversation, as the plain engine and kvproxy answered it."""

    path: str
    prompt: int
    turn: int
    stream: bool
    expected: Answer
    got: Answer

    def __str__(self) -> str:
        way = "streamed" if self.stream else "whole"
        return f"{self.path} prompt {self.prompt} turn {self.turn} {way}"


@dataclasses.dataclass(frozen=True)
class Transcript:
    """All of them, and the metrics before and after."""

    asked: list[Asked]
    before: dict[str, Page]
    after: dict[str, Page]

    def grew(self, url: str, name: str, **labels: str) -> float:
        return self.after[url].total(name, **labels) - self.before[url].total(name, **labels)


def first_body(path: str, prompt: int) -> dict[str, Any]:
    greedy = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    opening = prose(20 + 12 * prompt, f"{path} {prompt}")
    if path == COMPLETIONS:
        return greedy | {"prompt": opening}
    system = {"role": "system", "content": prose(30, prompt)}
    return greedy | {"messages": [system, {"role": "user", "content": opening}]}


def next_body(body: dict[str, Any], answer: str, turn: int) -> dict[str, Any]:
    more = prose(15 + 10 * turn, turn)
    if "prompt" in body:
        return body | {"prompt": f"{body['prompt']}{answer} {more}"}
    said = [{"role": "assistant", "content": answer}, {"role": "user", "content": more}]
    return body | {"messages": body["messages"] + said}


async def converse(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str, path: str, prompt: int
) -> list[Asked]:
    asked = []
    body = first_body(path, prompt)
    for turn in range(TURNS):
        expected = await ask(session, plain, path, body)
        assert expected.status == 200, expected.body
        for stream in (True, False) if prompt % 2 else (False, True):
            streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            got = await ask(session, proxy.url, path, body | streaming)
            asked.append(Asked(path, prompt, turn, stream, expected, got))
        body = next_body(body, expected.text, turn)
    return asked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transcript(fleet: Fleet, proxy: ProxyProcess, plain: str) -> Transcript:
    urls = [proxy.url, *(spec.url for spec in fleet.specs.values())]
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        before = {url: await read_metrics(session, url) for url in urls}
        asked = [
            turn
            for path in KINDS
            for prompt in range(PROMPTS)
            for turn in await converse(session, proxy, plain, path, prompt)
        ]
        after = {url: await read_metrics(session, url) for url in urls}
    return Transcript(asked, before, after)


def test_every_answer_comes_whole(transcript: Transcript) -> None:
    assert len(transcript.asked) == len(KINDS) * PROMPTS * TURNS * 2
    assert [
        f"{a}: {a.got.body!r}" for a in transcript.asked if a.got.status != 200 or not a.got.complete
    ] == []


def test_greedy_answers_equal_the_plain_engines(transcript: Transcript) -> None:
    different = [
        f"{a}: {a.got.text!r} is not {a.expected.text!r}"
        for a in transcript.asked
        if a.got.text != a.expected.text
    ]
    assert different == []


def test_usage_equals_the_plain_engines(transcript: Transcript) -> None:
    def counts(answer: Answer) -> tuple[int, int]:
        return answer.usage["prompt_tokens"], answer.usage["completion_tokens"]

    assert [str(a) for a in transcript.asked if counts(a.got) != counts(a.expected)] == []


def test_decode_engines_compute_no_prompt_token(transcript: Transcript, fleet: Fleet) -> None:
    shortest = min(a.got.prompt_tokens for a in transcript.asked)
    assert shortest > 0
    longer_than_a_block = [a for a in transcript.asked if a.got.prompt_tokens > BLOCK_TOKENS]
    computed = pulled = 0.0
    for spec in fleet.of_role("decode"):
        source = "vllm:prompt_tokens_by_source_total"
        computed += transcript.grew(spec.url, source, source="local_compute")
        pulled += transcript.grew(spec.url, source, source="external_kv_transfer")
    short = sum(a.got.prompt_tokens for a in transcript.asked) - sum(
        a.got.prompt_tokens for a in longer_than_a_block
    )
    assert computed <= short
    assert pulled > 0


def test_a_follow_up_goes_where_its_prefix_is(transcript: Transcript) -> None:
    holders: dict[tuple[str, int], str] = {}
    strayed = []
    for a in transcript.asked:
        holder = holders.get((a.path, a.prompt))
        if holder and a.got.prefill != holder:
            strayed.append(f"{a}: {a.got.prefill}, not {holder}")
        if a.got.prompt_tokens > BLOCK_TOKENS:  # a shorter prompt leaves no block behind
            holders.setdefault((a.path, a.prompt), a.got.prefill)
    assert len(holders) == len(KINDS) * PROMPTS
    assert strayed == []


def test_conversations_use_all_instances(transcript: Transcript, fleet: Fleet) -> None:
    assert {a.got.prefill for a in transcript.asked} == {s.address for s in fleet.of_role("prefill")}
    assert {a.got.decode for a in transcript.asked} == {s.address for s in fleet.of_role("decode")}


def test_predicted_cached_tokens_equal_the_reported(transcript: Transcript) -> None:
    wrong = [
        f"{a}: predicted {a.got.predicted}, reported {a.got.reported} of {a.got.prompt_tokens}"
        for a in transcript.asked
        if a.got.predicted != a.got.reported
    ]
    assert wrong == []


def test_metrics_tell_the_same(transcript: Transcript, fleet: Fleet, proxy: ProxyProcess) -> None:
    for spec in fleet.of_role("prefill"):
        here = [a for a in transcript.asked if a.got.prefill == spec.address]
        expected = {
            "kvproxy_prompt_tokens_total": sum(a.got.prompt_tokens for a in here),
            "kvproxy_predicted_cached_tokens_total": sum(a.got.reported for a in here),
            "kvproxy_reported_cached_tokens_total": sum(a.got.reported for a in here),
        }
        found = {name: transcript.grew(proxy.url, name, instance=spec.address) for name in expected}
        assert found == expected
    assert transcript.grew(proxy.url, "kvproxy_holds_total", end="pulled") == len(transcript.asked)
    assert transcript.grew(proxy.url, "kvproxy_holds_total", end="stranded") == 0
    assert transcript.grew(proxy.url, "kvproxy_kv_event_gaps_total") == 0


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], [None], ["a", 1], [[1], "a"], ["a", ""], [[1], []], [[1], ["x"]], ["a", prose(4000, "long")]],
)
async def test_a_list_that_an_engine_refuses_is_refused_in_its_words(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, plain: str, prompt: list[Any]
) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4}
    expected = await ask(session, plain, COMPLETIONS, body)
    got = await ask(session, proxy.url, COMPLETIONS, body)
    assert (got.status, got.json) == (expected.status, expected.json)
    assert got.status == 400
    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, GIVEN_BACK_S)
