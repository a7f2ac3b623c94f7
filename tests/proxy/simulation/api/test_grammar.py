"""A stand-in says the shortest JSON that fits a schema."""

from typing import Any

import jsonschema
import pytest

from proxy.simulation.api.grammar import demanded, fitting

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
    {"type": ["null", "string"]},
    {"type": "integer", "minimum": 3},
    {"enum": ["x", "y"]},
    {"const": 7},
    {"anyOf": [{"type": "number"}, {"type": "null"}]},
    {"$defs": {"Kind": {"enum": [1, 2]}}, "type": "array", "items": {"$ref": "#/$defs/Kind"}, "minItems": 1},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_said_fits(schema: dict[str, Any]) -> None:
    jsonschema.validate(fitting(schema), schema)


def test_a_schema_without_an_end_is_left() -> None:
    assert fitting({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"})["next"]["next"]


def test_a_function_is_called_only_by_engines_that_can() -> None:
    look = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    body = {"tools": [look], "tool_choice": "required"}
    assert demanded(body) is None
    demand = demanded(body, calls=True)
    assert demand is not None
    assert demand.call is not None
    assert demand.text == '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    assert (demand.call.told(3), demand.call.told(len(demand.text))) == (None, "{}")
