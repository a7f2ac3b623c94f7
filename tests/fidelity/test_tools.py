"""A stand-in words a call of a tool as vLLM does: the matrix compares kvproxy with either."""

import json
from typing import Any

import aiohttp
import pytest

from scripts.workshop.live.asking import CHAT, ask
from tests.contract.asking import chunks
from tests.fidelity.conftest import Sides
from tests.fidelity.matrix import FEATURES, Made


def calling(stream: bool) -> dict[str, Any]:
    """A chat whose only answer is a call."""
    [feature] = [f for f in FEATURES if f.name.startswith("a tool is called")]
    assert feature.chat is not None
    assert not any(isinstance(value, Made) for value in feature.chat.values())
    messages = [{"role": "user", "content": "which tool is called?"}]
    return {"model": "tiny", "temperature": 0, "messages": messages, "stream": stream, **feature.chat}


async def test_a_call_is_told_whole(session: aiohttp.ClientSession, sides: Sides) -> None:
    [choice] = (await ask(session, sides.plain, CHAT, calling(stream=False))).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert list(message) == [
        *("role", "content", "refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning")
    ]
    assert message["content"] is None
    [call] = message["tool_calls"]
    assert call.pop("id").startswith("chatcmpl-tool-")
    assert call == {"type": "function", "function": {"name": "look", "arguments": '{"ok": true}'}}


async def test_a_call_is_told_in_a_stream(session: aiohttp.ClientSession, sides: Sides) -> None:
    answer = await ask(session, sides.plain, CHAT, calling(stream=True))
    first, named, *others, last = [chunk["choices"][0] for chunk in chunks(answer)]
    assert first["delta"] == {"role": "assistant", "content": ""}
    [call] = named["delta"]["tool_calls"]
    assert call.pop("id").startswith("chatcmpl-tool-")
    assert list(call) == ["type", "index", "function"]
    assert call["function"]["name"] == "look"
    arguments = call["function"].get("arguments", "")
    for choice in others:
        assert list(choice["delta"]) == ["content", "tool_calls"]
        [more] = choice["delta"]["tool_calls"]
        assert list(more) == ["index", "function"]
        arguments += more["function"]["arguments"]
    assert json.loads(arguments) == {"ok": True}
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_that_a_grammar_forces_is_the_answer(
    session: aiohttp.ClientSession, sides: Sides, stream: bool
) -> None:
    forced = {"structured_outputs": {"choice": ["yes, of course"]}, "max_tokens": 60}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "is it so?"}], "stream": stream}
    answer = await ask(session, sides.plain, CHAT, body | forced)
    assert answer.text == "yes, of course"
