"""Messages are answered as the chats that they become, in Anthropic's words, whole and in events."""

import json
from typing import Any

import pytest

from proxy.request.body import Body
from proxy.request.dialects import MESSAGES
from proxy.request.sse import events
from scripts.workshop.live.asking import CHAT
from scripts.workshop.live.words import prose
from tests.contract.asking import Engine
from tests.contract.pairs import PREFILL, Pair
from tests.contract.prompts import GREEDY
from tests.contract.shapes import assert_fits

PATH = "/v1/messages"
JSON = {"Content-Type": "application/json"}
Fields = dict[str, Any]

WHOLE = {
    "id": str,
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": str}],
    "model": "tiny",
    "stop_reason": "max_tokens",
    "usage": {
        "input_tokens": int,
        "output_tokens": 4,
        "cache_creation_input_tokens": int,
        "cache_read_input_tokens": int,
    },
}


def asked(seed: str, tokens: int = 4, /, **fields: Any) -> Fields:
    messages = [{"role": "user", "content": prose(30, seed)}]
    return GREEDY | {"messages": messages, "max_tokens": tokens} | fields


async def post(engine: Engine, body: Any, path: str = PATH) -> tuple[int, Any]:
    status, _, data = await engine.send("POST", path, json.dumps(body).encode(), JSON)
    return status, json.loads(data)


async def streamed(engine: Engine, body: Fields) -> list[Any]:
    """The data of the events of a stream, whose names are their types."""
    status, headers, data = await engine.send(
        "POST", PATH, json.dumps(body | {"stream": True}).encode(), JSON
    )
    assert status == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    told = []
    for event, raw in events(data):
        told.append(json.loads(raw))
        assert event.startswith(b"event: %b\ndata: {" % told[-1]["type"].encode())
    return told


async def test_an_answer_is_a_message(engine: Engine) -> None:
    status, answer = await post(engine, asked("a message"))
    assert status == 200
    assert_fits(answer, WHOLE)
    chat = await engine.served(asked("a message") | {"ignore_eos": True}, CHAT)
    assert answer["content"][0]["text"] == chat.text
    usage = answer["usage"]
    told = usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]
    assert told == chat.prompt_tokens


async def test_a_stream_has_events_with_names(engine: Engine) -> None:
    start, begin, *pieces, stop, delta, end = await streamed(engine, asked("a stream of messages"))
    message = {key: WHOLE[key] for key in ("id", "type", "role")} | {"content": [], "model": "tiny"}
    message |= {"stop_reason": None, "stop_sequence": None}
    usage = {"input_tokens": int, "output_tokens": 0}
    assert_fits(start, {"type": "message_start", "message": message | {"usage": usage}})
    block = {"type": "text", "text": ""}
    assert_fits(begin, {"type": "content_block_start", "content_block": block, "index": 0})
    for piece in pieces:
        part = {"type": "text_delta", "text": str}
        assert_fits(piece, {"type": "content_block_delta", "delta": part, "index": 0})
    assert_fits(stop, {"type": "content_block_stop", "index": 0})
    ending = {"stop_reason": "max_tokens", "stop_sequence": None}
    assert_fits(delta, {"type": "message_delta", "delta": ending, "usage": WHOLE["usage"]})
    assert_fits(end, {"type": "message_stop"})
    _, answer = await post(engine, asked("a stream of messages"))
    assert "".join(piece["delta"]["text"] for piece in pieces) == answer["content"][0]["text"]


async def test_a_stop_sequence_is_told(engine: Engine) -> None:
    _, answer = await post(engine, asked("a sequence", 12))
    word = answer["content"][0]["text"].split()[1]
    _, answer = await post(engine, asked("a sequence", 12, stop_sequences=[word]))
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", word)


RICH: list[Fields] = [
    {"system": "be brief"},
    {"system": [{"type": "text", "text": "be"}, {"type": "text", "text": " brief"}]},
    {"system": [{"type": "text", "text": "x-anthropic-billing-header: 7"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I shall."},
                    {"type": "tool_use", "id": "t", "name": "look", "input": {"é": [1.0, None], "n": 10**20}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "1"}]},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ]
    },
    {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
]


@pytest.mark.parametrize("fields", RICH, ids=str)
async def test_messages_have_the_tokens_of_the_chat_that_they_are_taken_for(
    engine: Engine, fields: Fields
) -> None:
    body = asked("rendered") | fields
    chat = MESSAGES.prompt(Body.parse(json.dumps(body).encode()))
    assert chat is not None
    question = {name: json.loads(chat[1].raw(name) or b"") for name in ("model", "messages")}
    status, tokens = await post(engine, question, "/tokenize")
    counted = {name: body[name] for name in body.keys() - {"temperature", "max_tokens"}}
    assert (status, await post(engine, counted, f"{PATH}/count_tokens")) == (
        200,
        (
            200,
            {
                "input_tokens": tokens["count"],
                "context_management": {"original_input_tokens": tokens["count"]},
            },
        ),
    )
    _, answer = await post(engine, body)
    usage = answer["usage"]
    assert (
        usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]
        == (tokens["count"])
    )


async def test_system_messages_stay_where_the_template_takes_them(engine: Engine) -> None:
    messages = [{"role": role, "content": f"I am {role}"} for role in ("user", "system", "user")]
    _, tokens = await post(engine, {"messages": messages}, "/tokenize")
    _, counted = await post(engine, {"model": "tiny", "messages": messages}, f"{PATH}/count_tokens")
    assert counted["input_tokens"] == tokens["count"]


