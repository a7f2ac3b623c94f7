"""Members that no engine reads do not cost a prompt its prefix, and those that make a prompt unknown are
named.
"""

import logging
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.edge.app_keys import SERVICE
from proxy.simulation.api.model_files import write_model
from proxy.tokenizing.tool_choices import Choice, Tools
from tests.helpers.service import (
    UNHURRIED,
    Engines,
    Pair,
    Service,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)

LEFTOVERS: dict[str, Any] = {
    "reasoning": {"effort": "low"},
    "thinking": {"type": "enabled"},
    "enable_thinking": True,
    "usage": {"include": True},
    "guided_json": {"type": "object"},
    "num_ctx": 4096,
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
NAMED = {"type": "function", "function": {"name": "f"}}
HELLO = [{"role": "user", "content": "hello"}]
TAKES_TOOLS = UNHURRIED | {"tool_parser": True}


def schemas(service: Service) -> list[str]:
    told: list[str] = service.app[SERVICE].tokenizer.status().schemas
    return told


def asked(pair: Pair, path: str) -> int:
    return sum(seen.path == path for engine in pair.engines.all for seen in engine.seen)


async def share_of_chats(members: list[dict[str, Any]]) -> float:
    """The cached share of sixteen chats of four turns each; what each sends beside the usual."""
    async with fleet(prefill=2, decode=1, stand_in=TAKES_TOOLS) as pair:
        chats = [[{"role": "system", "content": prose(60, n)}] for n in range(16)]
        cached = total = 0
        for turn in range(4):
            for n, chat in enumerate(chats):
                chat.append({"role": "user", "content": prose(40, 100 * turn + n)})
                answer = await pair.service.chat(chat, **members[n % len(members)])
                assert answer.status == 200, answer.body
                usage = answer.json["usage"]
                cached += usage["prompt_tokens_details"]["cached_tokens"]
                total += usage["prompt_tokens"]
                chat.append({"role": "assistant", "content": answer.text})
            await pair.service.settled()
        assert await pair.service.metric("kvproxy_unknown_prompts_total") == 0
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 0
        predicted = await pair.service.metric("kvproxy_predicted_cached_tokens_total")
        assert predicted == await pair.service.metric("kvproxy_reported_cached_tokens_total")
        return cached / total


@pytest.mark.timeout(120)  # 192 chats, each decoded at an engine's pace
async def test_chats_with_leftovers_of_frameworks_keep_their_affinity() -> None:
    usual = await share_of_chats([{}])
    with_leftovers = await share_of_chats([{name: value} for name, value in LEFTOVERS.items()])
    choices = [{"tools": TOOLS, "tool_choice": choice} for choice in ("none", "required", NAMED, "auto")]
    with_choices = await share_of_chats(choices)
    assert usual > 0.5
    assert with_leftovers == pytest.approx(usual, abs=0.01)
    assert with_choices > usual - 0.01


async def test_ignored_members_are_named_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "proxy.tokenizing"):
        async with fleet(prefill=1, decode=1) as pair:
            for _ in range(3):
                told = await pair.service.explain({"messages": HELLO, "num_ctx": 1, "guided_json": {}})
            assert told["ignored_members"] == ["guided_json", "num_ctx"]
            assert (told["unknown_members"], told["why_unknown"]) == ([], None)
            assert told["known_tokens"] == told["prompt_tokens"] > 0
    lines = [record.getMessage() for record in caplog.records if "guided_json" in record.getMessage()]
    assert len(lines) == 1


def schemas_asked(made: Engines) -> int:
    return sum(engine.asked["/openapi.json"] for engine in made.all)


