"""Invariant: a request for a response becomes the conversation that vLLM 0.32 shows the template for it.

Instructions come first, then the messages of the responses that it builds on, then those of its input.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def chat_of(body: Mapping[str, Any], before: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The chat that the engine renders; `before`: the messages of earlier responses."""
    given = body["input"]
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    messages += [dict(message) for message in before if message["role"] != "system"]
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        messages += _messages(given)
    continued = isinstance(given, list) and bool(given) and given[-1].get("status") in _UNFINISHED
    return {
        "messages": messages,
        "tools": functions(body.get("tools") or ()) or None,
        "add_generation_prompt": not continued,
        "continue_final_message": continued,
    }


_UNFINISHED = ("in_progress", "incomplete")


def functions(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The functions among tools, as templates see them."""
    return [
        {
            "type": "function",
            "function": {name: tool.get(name) for name in ("name", "description", "parameters")}
            | ({} if tool.get("strict") is None else {"strict": tool["strict"]}),
        }
        for tool in tools
        if tool.get("type") == "function"
    ]


def _messages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for item in items:
        made = _message(item)
        last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        if last is not None and made["role"] == "assistant":
            [(name, value)] = [(n, v) for n, v in made.items() if n != "role"]
            if name == "tool_calls":
                last.setdefault("tool_calls", []).extend(value)
                continue
            if last.get(name) is None:
                last[name] = value
                continue
        messages.append(made)
    return messages


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    kind = item.get("type")
    if kind == "function_call":
        called = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "function": called, "type": "function"}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
    if kind == "reasoning":
        told = (item.get("content") or item.get("summary") or [{}])[0]
        return {"role": "assistant", "reasoning": told.get("text", "")}
    content = item["content"]
    if item["role"] == "assistant" and isinstance(content, list):
        content = content[0]["text"] if content else None
    if isinstance(content, list):
        content = [part | {"type": "text"} if part.get("type") == "input_text" else part for part in content]
    return {"role": item["role"], "content": content}