BLOCK = [{"role": "user", "content": [{"type": "text", "text": 1}]}]
TYPES = (
    "'text', 'image', 'tool_use', 'tool_result', 'tool_reference', 'thinking', 'redacted_thinking', "
    "'tool_addition' or 'tool_removal'"
)
WRONG: list[tuple[Fields, str, str]] = [
    ({"max_tokens": None}, "body.max_tokens", "Input should be a valid integer"),
    ({"max_tokens": 0}, "body.max_tokens", "Value error, max_tokens must be positive"),
    ({"max_tokens": "x"}, "body.max_tokens", "unable to parse string as an integer"),
    ({"model": ""}, "body.model", "Value error, Model is required"),
    ({"messages": None}, "body.messages", "Input should be a valid list"),
    ({"messages": [{"role": "x", "content": ""}]}, "body.messages.0.role", "'user', 'assistant' or 'system'"),
    ({"messages": [{"role": "user"}]}, "body.messages.0.content", "Field required"),
    ({"messages": BLOCK}, "body.messages.0.content", "Input should be a valid string"),
    ({"system": [{"type": "zz"}]}, "body.system", TYPES),
    ({"stream": "maybe"}, "body.stream", "Input should be a valid boolean, unable to interpret input"),
    ({"stop_sequences": ["a"] * 5}, "body.stop_sequences", "at most 4 items after validation, not 5"),
    ({"thinking": {"type": "q"}}, "body.thinking", "Input tag 'q' found using 'type' does not match any"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        "body.thinking.enabled.budget_tokens",
        "Input should be greater than or equal to 1024",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "body",
        "Value error, thinking.budget_tokens must be less than max_tokens",
    ),
    ({"tools": [{"name": "x"}]}, "body.tools.0.input_schema", "Field required"),
    (
        {"tool_choice": {"type": "tool"}},
        "body.tool_choice",
        "tool_choice.name is required when type is 'tool'",
    ),
    (
        {"tool_choice": {"type": "q"}},
        "body.tool_choice.type",
        "Input should be 'auto', 'any', 'tool' or 'none'",
    ),
    ({"temperature": "hot"}, "body.temperature", "unable to parse string as a number"),
    (
        {"output_config": {"effort": "q"}},
        "body.output_config.effort",
        "'low', 'medium', 'high', 'xhigh' or 'max'",
    ),
]


@pytest.mark.parametrize(("fields", "param", "words"), WRONG, ids=str)
async def test_a_body_that_cannot_be_read_is_refused_in_the_words_of_all_routes(
    engine: Engine, fields: Fields, param: str, words: str
) -> None:
    status, answer = await post(engine, asked("wrong") | fields)
    assert status == 400
    assert_fits(answer, {"error": {"message": str, "type": "Bad Request", "param": param, "code": 400}})
    assert words in answer["error"]["message"]


NO_BUDGET = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser "
    "and/or --reasoning-config to use thinking_token_budget."
)
TOO_MANY = (
    "max_completion_tokens=100000 cannot be greater than max_model_len=2048. Please request fewer output "
    "tokens. (parameter=max_completion_tokens, value=100000)"
)


@pytest.mark.parametrize(
    ("fields", "status", "kind", "message"),
    [
        (
            {"model": "nope"},
            404,
            "NotFoundError",
            "The model `nope` does not exist. Valid aliases: tiny.",
        ),
        (
            {"max_tokens": 1100, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            400,
            "BadRequestError",
            NO_BUDGET,
        ),
        (
            {"messages": []},
            400,
            "BadRequestError",
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ),
        (
            {"top_p": 7},
            400,
            "BadRequestError",
            "top_p must be in (0, 1], got 7.0. (parameter=top_p, value=7.0)",
        ),
        (
            {"max_tokens": 100_000},
            400,
            "BadRequestError",
            TOO_MANY,
        ),
        (
            {"tools": [{"name": "f", "input_schema": {}}]},
            400,
            "BadRequestError",
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        ),
    ],
)
async def test_what_was_read_is_refused_in_anthropics_words(
    engine: Engine, fields: Fields, status: int, kind: str, message: str
) -> None:
    told = {"type": "error", "error": {"type": kind, "message": message}}
    assert await post(engine, asked("refused") | fields) == (status, told)


@pytest.mark.parametrize("stream", [False, True])
async def test_two_legs_say_what_one_engine_says(pair: Pair, stream: bool) -> None:
    body = asked(f"two legs {stream}", 9)
    status, first = await post(pair.prefill, body | {"max_tokens": 1, "kv_transfer_params": PREFILL})
    assert status == 200
    params = {"kv_transfer_params": first.pop("kv_transfer_params")}
    assert params["kv_transfer_params"]["do_remote_prefill"]
    usage = {"output_tokens": 1, "cache_read_input_tokens": 0}
    assert usage.items() <= first["usage"].items()
    if stream:
        told = await streamed(pair.decode, body | params)
        said = [each["delta"]["text"] for each in told if each["type"] == "content_block_delta"]
    else:
        _, answer = await post(pair.decode, body | params)
        said = [answer["content"][0]["text"]]
    _, alone = await post(pair.plain, body)
    assert "".join(said) == alone["content"][0]["text"]


async def test_blocks_that_are_gone_fail_a_stream_by_an_event(pair: Pair) -> None:
    lost = PREFILL | {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]]}
    lost |= {
        "remote_engine_id": "none",
        "remote_host": "127.0.0.1",
        "remote_port": 1,
        "remote_request_id": "x",
    }
    lost |= {"tp_size": 1}
    told = await streamed(pair.decode, asked("lost blocks") | {"kv_transfer_params": lost})
    *before, last = told
    assert {each["type"] for each in before} <= {"message_start"}
    assert_fits(last, {"type": "error", "error": {"type": "internal_error", "message": str}})
