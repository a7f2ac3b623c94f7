"""A value that fits none of its possible classes is refused with what each of them finds."""

from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT
from tests.contract.asking import Engine

STRING, ITERABLE = "Input should be a valid string", "Input should be iterable"
DICT, MODEL = (
    "Input should be a valid dictionary",
    "Input should be a valid dictionary or object to extract fields from",
)
SHOWN = 10


def found(kind: str, place: str, message: str, value: str) -> str:
    return f"{{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{value}'}}"


def no(words: str, place: str, value: str) -> str:
    """A word that should have been another."""
    message = f"Input should be {words}"
    return (
        f"{{'type': 'literal_error', 'loc': '{place}', 'msg': \"{message}\", 'input': '{value}', "
        f"'ctx': {{'expected': \"{words}\"}}}}"
    )


def param(role: str) -> str:
    return f"body.messages.0.ChatCompletion{role.capitalize()}MessageParam"


def no_role(role: str, value: str) -> str:
    return no(f"'{role}'", f"{param(role)}.role", value)


def gap(place: str, items: int) -> str:
    return found("missing", place, "Field required", f"<dict of {items} items>")


CUSTOM, HARMONY = "body.messages.0.CustomChatCompletionMessageParam", "body.messages.0.Message"
ROLES = ["developer", "system", "user", "assistant", "tool", "function"]


def content(role: str, value: str) -> list[str]:
    place = f"{param(role)}.content"
    return [found("string_type", place, STRING, value), found("iterable_type", place, ITERABLE, value)]


MESSAGES: list[tuple[Any, list[str], int]] = [
    (
        {"content": "x"},
        [
            *(gap(f"{param(role)}.role", 1) for role in ROLES[:5]),
            gap(f"{param('tool')}.tool_call_id", 1),
            gap(f"{param('function')}.name", 1),
            gap(f"{param('function')}.role", 1),
            gap(f"{CUSTOM}.role", 1),
            gap(f"{HARMONY}.author", 1),
        ],
        11,
    ),
    (
        {"role": 5, "content": "x"},
        [
            *(no_role(role, "5") for role in ROLES[:5]),
            gap(f"{param('tool')}.tool_call_id", 2),
            gap(f"{param('function')}.name", 2),
            no_role("function", "5"),
            found("string_type", f"{CUSTOM}.role", STRING, "5"),
            gap(f"{HARMONY}.author", 2),
        ],
        11,
    ),
    (
        {"role": "user", "content": 5},
        [
            *content("developer", "5"),
            no_role("developer", "user"),
            *content("system", "5"),
            no_role("system", "user"),
            *content("user", "5"),
            no_role("assistant", "user"),
            content("assistant", "5")[0],
        ],
        22,
    ),
    (
        {"role": "user", "content": None},
        [
            *content("developer", "None"),
            no_role("developer", "user"),
            *content("system", "None"),
            no_role("system", "user"),
            *content("user", "None"),
            no_role("assistant", "user"),
            content("tool", "None")[0],
        ],
        19,
    ),
    (
        "x",
        [
            *(found("dict_type", param(role), DICT, "x") for role in ROLES),
            found("dict_type", CUSTOM, DICT, "x"),
            found("model_attributes_type", HARMONY, MODEL, "x"),
        ],
        8,
    ),
]


def error(shown: list[str], count: int) -> dict[str, Any]:
    lines = [f"{count} validation errors:", *shown]
    if count > len(shown):
        lines.append(f"...and {count - len(shown)} more errors")
    place = shown[0].split("'loc': '")[1].split("'")[0]
    return {"error": {"message": "\n  ".join(lines), "type": "Bad Request", "param": place, "code": 400}}


@pytest.mark.parametrize(("message", "shown", "count"), MESSAGES)
async def test_a_message_is_tried_as_every_kind(
    engine: Engine, message: Any, shown: list[str], count: int
) -> None:
    assert len(shown) == min(count, SHOWN)
    answer = await engine.ask({"model": "tiny", "messages": [message]}, CHAT)
    assert (answer.status, answer.json) == (400, error(shown, count))


FORMAT = "body.response_format"
SCHEMA = f"{FORMAT}.json_schema"


def tags(value: str | None, items: int) -> list[str]:
    """What the two other forms find, whose type is another."""
    kind = gap(f"{FORMAT}.type", items) if value is None else no("'structural_tag'", f"{FORMAT}.type", value)
    gaps = [gap(f"{FORMAT}.{name}", items) for name in ("format", "structures", "triggers")]
    return [kind, gaps[0], kind, *gaps[1:]]


FORMATS: list[tuple[Any, list[str]]] = [
    (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": "no"}},
        [found("dict_type", f"{SCHEMA}.schema", DICT, "no"), *tags("json_schema", 2)],
    ),
    (
        {"type": "json_schema", "json_schema": {"schema": {}}},
        [gap(f"{SCHEMA}.name", 1), *tags("json_schema", 2)],
    ),
    (
        {"type": "zzz"},
        [no("'text', 'json_object' or 'json_schema'", f"{FORMAT}.type", "zzz"), *tags("zzz", 1)],
    ),
    ({}, [gap(f"{FORMAT}.type", 0), *tags(None, 0)]),
    ("json", [found("model_attributes_type", FORMAT, MODEL, "json")] * 3),
]


@pytest.mark.parametrize(("form", "findings"), FORMATS)
async def test_a_response_format_is_tried_in_every_form(
    engine: Engine, form: Any, findings: list[str]
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "response_format": form}
    answer = await engine.ask(body, CHAT)
    assert (answer.status, answer.json) == (400, error(findings, len(findings)))
