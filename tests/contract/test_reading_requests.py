"""An engine says which members of a request it reads, ignores the others, and counts a chat as it would
answer it."""

import json
from typing import Any

import pytest

from proxy.request import dialects
from proxy.simulation.api.openapi import CHAT as CHAT_MEMBERS
from proxy.simulation.api.openapi import COMPLETION as COMPLETION_MEMBERS
from proxy.tokenizing.schemas import read_schema
from proxy.tokenizing.tool_choices import COUNT_PATH, Choice, Tools, judge, questions
from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {}}}]
LEFTOVERS: dict[str, Any] = {
    "reasoning": {"effort": "low"},
    "thinking": {"type": "enabled"},
    "enable_thinking": True,
    "usage": {"include": True},
    "guided_json": {"type": "object"},
    "num_ctx": 4096,
    "documents_": None,
}


async def test_the_schema_names_the_members_that_are_placed_here(engine: Engine) -> None:
    status, _, data = await engine.send("GET", "/openapi.json")
    assert status == 200
    assert read_schema(data) == {dialects.CHAT: CHAT_MEMBERS, dialects.COMPLETIONS: COMPLETION_MEMBERS}


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "Hello there"})]
)
async def test_members_nobody_knows_change_nothing(engine: Engine, path: str, body: dict[str, Any]) -> None:
    asked = {"max_tokens": 4, "temperature": 0}
    usual = await engine.served(body | asked, path)
    odd = await engine.served(LEFTOVERS | body | asked, path)
    assert odd.json["usage"]["prompt_tokens"] == usual.json["usage"]["prompt_tokens"]
    assert odd.text == usual.text


async def test_an_engine_shows_what_a_choice_of_tools_does(engine: Engine) -> None:
    counts = {name: await count(engine, asked) for name, asked in questions(engine.spec.served_name).items()}
    # Without a parser for calls it takes no chat whose tools may be called.
    assert [name for name, length in counts.items() if length is None] == ["auto", "required", "named"]
    assert judge(counts) == {Choice.NONE: Tools.SHOWN}


async def count(engine: Engine, question: bytes) -> int | None:
    status, _, data = await engine.send("POST", COUNT_PATH, question, {"Content-Type": "application/json"})
    told = json.loads(data)
    if status != 200:
        assert (status, told["type"], told["error"]["type"]) == (400, "error", "BadRequestError")
        return None
    length = int(told["input_tokens"])
    assert told == {"input_tokens": length, "context_management": {"original_input_tokens": length}}
    return length


async def test_tools_that_must_not_be_called_are_shown_all_the_same(engine: Engine) -> None:
    body = {"messages": HELLO, "tools": TOOLS}
    answer = await engine.served(body | {"tool_choice": "none", "max_tokens": 1}, CHAT)
    told = await engine.served(body, "/tokenize")
    assert answer.json["usage"]["prompt_tokens"] == told.json["count"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
async def test_calls_that_nobody_understands_are_refused(engine: Engine, choice: Any) -> None:
    answer = await engine.ask({"messages": HELLO, "tools": TOOLS, "tool_choice": choice}, CHAT)
    named = '"required"' if choice == "required" else 'function "f"'
    assert answer.status == 400
    assert answer.json["error"]["message"] == f"tool_choice={named} requires --tool-call-parser to be set"
