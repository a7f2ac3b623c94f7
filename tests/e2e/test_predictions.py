"""What /explain says about a request is what the engine then reports, for every kind of request."""

import random
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.explaining import explain
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 4}


def chat(words: int, seed: str, **fields: Any) -> dict[str, Any]:
    return GREEDY | {"messages": [{"role": "user", "content": prose(words, seed)}]} | fields


async def check(session: aiohttp.ClientSession, proxy: ProxyProcess, path: str, body: dict[str, Any]) -> int:
    """Ask, compare all that was said about cached tokens, and return them."""
    told = await explain(session, proxy, body)
    answer = await ask(session, proxy.url, path, body)
    assert answer.status == 200, answer.body
    assert told.prompt_tokens == answer.prompt_tokens
    assert told.cached()[answer.prefill] == answer.predicted == answer.reported
    return answer.reported


def full_blocks(prompt_tokens: int) -> int:
    return (prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS


async def test_a_second_ask_finds_all_full_blocks_but_the_last_token(
    session: aiohttp.ClientSession, proxy: ProxyProcess
) -> None:
    body = chat(100, "again")
    assert await check(session, proxy, CHAT, body) == 0
    told = await explain(session, proxy, body)
    assert told.prompt_tokens
    assert await check(session, proxy, CHAT, body) == full_blocks(told.prompt_tokens)


@pytest.mark.parametrize("tokens", [31, 32, 33, 64, 65, 96])
async def test_token_ids_around_block_edges(
    session: aiohttp.ClientSession, proxy: ProxyProcess, tokens: int
) -> None:
    body = GREEDY | {"prompt": [1000 + tokens * 7 + n for n in range(tokens)]}
    assert await check(session, proxy, COMPLETIONS, body) == 0
    assert await check(session, proxy, COMPLETIONS, body) == full_blocks(tokens)
    assert await check(session, proxy, COMPLETIONS, body) == full_blocks(tokens)


async def test_a_cache_salt_keeps_tenants_apart(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    for salt in ({}, {"cache_salt": "tenant-1"}, {"cache_salt": "tenant-2"}):
        body = chat(100, "salted", **salt)
        assert await check(session, proxy, CHAT, body) == 0
        assert await check(session, proxy, CHAT, body) > 0


async def test_an_adapter_has_its_own_blocks(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    for fields in ({}, {"model": "alpha"}, {"model": "alpha", "cache_salt": "tenant-1"}):
        body = chat(100, "adapted", **fields)
        assert await check(session, proxy, CHAT, body) == 0
        assert await check(session, proxy, CHAT, body) > 0


async def test_an_adapter_answers_as_the_plain_engine_does(
    session: aiohttp.ClientSession, proxy: ProxyProcess, plain: str
) -> None:
    body = chat(100, "adapter speaks", model="alpha", max_tokens=16)
    expected = await ask(session, plain, CHAT, body)
    base = await ask(session, plain, CHAT, body | {"model": "tiny"})
    assert expected.text != base.text
    assert (await ask(session, proxy.url, CHAT, body)).text == expected.text


async def test_a_shared_system_prompt_is_found(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    system = {"role": "system", "content": prose(100, "system")}
    for turn in range(4):
        user = {"role": "user", "content": prose(40, f"user {turn}")}
        cached = await check(session, proxy, CHAT, GREEDY | {"messages": [system, user]})
        assert cached > 0 or turn == 0


async def test_tools_are_part_of_the_prompt(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    function = {
        "name": "look",
        "description": prose(60, "tool"),
        "parameters": {"type": "object", "properties": {}},
    }
    body = chat(60, "tools", tools=[{"type": "function", "function": function}], tool_choice="none")
    first = await ask(session, proxy.url, CHAT, body)
    assert first.status == 200, first.body
    second = await ask(session, proxy.url, CHAT, body)
    assert second.predicted in {None, second.reported}  # unknown is allowed, wrong is not


async def test_explain_generates_nothing(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    body = chat(100, "only explained")
    told = await explain(session, proxy, body)
    again = await explain(session, proxy, body)
    assert told.prefill is not None
    assert told.decode is not None
    assert set(told.cached().values()) == set(again.cached().values()) == {0}
    for role in ("prefill", "decode"):
        for address in told.cached(role):
            terms = told.candidate(address, role)
            assert terms["usable"] is True
            assert terms["load_tokens"] == 0
            assert terms["index"] == "exact"


async def test_what_was_evicted_is_not_predicted(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    dice = random.Random(3)
    removed = "kvproxy_kv_events_total"
    before = (await read_metrics(session, proxy.url)).total(removed, type="BlockRemoved")
    hits = 0
    for n in range(60):
        old_or_new = dice.randrange(n + 1) if dice.random() < 0.5 else n
        body = GREEDY | {"prompt": prose(1300, f"evicting {old_or_new}"), "max_tokens": 1}
        hits += await check(session, proxy, COMPLETIONS, body) > 0
    after = (await read_metrics(session, proxy.url)).total(removed, type="BlockRemoved")
    assert after > before, "the caches are too large for this test"
    assert hits > 0


async def test_tokens_come_from_the_engines_own_model_directory(
    session: aiohttp.ClientSession, proxy: ProxyProcess
) -> None:
    async def compared() -> Any:
        async with session.get(proxy.url + "/status") as answer:
            tokenizer = (await answer.json())["tokenizer"]
        return tokenizer if len(tokenizer["checked_with"]) == 4 else None

    tokenizer = await wait_until(compared, 60, "the comparison with four engines")
    assert tokenizer["path"] == "local"
    assert tokenizer["off"] == {}
