"""A body that is no request at all is refused with the validator's findings, before anything else sees it."""

import json
from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine

JSON = {"Content-Type": "application/json"}
Finding = tuple[str, str, str, str]

STRING, LIST = "Input should be a valid string", "Input should be a valid list"
INTEGER_FROM_TEXT = "Input should be a valid integer, unable to parse string as an integer"
NUMBER_FROM_TEXT = "Input should be a valid number, unable to parse string as a number"


def finding(kind: str, place: str, message: str, found: str, context: str = "") -> str:
    more = f", 'ctx': {context}" if context else ""
    return f"{{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{found}'{more}}}"


def error(*findings: str, param: str | None) -> dict[str, Any]:
    label = "error" if len(findings) == 1 else "errors"
    message = f"{len(findings)} validation {label}:\n  " + "\n  ".join(findings)
    return {"error": {"message": message, "type": "Bad Request", "param": param, "code": 400}}


MISFITS: list[tuple[str, dict[str, Any], list[str], str]] = [
    (
        COMPLETIONS,
        {"max_tokens": "x"},
        [finding("int_parsing", "body.max_tokens", INTEGER_FROM_TEXT, "x")],
        "body.max_tokens",
    ),
    (
        COMPLETIONS,
        {"max_tokens": 1.5},
        [
            finding(
                "int_from_float",
                "body.max_tokens",
                "Input should be a valid integer, got a number with a fractional part",
                "1.5",
            )
        ],
        "body.max_tokens",
    ),
    (COMPLETIONS, {"n": "x"}, [finding("int_parsing", "body.n", INTEGER_FROM_TEXT, "x")], "body.n"),
    (
        COMPLETIONS,
        {"n": None},
        [finding("int_type", "body.n", "Input should be a valid integer", "None")],
        "body.n",
    ),
    (
        COMPLETIONS,
        {"temperature": "hot"},
        [finding("float_parsing", "body.temperature", NUMBER_FROM_TEXT, "hot")],
        "body.temperature",
    ),
    (
        COMPLETIONS,
        {"seed": 2**70},
        [
            finding(
                "less_than_equal",
                "body.seed",
                f"Input should be less than or equal to {2**63 - 1}",
                str(2**70),
                f"{{'le': {2**63 - 1}}}",
            )
        ],
        "body.seed",
    ),
    (
        COMPLETIONS,
        {"stop": 5},
        [
            finding("string_type", "body.stop", "Input should be a valid string", "5"),
            finding("list_type", "body.stop", "Input should be a valid list", "5"),
        ],
        "body.stop",
    ),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"include_usage": "zzz"}},
        [
            finding(
                "bool_parsing",
                "body.stream_options.include_usage",
                "Input should be a valid boolean, unable to interpret input",
                "zzz",
            )
        ],
        "body.stream_options.include_usage",
    ),
    (
        COMPLETIONS,
        {"prompt": [-1]},
        [
            finding(
                "greater_than_equal",
                "body.prompt.0",
                "Input should be greater than or equal to 0",
                "-1",
                "{'ge': 0}",
            ),
            finding("list_type", "body.prompt.0", "Input should be a valid list", "-1"),
            finding("string_type", "body.prompt", "Input should be a valid string", "<list of 1 items>"),
            finding("string_type", "body.prompt.0", "Input should be a valid string", "-1"),
        ],
        "body.prompt.0",
    ),
    (
        COMPLETIONS,
        {"kv_transfer_params": "x"},
        [finding("dict_type", "body.kv_transfer_params", "Input should be a valid dictionary", "x")],
        "body.kv_transfer_params",
    ),
    (
        COMPLETIONS,
        {"vllm_xargs": {"a": {"b": 1}}},
        [
            finding(
                "string_type", "body.vllm_xargs.a", "Input should be a valid string", "<dict of 1 items>"
            ),
            finding("int_type", "body.vllm_xargs.a", "Input should be a valid integer", "<dict of 1 items>"),
            finding("float_type", "body.vllm_xargs.a", "Input should be a valid number", "<dict of 1 items>"),
            finding("list_type", "body.vllm_xargs.a", "Input should be a valid list", "<dict of 1 items>"),
        ],
        "body.vllm_xargs.a",
    ),
    (
        COMPLETIONS,
        {"request_id": 5},
        [finding("string_type", "body.request_id", "Input should be a valid string", "5")],
        "body.request_id",
    ),
    (
        COMPLETIONS,
        {"stop": ["q"] * 20},
        [
            finding("string_type", "body.stop", "Input should be a valid string", "<list of 20 items>"),
            finding(
                "too_long",
                "body.stop",
                "List should have at most 4 items after validation, not 20",
                "<list of 20 items>",
                "{'field_type': 'List', 'max_length': 4, 'actual_length': 20}",
            ),
        ],
        "body.stop",
    ),
    (COMPLETIONS, {"user": 5}, [finding("string_type", "body.user", STRING, "5")], "body.user"),
    (
        COMPLETIONS,
        {"priority": "x"},
        [finding("int_parsing", "body.priority", INTEGER_FROM_TEXT, "x")],
        "body.priority",
    ),
    (
        COMPLETIONS,
        {"length_penalty": "x"},
        [finding("float_parsing", "body.length_penalty", NUMBER_FROM_TEXT, "x")],
        "body.length_penalty",
    ),
    (COMPLETIONS, {"bad_words": "a"}, [finding("list_type", "body.bad_words", LIST, "a")], "body.bad_words"),
    (CHAT, {"messages": [], "tools": "x"}, [finding("list_type", "body.tools", LIST, "x")], "body.tools"),
    (
        CHAT,
        {"messages": [], "tools": [{"type": "function"}]},
        [finding("missing", "body.tools.0.function", "Field required", "<dict of 1 items>")],
        "body.tools.0.function",
    ),
    (
        CHAT,
        {"messages": [], "tools": [{"type": "function", "function": {}}]},
        [finding("missing", "body.tools.0.function.name", "Field required", "<dict of 0 items>")],
        "body.tools.0.function.name",
    ),
    (
        CHAT,
        {"messages": [], "chat_template_kwargs": "x"},
        [finding("dict_type", "body.chat_template_kwargs", "Input should be a valid dictionary", "x")],
        "body.chat_template_kwargs",
    ),
    (
        "/tokenize",
        {"prompt": 5},
        [
            finding("string_type", "body.prompt", STRING, "5"),
            finding("missing", "body.messages", "Field required", "<dict of 3 items>"),
        ],
        "body.prompt",
    ),
    (
        CHAT,
        {"messages": "x"},
        [finding("list_type", "body.messages", "Input should be a valid list", "x")],
        "body.messages",
    ),
    (
        CHAT,
        {},
        [finding("missing", "body.messages", "Field required", "<dict of 2 items>")],
        "body.messages",
    ),
    (
        "/tokenize",
        {},
        [
            finding("missing", "body.prompt", "Field required", "<dict of 2 items>"),
            finding("missing", "body.messages", "Field required", "<dict of 2 items>"),
        ],
        "body.prompt",
    ),
    (
        "/detokenize",
        {},
        [finding("missing", "body.tokens", "Field required", "<dict of 2 items>")],
        "body.tokens",
    ),
    (
        "/detokenize",
        {"tokens": [-1]},
        [
            finding(
                "greater_than_equal",
                "body.tokens.0",
                "Input should be greater than or equal to 0",
                "-1",
                "{'ge': 0}",
            )
        ],
        "body.tokens.0",
    ),
]


