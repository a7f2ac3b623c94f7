"""Invariant: a conversation renders to one text, the same as the tiny test model's chat template gives.

A turn is `<|turn|>role`, a line break, the content, `<|end|>`, a line break. Tools come first, as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.simulation.errors import BadRequestError

_TURN = "<|turn|>{role}\n{content}<|end|>\n"


def render(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    generation_prompt: bool = True,
    continue_final: bool = False,
) -> str:
    """The prompt of a conversation. BadRequestError for contents a text model cannot take."""
    if not messages:
        raise BadRequestError(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    messages = _developers_as_system(messages)
    text = _TURN.format(role="tools", content=_json(tools)) if tools else ""
    for message in messages[:-1] if continue_final else messages:
        text += _TURN.format(role=message["role"], content=_content(message))
    if continue_final:
        last = messages[-1]
        text += f"<|turn|>{last['role']}\n{_content(last)}"
    return text + ("<|turn|>assistant\n" if generation_prompt else "")


def _developers_as_system(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """As for any template that does not know developers: one system message, at the beginning."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    roles = ["system" if message["role"] == "developer" else message["role"] for message in messages]
    if roles[0] == "system" and roles.count("system") == 1:
        return [{**messages[0], "role": "system"}, *messages[1:]]
    told = [_text(m, "\n") for m, role in zip(messages, roles, strict=True) if role == "system"]
    rest = [m for m, role in zip(messages, roles, strict=True) if role != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, told))}, *rest]


def _text(message: Mapping[str, Any], between: str) -> str:
    content = message.get("content")
    return between.join(map(_part, content)) if isinstance(content, list) else content or ""


def _content(message: Mapping[str, Any]) -> str:
    between = "\n" if message["role"] == "tool" else ""  # vLLM joins a tool's parts itself
    calls = message.get("tool_calls")
    return _text(message, between) + (_json([_call(call) for call in calls]) if calls else "")


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as templates see it: the arguments parsed, and none where they are no JSON."""
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = {}
    shown = {"arguments": arguments, "name": function.get("name")}
    return {"id": call.get("id"), "function": shown, "type": call.get("type")}


def _part(part: Mapping[str, Any] | str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text")
    if kind not in {"text", "input_text", "output_text", "refusal"}:
        raise BadRequestError("{model} is not a multimodal model")
    return str(part.get("text") or part.get("refusal") or "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
