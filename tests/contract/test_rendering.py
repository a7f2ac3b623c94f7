"""A conversation becomes the prompt that vLLM makes of it: roles, parts and tool calls as its template sees
them."""

from typing import Any

import pytest

from tests.contract.asking import Engine

START, END = "<|turn|>", "<|end|>"
HELLO = {"role": "user", "content": "Hello"}
ASKED = f"{START}user\nHello{END}\n"
ARGUMENTS = '{"a": [1, "b"]}'
ANSWER = f"{START}assistant\n"


def call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def shown(arguments: str) -> str:
    return f'[{{"id": "1", "function": {{"arguments": {arguments}, "name": "f"}}, "type": "function"}}]'


CONVERSATIONS: list[tuple[list[dict[str, Any]], str]] = [
    ([HELLO], ASKED),
    ([{"role": "system", "content": "Be brief."}, HELLO], f"{START}system\nBe brief.{END}\n{ASKED}"),
    ([{"role": "developer", "content": "x"}], f"{START}system\nx{END}\n"),
    ([{"role": "robot", "content": "x"}], f"{START}robot\nx{END}\n"),
    ([HELLO | {"name": "bob"}], ASKED),
    ([{"role": "user"}], f"{START}user\n{END}\n"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
        f"{START}user\nHello{END}\n",
    ),
    (
        [
            {
                "role": "user",
                "content": ["H", {"type": "input_text", "text": "el"}, {"type": "text", "text": "lo"}],
            }
        ],
        ASKED,
    ),
    (
        [
            {
                "role": "user",
                "content": [{"type": "thinking", "thinking": "Hel"}, {"type": "refusal", "refusal": "lo"}],
            }
        ],
        ASKED,
    ),
    ([HELLO, {"role": "tool", "content": "x", "tool_call_id": "1"}], f"{ASKED}{START}tool\nx{END}\n"),
    (
        [HELLO, {"role": "assistant", "content": None, "tool_calls": [call("{}")]}],
        f"{ASKED}{START}assistant\n{shown('{}')}{END}\n",
    ),
    (
        [HELLO, {"role": "assistant", "content": "so", "tool_calls": [call(ARGUMENTS)]}],
        f"{ASKED}{START}assistant\nso{shown(ARGUMENTS)}{END}\n",
    ),
    (
        [HELLO, {"role": "assistant", "content": None, "tool_calls": [call("no json")]}],
        f"{ASKED}{START}assistant\n{shown('{}')}{END}\n",
    ),
]


async def rendered(engine: Engine, body: dict[str, Any]) -> str:
    tokens = (await engine.ask(body, "/tokenize")).json["tokens"]
    return str((await engine.ask({"tokens": tokens}, "/detokenize")).json["prompt"])


@pytest.mark.parametrize(("messages", "text"), CONVERSATIONS)
async def test_a_conversation_becomes_a_prompt(
    engine: Engine, messages: list[dict[str, Any]], text: str
) -> None:
    assert await rendered(engine, {"messages": messages}) == text + ANSWER
    assert await rendered(engine, {"messages": messages, "add_generation_prompt": False}) == text


async def test_a_last_message_may_be_continued(engine: Engine) -> None:
    messages = [HELLO, {"role": "assistant", "content": "It is"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    assert await rendered(engine, body) == f"{ASKED}{ANSWER}It is"


async def test_tools_come_first(engine: Engine) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    text = await rendered(engine, {"messages": [HELLO], "tools": tools})
    assert text.startswith(f"{START}tools\n")
    assert text.endswith(ASKED + ANSWER)


@pytest.mark.parametrize(
    "parts",
    [["Hello"], [{"type": "input_text", "text": "Hello"}], ["Hel", {"type": "output_text", "text": "lo"}]],
)
async def test_parts_of_no_class_of_openai_want_one_beside_them(engine: Engine, parts: list[Any]) -> None:
    answer = await engine.ask({"messages": [{"role": "user", "content": parts}]}, "/tokenize")
    assert answer.status == 400
    assert "for ValidatorIterator" in answer.json["error"]["message"]
