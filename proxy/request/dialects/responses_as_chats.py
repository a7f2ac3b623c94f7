"""A request for a response is written as the chat that vLLM renders for it, or not at all.

Pure. vLLM 0.32 makes messages of instructions and input items (`construct_input_messages`), and gives them to
the template of chats. Whatever it makes in another way than here is for the engine alone to know: items other
than messages (of a call it shows a template the members in another order than a chat's), tools of which it
makes functions, and anything with members that are not known here.
"""

from typing import Any, Literal

import msgspec

from proxy.request.body import Body
from proxy.request.dialects.base import PromptMembers

MAX_VALUES = 100_000
"""A conversation of more is not translated: that takes many times its text, and seconds for the most that a
body may have.
"""

_NULL = msgspec.Raw(b"null")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_UNKNOWABLE = ("previous_response_id", "previous_input_messages", "prompt")
"""Members that shape the prompt in a way that only the engine knows."""

_OF_RESPONSES = frozenset(
    {
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "background",
        "include",
        "reasoning",
        "text",
        "tool_choice",
        "truncation",
        "enable_response_messages",
        *_UNKNOWABLE,
    }
)
"""Members that chats do not have. Those that shape the prompt become others, or are not translated."""

_IGNORED = frozenset({"truncate_prompt_tokens", "truncation_side", "response_format"})
"""Members of chats that mean nothing in a request for a response."""

_SHARED = frozenset({"chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs"})
"""Members that shape the prompt of a chat and of a response in the same way."""


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["input_text", "output_text"]
    text: msgspec.Raw
    annotations: msgspec.Raw = _NULL
    logprobs: msgspec.Raw = _NULL


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "system", "developer", "assistant"]
    content: msgspec.Raw
    type: Literal["message"] = "message"
    status: Literal["completed"] | None = None  # what is not completed is continued
    id: str | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str
    parameters: dict[str, msgspec.Raw] | None = None
    description: str | None = None
    strict: bool | None = None


class _Kind(msgspec.Struct):
    type: str


_MADE_FUNCTIONS = frozenset({"custom", "namespace"})


class _Choice(msgspec.Struct):
    type: Literal["function"]
    name: str


class _Reasoning(msgspec.Struct):
    effort: Literal["none", "low", "medium", "high"] | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_choice = msgspec.json.Decoder(Literal["auto", "none", "required"] | _Choice).decode
_decode_reasoning = msgspec.json.Decoder(_Reasoning | None).decode


def as_chat(body: Body, of_chats: PromptMembers) -> Body | None:
    """The chat with the same prompt; None if only the engine knows how the prompt is made.

    `of_chats`: the members that shape the prompt of a chat.
    """
    if any(body.gives(name) for name in _UNKNOWABLE):
        return None
    if sum(map(body.values_in, ("input", "tools"))) > MAX_VALUES:
        return None
    if "truncation" in body and body.raw("truncation") != b'"disabled"':
        return None
    try:
        put: dict[str, Any] = {
            "messages": [*_instructed(body), *_messages(body)],
            "add_special_tokens": True,  # a chat is rendered without them
        }
        if (effort := _effort(body)) is not None:
            put["reasoning_effort"] = effort
        if tools := _tools(body):
            put["tools"] = tools
            put["tool_choice"] = _choice(body)
    except _UNREADABLE:
        return None
    shaping = of_chats.asked | of_chats.variables | of_chats.rarely
    return body.changed(put, (_OF_RESPONSES | _IGNORED | shaping) - _SHARED)


def _tools(body: Body) -> list[dict[str, Any]]:
    functions = []
    for raw in _decode_list(body.view("tools") or b"[]"):
        kind = _decode_kind(raw).type
        if kind in _MADE_FUNCTIONS:
            raise msgspec.DecodeError(f"vLLM makes functions of a tool of type {kind}")
        if kind == "function":  # no others are shown
            functions.append(_function(_decode_tool(raw)))
    if not functions and body.gives("tools") and body.raw("tools") != b"[]":
        raise msgspec.DecodeError("a list of no functions, which is not the same as none")
    return functions


def _function(tool: _Tool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    if tool.strict is not None:
        shown["strict"] = tool.strict
    return {"type": "function", "function": shown}


def _choice(body: Body) -> Any:
    choice = _decode_choice(body.view("tool_choice") or b'"auto"')
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice.name}}


def _effort(body: Body) -> str | None:
    read = _decode_reasoning(body.view("reasoning") or b"null")
    return None if read is None else read.effort


def _instructed(body: Body) -> list[dict[str, Any]]:
    instructions = body.view("instructions")
    if instructions is None or not body.gives("instructions") or bytes(instructions[:2]) == b'""':
        return []
    return [{"role": "system", "content": _text(instructions)}]


def _messages(body: Body) -> list[dict[str, Any]]:
    """The messages that vLLM makes of the input. Raises msgspec.DecodeError if it has anything else."""
    given = body.view("input") or memoryview(b"null")
    if bytes(given[:1]) == b'"':
        return [{"role": "user", "content": _text(given)}]
    return [{"role": message.role, "content": _content(message)} for message in _decode_messages(given)]


def _content(message: _Message) -> Any:
    content = memoryview(message.content)
    if bytes(content[:1]) == b'"':
        return _text(content)
    parts = _decode_parts(content)
    if message.role != "assistant":
        return [{"type": "text", "text": _text(memoryview(part.text))} for part in parts]
    if len(parts) != 1 or parts[0].type != "output_text":
        raise msgspec.DecodeError("vLLM takes one part of what an assistant said")
    return _text(memoryview(parts[0].text))


def _text(view: memoryview) -> msgspec.Raw:
    if bytes(view[:1]) != b'"':
        raise msgspec.DecodeError("a text is expected")
    return msgspec.Raw(view)
