"""Invariant: what a grammar asks for is said, and nothing else: the shortest JSON that fits it.

vLLM lets a grammar choose among the tokens; a stand-in has no choice to make, so each schema has one answer.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.simulation.api.errors import BadRequestError

_OF_TYPES: Mapping[str, Any] = {
    "string": "",
    "integer": 0,
    "number": 0,
    "boolean": False,
    "null": None,
    "array": [],
}
_CALL = re.compile(r'<tool_call>\n\{"name": "([^"]+)", "arguments": (.*)\}\n</tool_call>', re.DOTALL)
_DEPTH = 16
"""Schemas that refer to themselves have no end."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function, as hermes models write it."""

    name: str
    arguments: str

    @property
    def head(self) -> str:
        """The text before the arguments."""
        return f'<tool_call>\n{{"name": "{self.name}", "arguments": '

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.head}{self.arguments}}}\n</tool_call>"

    def told(self, length: int) -> str | None:
        """The arguments among the first characters of the text; None as long as the name is not complete."""
        if length < len(self.head):
            return None
        return self.arguments[: length - len(self.head)]


@dataclass(frozen=True, slots=True)
class Demand:
    """The one text that a request leaves, and the call that it is, if it is one."""

    text: str
    call: Call | None = None


def demanded(body: Mapping[str, Any], *, calls: bool = False) -> Demand | None:
    """What a request leaves no choice about; None if its answer is free. `calls`: whether text that is a call
    becomes one. Raises BadRequestError for a schema that is none.
    """
    if calls and (function := _wanted(body)) is not None:
        call = Call(function["name"], _text(_shortest(function.get("parameters") or {})))
        return Demand(call.text, call)
    if choices := (body.get("structured_outputs") or {}).get("choice"):
        return Demand(choices[0], _written(choices[0]) if calls and body.get("tools") else None)
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return Demand(_text(_shortest((wanted.get("json_schema") or {}).get("schema") or {})))
    return Demand("{}") if wanted.get("type") == "json_object" else None


def _shortest(schema: Mapping[str, Any]) -> Any:
    try:
        return fitting(schema)
    except (AttributeError, LookupError, TypeError):
        raise BadRequestError("Failed to transform json schema into a grammar") from None


def _wanted(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function that a chat has to call; of several the first."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in tools or ()]
    if choice == "required" and functions:
        return functions[0]
    if isinstance(choice, Mapping):
        return next(function for function in functions if function["name"] == choice["function"]["name"])
    return None


def _written(text: str) -> Call | None:
    found = _CALL.fullmatch(text)
    return Call(found[1], found[2]) if found else None


def fitting(schema: Any, definitions: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """The shortest value that fits a JSON schema, by the words that clients' models are made of."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return None
    definitions = definitions or schema.get("$defs") or {}
    if "$ref" in schema:
        return fitting(definitions.get(schema["$ref"].rpartition("/")[2]), definitions, depth + 1)
    for name in ("enum", "anyOf", "oneOf", "allOf"):
        if schema.get(name):
            first = schema[name][0]
            return first if name == "enum" else fitting(first, definitions, depth + 1)
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        items = range(schema.get("minItems") or 0)
        return [fitting(schema.get("items"), definitions, depth + 1) for _ in items]
    if kind != "object":
        return schema.get("minimum", _OF_TYPES.get(kind))
    members, required = schema.get("properties") or {}, schema.get("required") or ()
    return {name: fitting(members.get(name), definitions, depth + 1) for name in members if name in required}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
