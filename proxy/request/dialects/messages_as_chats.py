"""Messages become the chat that vLLM 0.32 makes of them, word for word, or nothing: a guess is no prompt.

Pure. It follows `AnthropicServingMessages.to_chat_completion_request` of vLLM. What depends on an engine
(which effort means no thinking, where its template wants system messages) or on its clock is not known here.
Members that the engine would not read are left out, so `cache_control` and the like shape nothing.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from proxy.request.body import Body

MAX_BYTES = 4 << 20
MAX_VALUES = 100_000
"""A longer conversation is not translated: it would hold up the event loop, and takes many times its text."""

_BILLING = "x-anthropic-billing-header"
"""How a block of Claude Code's begins that vLLM leaves out: it differs from request to request."""

_KEPT = ("model", "cache_salt", "chat_template_kwargs")
_UNREADABLE = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError, ValueError)


class _UnknownError(Exception):
    """The chat depends on more than the request."""


class _Source(msgspec.Struct):
    type: str | None = None
    url: str = ""
    media_type: str = "image/jpeg"
    data: str = ""


class _Block(msgspec.Struct):
    type: Literal[
        "text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"
    ]
    text: str | None = None
    source: _Source | None = None
    id: str | None = None
    tool_use_id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    content: msgspec.Raw = msgspec.Raw(b"null")
    thinking: str | None = None


class _Part(msgspec.Struct):
    """Of a tool's result."""

    type: str | None = None
    text: str = ""
    source: _Source = msgspec.field(default_factory=_Source)


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: msgspec.Raw


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, msgspec.Raw]
    description: str | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class _Format(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"null")


class _Output(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_blocks = msgspec.json.Decoder(list[_Block]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_system = msgspec.json.Decoder(str | list[_Block] | None).decode
_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_decode_choice = msgspec.json.Decoder(_Choice | None).decode
_decode_output = msgspec.json.Decoder(_Output | None).decode
_decode_thinking = msgspec.json.Decoder(_Thinking | None).decode


def as_chat(body: Body) -> Body | None:
    """The members of the chat that shape its prompt; None if it cannot be known, or if an engine would refuse
    the request.
    """
    shaping = ("messages", "system", "tools")
    if sum(len(body.view(name) or b"") for name in shaping) > MAX_BYTES:
        return None
    if sum(map(body.values_in, shaping)) > MAX_VALUES:
        return None
    try:
        chat = _members(body)
    except (*_UNREADABLE, _UnknownError):
        return None
    kept: dict[str, Any] = {
        name: msgspec.Raw(view) for name in _KEPT if (view := body.view(name)) is not None
    }
    return Body({}, body.size_bytes).changed(kept | chat)


def _members(body: Body) -> dict[str, Any]:
    thinking = _decode_thinking(body.view("thinking") or b"null")
    if thinking is not None and thinking.type == "disabled":
        raise _UnknownError
    chat: dict[str, Any] = {"messages": [*_system(body), *_messages(body)]}
    output = _decode_output(body.view("output_config") or b"null") or _Output()
    if output.effort is not None:
        chat["reasoning_effort"] = output.effort
    if output.format is not None and bytes(output.format.schema) not in (b"null", b"{}"):
        form = {"name": "json_schema", "schema": output.format.schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": form}
    tools = _decode_tools(body.view("tools") or b"null")
    choice = _decode_choice(body.view("tool_choice") or b"null")
    if tools is not None:
        if not tools:
            raise _UnknownError  # a list without tools, which a chat cannot ask for
        chat["tools"] = [_tool(tool) for tool in tools]
    if choice is not None and (tools or choice.type == "none"):
        chat["tool_choice"] = _tool_choice(choice)
    return chat


def _system(body: Body) -> Iterator[dict[str, Any]]:
    told = _decode_system(body.view("system") or b"null")
    if isinstance(told, list):
        texts = [block.text for block in told if block.type == "text" and block.text]
        told = "".join(text for text in texts if not text.startswith(_BILLING))
    if told:
        yield {"role": "system", "content": told}


def _messages(body: Body) -> Iterator[dict[str, Any]]:
    """The messages of the chat. One of the role `system` cannot be read: where it goes depends on the
    engine's chat template.
    """
    for message in _decode_messages(body.view("messages") or b""):
        if _begins(message.content, b'"'):
            yield {"role": message.role, "content": _decode_text(message.content)}
            continue
        told: dict[str, Any] = {"role": message.role}
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: list[str] = []
        for block in _decode_blocks(message.content):
            match block.type:
                case "text" if block.text:
                    parts.append({"type": "text", "text": block.text})
                case "image" if block.source is not None:
                    parts.append(_image(block.source))
                case "thinking" if block.thinking is not None:
                    thoughts.append(block.thinking)
                case "tool_use":
                    calls.append(_call(block))
                case "tool_result" if message.role == "user":
                    yield from _result(block)
                case "tool_result":
                    parts.append({"type": "text", "text": f"Tool result: {_plain(block.content)}"})
        if thoughts:
            told["reasoning"] = "".join(thoughts)
        if calls:
            told["tool_calls"] = calls
        if len(parts) == 1 and parts[0]["type"] == "text":
            told["content"] = parts[0]["text"]
        elif parts:
            told["content"] = parts
        if message.role == "assistant" or "content" in told:
            yield told


def _image(source: _Source) -> dict[str, Any]:
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _call(block: _Block) -> dict[str, Any]:
    if not block.id:
        raise _UnknownError  # it is made of the engine's clock
    given = json.loads(bytes(block.input))  # as the engine reads and writes it, numbers included
    if given is not None and not isinstance(given, dict):
        raise _UnknownError
    function = {"name": block.name or "", "arguments": json.dumps(given or {})}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: _Block) -> Iterator[dict[str, Any]]:
    """The messages that one result of a tool becomes."""
    images: list[dict[str, Any]] = []
    if _begins(block.content, b"["):
        found = _decode_parts(block.content)
        if any(part.type == "tool_reference" for part in found):
            raise _UnknownError  # a part that only engines know
        text = "\n".join(part.text for part in found if part.type == "text")
        images = [_image(part.source) for part in found if part.type == "image"]
    else:
        text = _plain(block.content)
    yield {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": text}
    shown = [image for image in images if image["image_url"]["url"]]
    if shown:
        yield {"role": "user", "content": shown}


def _begins(raw: msgspec.Raw, mark: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == mark


def _plain(content: msgspec.Raw) -> str:
    """A text; lists are written as Python writes them, which is not done here."""
    if _begins(content, b"["):
        raise _UnknownError
    return "" if _begins(content, b"n") else _decode_text(content)


def _tool(tool: _Tool) -> dict[str, Any]:
    schema = tool.input_schema
    if "type" not in schema:
        schema["type"] = msgspec.Raw(b'"object"')
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": schema}
    if tool.strict is not None:
        function["strict"] = tool.strict
    if tool.defer_loading is not None:
        function["defer_loading"] = tool.defer_loading
    return {"type": "function", "function": function}


def _tool_choice(choice: _Choice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
