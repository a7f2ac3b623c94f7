"""Prompts are tokenized by the local tokenizer where it agrees with every engine, else by an engine."""

import json
import logging
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from proxy.edge.app_keys import SERVICE
from proxy.errors import ConfigError
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.api.model_files import write_model
from proxy.tokenizing.shown import TokenizerShown
from tests.helpers.service import UNHURRIED, Answer, Pair, Service, fleet, prose, wait_until

TOOLS = [
    {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}
]


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    write_model(tmp_path)
    return tmp_path


@pytest.fixture
async def local(model: pathlib.Path) -> AsyncIterator[Pair]:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED, tokenizer=str(model)) as pair:
        await compared(pair)
        yield pair


async def compared(pair: Pair, engines: int | None = None) -> None:
    wanted = len(pair.engines.all) if engines is None else engines
    await wait_until(lambda: len(tokenizer_status(pair.service).checked_with) == wanted, "the comparison")


def tokenizer_status(service: Service) -> TokenizerShown:
    return service.app[SERVICE].tokenizer.status()


def questions(pair: Pair) -> int:
    """How often engines were asked for tokens."""
    return sum(seen.path == "/tokenize" for engine in pair.engines.all for seen in engine.seen)


async def test_local_tokens_are_as_many_as_the_engines_count(local: Pair) -> None:
    before = questions(local)
    told = (await local.service.ask("/status")).json["tokenizer"]
    assert told["path"] == "local"
    assert told["off"] == {}
    assert told["pieces"]["cut_between_words"]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prose(300) + " é 漢 <|end|> "},
    ]
    requests: list[Callable[[], Awaitable[Answer]]] = [
        partial(local.service.chat, chat),
        partial(local.service.complete, prose(300)),
        partial(local.service.complete, [7, 8, 9] * 40),
    ]
    for ask in requests:
        first = await ask()
        assert first.status == 200, first.body
        answer = await ask()
        cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= answer.json["usage"]["prompt_tokens"] - 20 > 0
    assert (await local.service.explain({"model": "tiny", "messages": chat, "tools": TOOLS}))[
        "prompt_tokens"
    ] > 300
    assert questions(local) == before
    assert await local.service.metric("kvproxy_tokenized_prompts_total", by="local") == 5
    assert await local.service.metric("kvproxy_tokenized_prompts_total", by="client") == 2
    assert await local.service.metric("kvproxy_token_count_differences_total") == 0
    predicted = await local.service.metric("kvproxy_predicted_cached_tokens_total")
    assert predicted == await local.service.metric("kvproxy_reported_cached_tokens_total") > 0


async def test_a_chat_that_engines_may_read_in_several_ways_is_asked_about(local: Pair) -> None:
    before = questions(local)
    odd = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "x"}}]}]
    told = await local.service.explain({"model": "tiny", "messages": odd})
    assert told["prompt_tokens"] > 0
    assert questions(local) == before + 1


async def test_a_kind_that_differs_is_left_to_engines_with_a_warning(
    model: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = config["chat_template"].replace("<|turn|>tools", "<|turn|>functions")
    (model / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with caplog.at_level(logging.WARNING, "proxy.tokenizing"):
        async with fleet(prefill=1, decode=1, tokenizer=str(model)) as pair:
            await compared(pair)
            told = (await pair.service.ask("/status")).json["tokenizer"]
            assert list(told["off"]) == ["tools"]
            before = questions(pair)
            assert (await pair.service.chat(prose(50))).status == 200
            assert questions(pair) == before
            with_tools = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
            assert (await pair.service.explain(with_tools))["prompt_tokens"] > 0
            assert questions(pair) == before + 1
    warnings = [record.getMessage() for record in caplog.records if "otherwise" in record.getMessage()]
    assert len(warnings) == 1  # of two engines
    assert "tools prompts" in warnings[0]
    assert "(token 1: " in warnings[0]


async def test_the_engines_own_directory_is_used_if_it_can_be_read(model: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, stand_in={"root": str(model)}) as pair:
        await compared(pair)
        assert tokenizer_status(pair.service).directory == str(model)
        before = questions(pair)
        await pair.service.chat("hi")
        assert questions(pair) == before


async def test_engines_are_asked_where_nothing_else_is_known_or_wanted(model: pathlib.Path) -> None:
    for root, asked in ((None, "auto"), ("/nowhere", "auto"), (str(model), "engines")):
        async with fleet(prefill=1, decode=1, stand_in={"root": root}, tokenizer=asked) as pair:
            assert tokenizer_status(pair.service).path == "engines"
            await pair.service.chat("hi")
            assert questions(pair) == 1


async def test_an_added_engine_is_compared_and_a_removed_one_forgotten(
    local: Pair, tmp_path: pathlib.Path
) -> None:
    async with StandIn(StandInConfig()) as another:
        added = {"type": "decode", "instance": another.address}
        assert (await local.service.admin("/instances/add", added)).status == 200
        await compared(local, 3)
        assert (await local.service.admin("/instances/remove", added | {"force": True})).status == 200
        await compared(local, 2)


async def test_engines_are_asked_until_one_has_answered_awkward_questions(model: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, tokenizer=str(model)) as pair:
        await compared(pair)
        tokenizer = pair.service.app[SERVICE].tokenizer
        tokenizer._parity.keep(set())
        before = questions(pair)
        await pair.service.complete("never seen")
        assert questions(pair) >= before + 1


async def test_prompts_that_engines_count_otherwise_are_asked_for(
    local: Pair,
) -> None:
    tokenizer = local.service.app[SERVICE].tokenizer
    tokenizer.distrust("completions(prompt) by --tokenizer")
    before = questions(local)
    assert (await local.service.complete(prose(30))).status == 200
    assert questions(local) == before + 1
    assert await local.service.metric("kvproxy_unknown_prompts_total") == 0


@pytest.mark.parametrize("name", ["/nowhere", "no/such-model", "empty", "..bad..", "broken"])
async def test_a_tokenizer_that_is_not_there_ends_the_start(name: str, tmp_path: pathlib.Path) -> None:
    for made in ("empty", "broken"):
        (tmp_path / made).mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}", "utf-8")
    given = str(tmp_path / name) if name in {"empty", "broken"} else name
    with pytest.raises(ConfigError, match="--tokenizer"):
        async with fleet(prefill=1, decode=1, tokenizer=given):
            pass


async def test_a_model_in_the_cache_is_found_by_its_name(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).write_bytes((model / name).read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    async with fleet(prefill=1, decode=1, tokenizer="org/name") as pair:
        await compared(pair)
        assert tokenizer_status(pair.service).directory == str(snapshot)
