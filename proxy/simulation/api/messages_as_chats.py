"""Invariant: a request in Anthropic's words is the chat that vLLM makes of it.

System messages stay where they are, since the tiny test model's template takes them anywhere.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BILLING = "x-anthropic-billing-header"
"""How the text begins that vLLM leaves out: it differs from request to request."""


def chat_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The chat: what is said in it, and its tools."""
    chat: dict[str, Any] = {"model": asked["model"], "messages": [*_system(asked), *_messages(asked)]}
    effort = (asked.get("output_config") or {}).get("effort")
    if (asked.get("thinking") or {}).get("type") == "disabled":
        effort = "low"  # the tiny model's template renders the same for every effort
    if effort is not None:
        chat["reasoning_effort"] = effort
    choice = asked.get("tool_choice")
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.get("name")}}
        chat["tool_choice"] = {"any": "required", "tool": named}.get(choice["type"], choice["type"])
    if asked.get("tools") is not None:
        chat["tools"] = [_tool(tool) for tool in asked["tools"]]
        chat.setdefault("tool_choice", "auto")
    if asked.get("chat_template_kwargs") is not None:
        chat["chat_template_kwargs"] = asked["chat_template_kwargs"]
    return chat


def _texts(content: str | Sequence[Mapping[str, Any]], *, strips: bool = True) -> Iterator[str]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for block in blocks:
        text = block.get("text")
        if block["type"] == "text" and text and not (strips and text.startswith(_BILLING)):
            yield text


def _system(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    told = asked.get("system") or []
    if texts := [*_texts(told, strips=not isinstance(told, str))]:
        yield {"role": "system", "content": "".join(texts)}


def _messages(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for message in asked["messages"]:
        role, content = message["role"], message["content"]
        if role == "system":
            if texts := [*_texts(content)]:
                yield {"role": role, "content": "".join(texts)}
            continue
        if isinstance(content, str):
            yield {"role": role, "content": content}
            continue
        parts: list[dict[str, Any]] = []
        told: dict[str, Any] = {"role": role}
        calls, thoughts = [], []
        for block in content:
            kind = block["type"]
            if kind == "text" and block.get("text"):
                parts.append({"type": "text", "text": block["text"]})
            elif kind == "image" and block.get("source"):
                parts.append(_image(block["source"]))
            elif kind == "thinking" and block.get("thinking") is not None:
                thoughts.append(block["thinking"])
            elif kind == "tool_use":
                arguments = json.dumps(block.get("input") or {})
                function = {"name": block.get("name") or "", "arguments": arguments}
                calls.append({"id": block.get("id") or "call_0", "type": "function", "function": function})
            elif kind == "tool_result" and role == "user":
                yield from _results(block)
            elif kind == "tool_result":
                parts.append({"type": "text", "text": f"Tool result: {block.get('content') or ''}"})
        if thoughts:
            told["reasoning"] = "".join(thoughts)
        if calls:
            told["tool_calls"] = calls
        if parts:
            alone = len(parts) == 1 and parts[0]["type"] == "text"
            told["content"] = parts[0]["text"] if alone else parts
        if role == "assistant" or "content" in told:
            yield told


def _image(source: Mapping[str, Any]) -> dict[str, Any]:
    kind, data = source.get("media_type", "image/jpeg"), source.get("data", "")
    url = source.get("url", "") if source.get("type") == "url" else f"data:{kind};base64,{data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _results(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = block.get("content") or ""
    parts = [] if isinstance(content, str) else content
    if parts:
        content = "\n".join(part.get("text", "") for part in parts if part.get("type") == "text")
    yield {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": content or ""}
    images = [_image(part.get("source", {})) for part in parts if part.get("type") == "image"]
    if images:
        yield {"role": "user", "content": images}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {**tool["input_schema"]}
    parameters.setdefault("type", "object")
    function = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    function |= {name: tool[name] for name in ("strict", "defer_loading") if tool.get(name) is not None}
    return {"type": "function", "function": function}
