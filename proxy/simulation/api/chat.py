"""Invariant: a conversation renders to one text, the same as the tiny test model's chat template gives.

A turn is `<|turn|>role`, a line break, the content, `<|end|>`, a line break. Tools come first, as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.simulation.api.errors import BadRequestError

IMAGE = "<|pad|>"
"""The token in place of an image, until the engine puts the image's own tokens there."""
_TURN = "<|turn|>{role}\n{content}<|end|>\n"


def render(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    generation_prompt: bool = True,
    continue_final: bool = False,
    images: bool = False,
) -> str:
    """The prompt of a conversation; `images`: whether the model takes them. Raises BadRequestError for
    contents that it cannot take.
    """
    if not messages:
        raise BadRequestError(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    for message in messages:
        _check_parts(message)
    if images_of(messages) and not images:
        raise BadRequestError("{model} is not a multimodal model")
    messages = _developers_as_system(messages)
    text = _TURN.format(role="tools", content=_json(tools)) if tools else ""
    for message in messages[:-1] if continue_final else messages:
        text += _TURN.format(role=message["role"], content=_content(message))
    if continue_final:
        last = messages[-1]
        text += f"<|turn|>{last['role']}\n{_content(last)}"
    return text + ("<|turn|>assistant\n" if generation_prompt else "")


def _developers_as_system(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages for a template that does not know developers: one system message, at the beginning."""
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
    between = "\n" if message["role"] == "tool" else ""  # vLLM itself joins the parts of a tool's message
    calls = message.get("tool_calls")
    return _text(message, between) + (_json([_call(call) for call in calls]) if calls else "")


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as templates see it: the arguments parsed, and none if they are no JSON."""
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
    if kind == "image_url":
        return IMAGE
    if kind not in {"text", "input_text", "output_text", "refusal", "thinking"}:
        raise BadRequestError("{model} is not a multimodal model")
    return str(part.get("text") or part.get("refusal") or part.get("thinking") or "")


_STANDARD = {"system", "user", "assistant", "tool", "developer"}


def _check_parts(message: Mapping[str, Any]) -> None:
    """Refuse contents of which all parts are unknown to OpenAI's classes, as vLLM 0.32 does."""
    content = message.get("content")
    if not isinstance(content, list) or not content or message["role"] not in _STANDARD:
        return
    kinds = ["a text" if isinstance(part, str) else part.get("type") for part in content]
    if set(kinds) <= {"a text", "input_text", "output_text"}:
        raise BadRequestError(
            f"1 validation error for ValidatorIterator\n0.type\n  Input should be 'text' ({kinds[0]})"
        )


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What distinguishes the images of a conversation, in their order."""
    return [
        str((part.get("image_url") or {}).get("url"))
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, Mapping) and part.get("type") == "image_url"
    ]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