async def test_a_member_that_an_engine_may_read_makes_the_prompt_unknown_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = {"messages": HELLO, "reasoning": {}, "num_ctx": 1}
    async with (
        engines(prefill=1, decode=1) as usual,
        engines(prefill=1, decode=0, more_members=("reasoning",), version="0.99.0") as newer,
    ):
        usual.prefill = [*usual.prefill, *newer.prefill]
        async with kvproxy(usual.config()) as service:
            assert not schemas_asked(usual), "it was not needed yet"
            assert (await service.explain(body))["unknown_members"] == []
            await wait_until(lambda: schemas(service) == ["0.32.0", "0.99.0"], "the schemas")
            assert schemas_asked(usual) == 2, "one of each version"
            for _ in range(2):
                told = await service.explain(body)
            assert (told["why_unknown"], told["unknown_members"]) == ("field", ["reasoning"])
            assert told["prompt_tokens"] is None
            assert told["known_tokens"] == 0
            assert (await service.explain({"prompt": "hi", "num_ctx": 1}))["prompt_tokens"] > 0
            added = {"type": "prefill", "instance": newer.prefill[0].address, "force": True}
            assert (await service.admin("/instances/remove", added)).status == 200
            await wait_until(lambda: schemas(service) == ["0.32.0"], "the newer engine forgotten")
            assert (await service.explain(body))["prompt_tokens"] > 0
    lines = [
        r.getMessage()
        for r in caplog.records
        if r.levelno == logging.WARNING and "reasoning" in r.getMessage()
    ]
    assert len(lines) == 1


async def test_names_that_clients_make_up_hide_no_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "proxy.tokenizing"):
        async with fleet(prefill=1, decode=1, stand_in={"more_members": ("reasoning",)}) as pair:
            for n in range(80):
                assert (await pair.service.explain({"messages": HELLO, f"made_up_{n}": 1}))[
                    "known_tokens"
                ] > 0
            honest = {"messages": HELLO, "num_ctx": 1, "guided_json": {}}
            assert (await pair.service.explain(honest))["ignored_members"] == ["guided_json", "num_ctx"]
            await wait_until(lambda: schemas(pair.service) != [], "the schemas")
            told = await pair.service.explain({"messages": HELLO, "reasoning": {}, "made_up_9": 1})
            assert told["unknown_members"] == ["reasoning"]
            assert told["ignored_members"] == ["made_up_9"]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in lines if "'reasoning' is given" in line]
    assert (
        len([r for r in caplog.records if "made_up_" in r.getMessage() and r.levelno == logging.INFO]) <= 64
    )


async def test_without_a_schema_the_engines_token_count_decides() -> None:
    async with fleet(prefill=1, decode=1, stand_in={"docs": False}) as pair:
        body = {"messages": HELLO, "num_ctx": 1}
        assert (await pair.service.explain(body))["prompt_tokens"] > 0
        facts = pair.service.app[SERVICE].tokenizer._facts
        await wait_until(
            lambda: not any(facts.lacks_schema(e.address) for e in pair.engines.all), "the asking"
        )
        assert (await pair.service.explain(body))["ignored_members"] == ["num_ctx"]
        for engine in pair.engines.all:  # from now on the member shapes the prompt, and nobody has said so
            engine.checker._greeting = "Be thoughtful. "
        assert (await pair.service.chat("hello", num_ctx=1)).status == 200
        assert (await pair.service.explain(body))["why_unknown"] == "counted differently"
        assert (await pair.service.explain({"messages": HELLO}))["why_unknown"] is None, "that kind only"
        assert schemas(pair.service) == []
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 1


# ---- choices of tools -------------------------------------------------------------------------------------


async def test_tools_that_an_engine_leaves_out_are_left_out_here_once_it_has_shown_it() -> None:
    stand_in = TAKES_TOOLS | {"excludes_tools": True}
    async with fleet(prefill=1, decode=1, stand_in=stand_in) as pair:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prose(100)}]
        body = {"messages": messages, "tools": TOOLS, "tool_choice": "none"}
        longer = (await pair.service.explain(body))["prompt_tokens"]
        await wait_until(lambda: asked(pair, "/v1/messages/count_tokens") == 2 * 5, "the counts")
        bare = {"messages": messages}

        facts = pair.service.app[SERVICE].tokenizer._facts
        await wait_until(lambda: facts.tools(Choice.NONE) is Tools.LEFT_OUT, "the judgement")
        known = (await pair.service.explain(body))["prompt_tokens"]
        assert known == (await pair.service.explain(bare))["prompt_tokens"]
        assert (await pair.service.explain(body | {"tool_choice": "required"}))["prompt_tokens"] == longer
        answer = await pair.service.chat(messages, tools=TOOLS, tool_choice="none")
        assert answer.json["usage"]["prompt_tokens"] == known
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 0


