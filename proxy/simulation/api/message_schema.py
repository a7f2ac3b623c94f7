"""Invariant: a value that may be of several classes is tried as each of them, in vLLM's order, and all their
complaints are reported.

The unions of a request body: messages by role, response formats, the two forms of /tokenize.
"""

from typing import Any

from proxy.simulation.api.schema import (
    Problems,
    Rule,
    any_of,
    boolean,
    iterable,
    list_of,
    literal,
    mapping,
    named,
    nullable,
    record,
    string,
    typed_dict,
    whatever,
)

_text = any_of(string, iterable)
_CLASSES: dict[str, Rule] = {
    role: typed_dict({"content": _text, "role": literal(role)}, ("content", "role"))
    for role in ("developer", "system", "user")
} | {
    "assistant": typed_dict({"role": literal("assistant"), "content": nullable(_text)}, ("role",)),
    "tool": typed_dict(
        {"content": _text, "role": literal("tool"), "tool_call_id": string},
        ("content", "role", "tool_call_id"),
    ),
    "function": typed_dict(
        {"content": nullable(string), "name": string, "role": literal("function")},
        ("content", "name", "role"),
    ),
}
_any_message = any_of(
    *(named(f"ChatCompletion{role.capitalize()}MessageParam", rule) for role, rule in _CLASSES.items()),
    named(
        "CustomChatCompletionMessageParam",
        typed_dict({"role": string, "content": any_of(string, list_of(whatever))}, ("role",)),
    ),
    named("Message", record({"author": whatever, "content": list_of(whatever)}, ("author", "content"))),
)


def message(value: Any, loc: str, problems: Problems) -> Any:
    """A message of a conversation. An unknown role is accepted if the content is a text or a list."""
    role = value.get("role") if isinstance(value, dict) else None
    if isinstance(role, str) and (rule := _CLASSES.get(role)) is not None:
        own: Problems = []
        converted = rule(value, loc, own)
        if not own:
            return converted  # no earlier class could have taken it without a complaint
    return _any_message(value, loc, problems)


tool = record({"function": record({"name": string}, ("name",))}, ("function",))

_tag = literal("structural_tag")
response_format = any_of(
    record(
        {
            "type": literal("text", "json_object", "json_schema"),
            "json_schema": nullable(record({"name": string, "schema": nullable(mapping)}, ("name",))),
        },
        ("type",),
    ),
    record({"type": _tag, "format": whatever}, ("type", "format")),
    record({"type": _tag, "structures": whatever, "triggers": whatever}, ("type", "structures", "triggers")),
)

_tokenized = {
    "model": nullable(string),
    "add_special_tokens": boolean,
    "return_token_strs": nullable(boolean),
}
tokenize = any_of(
    record({"prompt": string} | _tokenized, ("prompt",)),
    record({"messages": list_of(message)} | _tokenized, ("messages",)),
)