@pytest.mark.parametrize(("path", "fields", "findings", "param"), MISFITS)
async def test_a_wrong_type_is_described(
    engine: Engine, path: str, fields: dict[str, Any], findings: list[str], param: str
) -> None:
    base: dict[str, Any] = {"model": "tiny", "max_tokens": 4}
    if path == COMPLETIONS:
        base["prompt"] = "x"
    answer = await engine.ask(base | fields, path)
    assert (answer.status, answer.json) == (400, error(*findings, param=param))


NO_OBJECT = finding(
    "model_attributes_type",
    "body",
    "Input should be a valid dictionary or object to extract fields from",
    "<list of 1 items>",
)
MISSING = finding("missing", "body", "Field required", "None")
OTHER_TYPE = "Unsupported Media Type: Only 'application/json' is allowed"


def broken(place: str) -> str:
    return finding(
        "json_invalid", place, "JSON decode error", "<dict of 0 items>", "{'error': 'Expecting value'}"
    )


BODIES: list[tuple[bytes, dict[str, str], dict[str, Any]]] = [
    (b'{"model": "tiny", "prompt": ', JSON, error(broken("body.28"), param="body.28")),
    (b"nonsense", JSON, error(broken("body.0"), param="body.0")),
    (b"", JSON, error(MISSING, param="body")),
    (b"null", JSON, error(MISSING, param="body")),
    (b"[1]", JSON, error(NO_OBJECT, param="body")),
    (b'{"prompt": "x"}', {"Content-Type": "text/plain"}, error(OTHER_TYPE, param=None)),
    (b'{"prompt": "x"}', {}, error(OTHER_TYPE, param=None)),
]


@pytest.mark.parametrize(("data", "headers", "expected"), BODIES)
async def test_a_body_that_is_no_request_is_refused(
    engine: Engine, data: bytes, headers: dict[str, str], expected: dict[str, Any]
) -> None:
    status, _, body = await engine.send("POST", COMPLETIONS, data, headers)
    assert (status, json.loads(body)) == (400, expected)


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b'{"prompt": "x", "max_tokens": 2}', {"Content-Type": "application/json; charset=utf-8"}),
        (b'{"prompt": "x", "max_tokens": 9, "max_tokens": 2}', JSON),
        (b'{"prompt": "x", "max_tokens": 2, "unheard_of": {"a": 1}}', JSON),
        (b'{"prompt": "x", "max_tokens": 2, "stream": null, "stop": null, "model": null}', JSON),
    ],
)
async def test_an_odd_body_is_served(engine: Engine, data: bytes, headers: dict[str, str]) -> None:
    status, _, body = await engine.send("POST", COMPLETIONS, data, headers)
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("value", ["yes", 1, "true"])
async def test_what_means_yes_streams(engine: Engine, value: Any) -> None:
    answer = await engine.served({"prompt": "x", "max_tokens": 2, "ignore_eos": True, "stream": value})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.complete
