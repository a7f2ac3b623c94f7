"""A request that an engine refuses is refused through kvproxy with the engine's words, and holds nothing."""

from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.words import prose

GIVEN_BACK_S = 6  # a release between engines that never met is repeated after their handshake
MESSAGES = [{"role": "user", "content": prose(80, "refused")}]

ENGINES_WORDS: dict[str, dict[str, Any]] = {
    "temperature below zero": {"temperature": -1},
    "temperature of a wrong type": {"temperature": "hot"},
    "top_p above one": {"top_p": 1.5},
    "unknown role": {"messages": [{"role": "nobody", "content": "x"}], "add_generation_prompt": "maybe"},
    "stop of a wrong type": {"stop": {"a": 1}},
    "negative top_k": {"top_k": -7},
    "messages missing": {"messages": None},
    "messages of a wrong type": {"messages": "hello"},
    "too long": {"messages": [{"role": "user", "content": prose(4000, "long")}]},
    "broken schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "no"}}
    },
    "too many logprobs": {"logprobs": True, "top_logprobs": 10_000},
}
"""Passed through: status and body are the engine's."""

OUR_WORDS: dict[str, dict[str, Any]] = {
    "max_tokens zero": {"max_tokens": 0},
    "max_tokens below zero": {"max_tokens": -3},
    "max_tokens of a wrong type": {"max_tokens": "many"},
    "max_tokens beyond the model": {"max_tokens": 100_000},
    "min_tokens above max_tokens": {"min_tokens": 10, "max_tokens": 2},
    "n of a wrong type": {"n": "x"},
    "n zero": {"n": 0},
    "stream_options without stream": {"stream_options": {"include_usage": True}},
    "stream of a wrong type": {"stream": "perhaps"},
}
"""Fields that a prefill leg changes are checked before it: the status is the engine's, the words may be
ours."""


@pytest.fixture(autouse=True)
async def nothing_stays(session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess) -> Any:
    before = await read_metrics(session, proxy.url)
    yield

    await wait_quiet(session, [spec.url for spec in fleet.specs.values()], proxy.url, GIVEN_BACK_S)
    after = await read_metrics(session, proxy.url)
    assert after.total("kvproxy_instance_up") == before.total("kvproxy_instance_up"), (
        "a bad request ejects nobody"
    )


@pytest.mark.parametrize("what", ENGINES_WORDS)
async def test_the_engines_own_refusal_passes(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str, what: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4} | ENGINES_WORDS[what]
    expected = await ask(session, plain, CHAT, body)
    got = await ask(session, proxy.url, CHAT, body)
    assert (got.status, got.json) == (expected.status, expected.json)


@pytest.mark.parametrize("what", OUR_WORDS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_prefill_would_have_hidden_is_refused_first(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str, what: str, path: str
) -> None:
    prompt: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": prose(80, "refused")}
    body = {"model": "tiny"} | prompt | OUR_WORDS[what]
    expected = await ask(session, plain, path, body)
    got = await ask(session, proxy.url, path, body)
    assert got.status == expected.status, (got.body, expected.body)
    if expected.status != 200:
        assert got.json["error"].keys() == expected.json["error"].keys()
        assert got.json["error"]["code"] == expected.json["error"]["code"]


async def test_several_answers_to_one_prompt(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 1, "seed": 5, "n": 3}
    expected = await ask(session, plain, CHAT, body)
    got = await ask(session, proxy.url, CHAT, body)
    assert len(got.choices) == 3
    assert got.choices == expected.choices
    streamed = await ask(session, proxy.url, CHAT, body | {"stream": True})
    assert streamed.choices == expected.choices


async def test_a_list_of_too_many_prompts_is_refused_clearly(
    session: aiohttp.ClientSession, proxy: ProxyProcess
) -> None:
    for prompt in (["one"] * 129, [[1, 2]] * 129):
        got = await ask(session, proxy.url, COMPLETIONS, {"model": "tiny", "prompt": prompt, "max_tokens": 2})
        assert got.status == 400
        assert got.json["error"]["param"] == "prompt"
        assert "128" in got.json["error"]["message"]


async def test_a_list_of_one_prompt_is_served(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str
) -> None:
    for prompt in ([prose(70, "one of one")], [list(range(300, 380))], list(range(300, 380))):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        expected, got = (
            await ask(session, plain, COMPLETIONS, body),
            await ask(session, proxy.url, COMPLETIONS, body),
        )
        assert (got.status, got.text) == (expected.status, expected.text)


async def test_an_unknown_model_is_not_found(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    got = await ask(session, proxy.url, CHAT, {"model": "no-such-model", "messages": MESSAGES})
    assert got.status == 404
    assert got.json["error"]["code"] == 404


@pytest.mark.parametrize(
    "dangerous",
    [
        {"kv_transfer_params": {"do_remote_prefill": True}},
        {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}},
        {"kv_transfer_params": {"prompt_token_ids": [1, 2, 3]}},
        {"vllm_xargs": {"kv_cache_report_mode": "full"}},
        {"request_id": "twice"},
    ],
    ids="-".join,
)
async def test_what_could_harm_an_engine_is_removed(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str, dangerous: dict[str, Any]
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    expected = await ask(session, plain, CHAT, body)
    for _ in range(2):
        got = await ask(session, proxy.url, CHAT, body | dangerous)
        assert (got.status, got.text) == (200, expected.text)
        assert got.json.get("kv_transfer_params") is None


async def test_headers_of_engine_and_client(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    got = await ask(session, proxy.url, CHAT, body, {"X-Request-Id": "mine-1", "X-data-parallel-rank": "7"})
    assert got.status == 200  # rank 7 would have been refused
    assert got.headers.getall("X-Request-Id") == ["mine-1"]  # type: ignore[attr-defined]  # a multidict