# ---- images -----------------------------------------------------------------------------------------------


@pytest.fixture
async def seeing(tmp_path: pathlib.Path) -> AsyncIterator[Pair]:
    write_model(tmp_path)
    stand_in = UNHURRIED | {"images": True, "root": str(tmp_path)}
    async with fleet(prefill=2, decode=1, stand_in=stand_in, decision_headers=True) as pair:
        told = pair.service.app[SERVICE].tokenizer.status
        await wait_until(lambda: len(told().checked_with) == 3, "the comparison")
        yield pair


def picture(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name * 2000}"}}


async def test_a_prompt_with_images_is_placed_by_what_comes_before_the_first(seeing: Pair) -> None:
    ask, text = seeing.service.chat, {"type": "text", "text": prose(150, 1)}
    chats: list[list[dict[str, Any]]] = [
        [
            {"role": "system", "content": prose(100, n)},
            {"role": "user", "content": [text, picture("cat"), {"type": "text", "text": "what is it"}]},
        ]
        for n in range(4)
    ]
    homes = []
    for number, chat in enumerate(chats):
        other = {"instance": seeing.engines.prefill[number % 2].address}
        await seeing.service.admin("/instances/drain", other)
        first = await ask(chat)
        assert first.status == 200, first.body
        homes.append(first.headers["X-Kvproxy-Prefill"])
        await seeing.service.settled()
        await seeing.service.admin("/instances/drain", {"undo": True} | other)
    assert len(set(homes)) == 2
    for chat, home in zip(chats, homes, strict=True):
        told = await seeing.service.explain({"model": "tiny", "messages": chat})
        assert told["prompt_tokens"] is None
        assert told["known_tokens"] > 200
        assert told["why_unknown"] is None
        another = [chat[0], {"role": "user", "content": [text, picture("dog"), picture("cow")]}]
        answer = await ask(another)
        assert answer.headers["X-Kvproxy-Prefill"] == home
        reported = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert int(answer.headers["X-Kvproxy-Cached-Tokens"]) == reported == told["known_tokens"] // 16 * 16
        # The same again has the image cached as well: more than was promised, and no miss.
        again = await ask(another)
        assert int(again.headers["X-Kvproxy-Cached-Tokens"]) == reported
        assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > reported
        await seeing.service.settled()
    metric = seeing.service.metric
    assert await metric("kvproxy_token_count_differences_total") == 0
    assert await metric("kvproxy_unknown_prompts_total") == 0
    for engine in seeing.engines.prefill:
        accuracy = seeing.service.app[SERVICE].accuracy.status(engine.address, 0)
        assert accuracy.exact == accuracy.legs > 0
    assert await metric("kvproxy_predicted_cached_tokens_total") == await metric(
        "kvproxy_reported_cached_tokens_total"
    )


async def test_a_prompt_that_begins_with_an_image_is_not_known(seeing: Pair) -> None:
    content = [picture("cat"), {"type": "text", "text": prose(50)}]
    told = await seeing.service.explain({"messages": [{"role": "user", "content": content}]})
    assert (told["why_unknown"], told["known_tokens"]) == ("content part", 0)
    prefill = told["prefill"]["candidates"][0]
    assert prefill["uncached_tokens"] is None


async def test_an_image_counts_for_the_load_as_an_image_not_as_its_text(seeing: Pair) -> None:
    content = [{"type": "text", "text": prose(150)}, picture("cat" * 100)]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    candidate = (await seeing.service.explain(body))["prefill"]["candidates"][0]
    assert 1000 < candidate["uncached_tokens"] < 1600
