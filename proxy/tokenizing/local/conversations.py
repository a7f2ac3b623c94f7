"""Messages become what vLLM's templates see, word for word; a message that vLLM may read in several ways is
not read.

The engine validates messages against a union of classes before it renders them, and keeps only the members of
the class that fits. What is accepted here reads the same in every class that could fit it; for the rest an
engine is asked.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]


class UnclearError(ValueError):
    """It is not certain how an engine reads this."""


_MEMBERS = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls", "reasoning", "reasoning_content"}),
}
_OTHER_ROLES = frozenset({"role", "content", "name"})
_NEVER_SHOWN = frozenset({"refusal", "audio", "annotations", "function_call"})
"""Members of an assistant's message that clients send back as they got them; vLLM ignores all of them."""
_STRIPPED = "x-anthropic-billing-header"
"""The beginning of a first line that vLLM drops from system messages."""


def conversation_of(messages: Sequence[Any], *, parts: bool, knows_developer: bool) -> list[Message]:
    """The messages as a template sees them. Raises UnclearError."""
    conversation = [_message(message, parts=parts) for message in messages]
    if not conversation:
        raise UnclearError("no messages")
    if not knows_developer and any(message["role"] == "developer" for message in conversation):
        return _one_system_message([_as_system(message) for message in conversation])
    return conversation


def _message(message: Any, *, parts: bool) -> Message:
    if (
        not isinstance(message, dict)
        or not isinstance(role := message.get("role"), str)
        or role == "function"
    ):
        raise UnclearError("role")
    extra = message.keys() - _MEMBERS.get(role, _OTHER_ROLES)
    given = {name for name, value in message.items() if value is not None}
    if role == "assistant" and "reasoning" not in given and "reasoning_content" not in given:
        extra -= _NEVER_SHOWN
    if extra:
        raise UnclearError("member")
    content = _content(message.get("content"), role, parts=parts)
    shown: Message = {"role": role, "content": content}
    if role == "assistant":
        shown |= _of_assistant(message)
    elif role == "tool":
        if not isinstance(message.get("tool_call_id"), str) or message.get("content") is None:
            raise UnclearError("tool message")
        shown["tool_call_id"] = message["tool_call_id"]
        if parts:
            if any(map(is_stub, content)):
                raise UnclearError("media of a tool")
            shown["content"] = "\n".join(part["text"] for part in content)
    elif "content" not in given:
        raise UnclearError("content")
    if "name" in message:
        if not isinstance(message["name"], str):
            raise UnclearError("name")
        shown["name"] = message["name"]
    if role == "developer":
        shown["tools"] = None
    return shown


def _content(content: Any, role: str, *, parts: bool) -> Any:
    if isinstance(content, list) and role in _MEMBERS and content and all(map(_is_read_late, content)):
        raise UnclearError("refused by vLLM 0.32")
    if isinstance(content, str):
        content = [content]
    shown = [] if content is None else _parts(content)
    if role == "system" and any(part.get("text", "").startswith(_STRIPPED) for part in shown):
        raise UnclearError("stripped line")
    if parts:
        return shown
    if any(map(is_stub, shown)):
        raise UnclearError("media in a text")
    return "\n".join(part["text"] for part in shown if part["text"])  # vLLM drops empty parts, of texts only


MEDIA_STUBS = ("image", "audio", "video")
"""The types of the parts that stand for media. Templates see none of their data, only members that vLLM does
not know."""

_TEXT_OF = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The member that has the text, for each type of part that vLLM takes as text."""


def _is_read_late(part: Any) -> bool:
    """Whether vLLM 0.32 finds out too late that its own class has no such part, if all parts are of this
    sort.
    """
    return isinstance(part, str) or (
        isinstance(part, dict) and part.get("type") in {"input_text", "output_text"}
    )


def is_stub(part: Any) -> bool:
    """Whether a content part stands for media."""
    return isinstance(part, dict) and part.get("type") in MEDIA_STUBS


def _parts(content: Any) -> list[Message]:
    if not isinstance(content, list):
        raise UnclearError("content")
    return [part if is_stub(part) else {"type": "text", "text": _text_of(part)} for part in content]


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    where = _TEXT_OF.get(str(part.get("type"))) if isinstance(part, dict) else None
    if where is None or part.keys() != {"type", where} or not isinstance(part[where], str):
        raise UnclearError("part")
    text: str = part[where]
    return text


def _of_assistant(message: Message) -> Message:
    shown: Message = {}
    if (calls := message.get("tool_calls")) is not None:
        if not isinstance(calls, list):
            raise UnclearError("tool calls")
        if calls:
            shown["tool_calls"] = [_call(call) for call in calls]
    reasoning = message.get("reasoning")
    reasoning = message.get("reasoning_content") if reasoning is None else reasoning
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise UnclearError("reasoning")
        shown["reasoning"] = shown["reasoning_content"] = reasoning
    return shown


def _call(call: Any) -> Message:
    """A tool call as templates see it: members in the order of their class, arguments parsed."""
    function = call.get("function") if isinstance(call, dict) else None
    if (
        not isinstance(function, dict)
        or call.keys() != {"id", "function", "type"}
        or function.keys() != {"arguments", "name"}
        or call["type"] != "function"
        or not all(isinstance(value, str) for value in (call["id"], *function.values()))
    ):
        raise UnclearError("tool call")
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    shown = arguments if isinstance(arguments, dict) else {}
    return {"id": call["id"], "function": {"arguments": shown, "name": function["name"]}, "type": "function"}


def _as_system(message: Message) -> Message:
    if message["role"] != "developer":
        return message
    return {name: value for name, value in message.items() if name != "tools"} | {"role": "system"}


def _one_system_message(conversation: list[Message]) -> list[Message]:
    """Join all later system messages to the first one, as vLLM does for developers' messages."""
    system = [message for message in conversation if message["role"] == "system"]
    if len(system) == 1 and conversation[0] is system[0]:
        return conversation
    contents = [
        message["content"]
        if isinstance(message["content"], str)
        else "\n".join(part["text"] for part in message["content"])
        for message in system
    ]
    rest = [message for message in conversation if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, contents))}, *rest]


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """The tools as a template sees them. Raises UnclearError."""
    if not isinstance(tools, list) or not tools:
        raise UnclearError("tools")
    return [_tool(tool) for tool in tools]


_TYPES: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "description": (str, type(None)),
    "parameters": (dict, type(None)),
    "strict": (bool, type(None)),
}


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function" or "name" not in function:
        raise UnclearError("tool")
    if tool.keys() - {"type", "function"} or function.keys() - _TYPES.keys():
        raise UnclearError("tool")
    if any(not isinstance(value, _TYPES[name]) for name, value in function.items()):
        raise UnclearError("tool")
    shown = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shown["strict"] = function["strict"]
    return {"type": "function", "function": shown}
