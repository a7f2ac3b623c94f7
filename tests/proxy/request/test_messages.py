"""Messages become the chat that vLLM makes of them; their events and errors are read as Anthropic's are."""

import json
from typing import Any

import msgspec
import pytest

from proxy.errors import EngineFailedError, NotFoundError, RateLimitError, UnavailableError
from proxy.request.body import Body
from proxy.request.dialects import MESSAGES, Usage
from proxy.request.dialects.messages_as_chats import MAX_BYTES, as_chat
from proxy.request.judging import judge, wants_judging
from proxy.request.sse import events

HELLO = [{"role": "user", "content": "hello"}]
CACHED = {"cache_control": {"type": "ephemeral"}}


def body(**members: Any) -> Body:
    return Body.parse(json.dumps({"model": "tiny", "max_tokens": 9, "messages": HELLO} | members).encode())


def chat(**members: Any) -> Any:
    found = as_chat(body(**members))
    return None if found is None else json.loads(found.encoded())


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, {"messages": HELLO}),
        ({"system": "be brief"}, {"messages": [{"role": "system", "content": "be brief"}, *HELLO]}),
        (
            {
                "system": [
                    {"type": "text", "text": "a"} | CACHED,
                    {"type": "text", "text": "x-anthropic-billing-header: 1"},
                    {"type": "text", "text": "b"},
                ]
            },
            {"messages": [{"role": "system", "content": "ab"}, *HELLO]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"} | CACHED]}]},
            {"messages": HELLO},
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm", "signature": "s"},
                            {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1.0, "é": None}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}],
                            },
                            {"type": "text", "text": "and?"},
                            {"type": "image", "source": {"media_type": "image/png", "data": "AA"}},
                        ],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
                ]
            },
            {
                "messages": [
                    {
                        "role": "assistant",
                        "reasoning": "hm",
                        "tool_calls": [
                            {
                                "id": "t",
                                "type": "function",
                                "function": {"name": "f", "arguments": '{"x": 1.0, "\\u00e9": null}'},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "t", "content": "1\n2"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "and?"},
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                        ],
                    },
                    {"role": "tool", "tool_call_id": "t", "content": ""},
                ]
            },
        ),
        (
            {
                "tools": [{"name": "f", "input_schema": {"properties": {}}, "strict": None} | CACHED],
                "tool_choice": {"type": "tool", "name": "f"},
                "output_config": {"effort": "low"},
                "chat_template_kwargs": {"a": 1},
                "thinking": {"type": "adaptive"},
                "documents": ["no member of such a request"],
            },
            {
                "messages": HELLO,
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "description": None,
                            "parameters": {"properties": {}, "type": "object"},
                        },
                    }
                ],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "reasoning_effort": "low",
                "chat_template_kwargs": {"a": 1},
            },
        ),
    ],
)
def test_messages_become_the_chat_that_an_engine_makes_of_them(
    members: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert chat(**members) == {"model": "tiny"} | wanted


@pytest.mark.parametrize(
    "members",
    [
        {"thinking": {"type": "disabled"}},
        {"messages": [*HELLO, {"role": "system", "content": "by the template's rules"}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_addition"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "content": [{}]}]}]},
        {"tools": []},
        {"messages": 7},
        {"messages": [{"role": "user", "content": "x" * MAX_BYTES}]},
    ],
)
def test_a_chat_that_depends_on_more_than_the_request_is_unknown(members: dict[str, Any]) -> None:
    assert chat(**members) is None


@pytest.mark.parametrize(
    ("members", "whole"),
    [
        ({}, False),
        ({"max_tokens": "9", "stream": "no", "thinking": None}, False),
        ({"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, False),
        ({"max_tokens": 1024, "thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"max_tokens": 0}, True),
        ({"max_tokens": None}, True),
        ({"max_tokens": 1.5}, True),
        ({"stream": "perhaps"}, True),
    ],
)
def test_one_engine_refuses_what_a_prefill_leg_would_hide(members: dict[str, Any], whole: bool) -> None:
    asked = MESSAGES.read(body(**members))
    assert (asked.whole, asked.stream) == (whole, False)
    assert (MESSAGES.answer_limit(body(**members)) is None) is (body(**members).value("max_tokens") in {
        0, None, 1.5,
    })  # fmt: skip


def test_the_first_token_needs_no_budget_for_thinking() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    leg = json.loads(
        MESSAGES.first_token_only(body(max_tokens=2000, thinking=thinking, stream=True)).encoded()
    )
    assert leg == {"model": "tiny", "messages": HELLO, "max_tokens": 1, "stream": False} | {
        "thinking": {"type": "adaptive", "display": "omitted"}
    }
    for kept in ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1}):
        assert MESSAGES.first_token_only(body(thinking=kept)).value("thinking") == kept


def test_what_was_cached_counts_to_the_prompt() -> None:
    counted = {"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 64}
    usage = MESSAGES.usage(json.dumps({"usage": counted | {"cache_creation_input_tokens": 16}}).encode())
    assert (usage.prompt_tokens, usage.cached_tokens, usage.answer_tokens) == (85, 64, 3)
    assert MESSAGES.usage(b'{"usage": {"input_tokens": 5}}').cached_tokens is None
    for wrong in (b"no answer", b'{"usage": {"input_tokens": -1}}'):
        with pytest.raises(ValueError, match="the answer"):
            MESSAGES.usage(wrong)


def test_a_prompt_is_counted_as_its_prefill_leg_has() -> None:
    prefill = Usage(90, 0, created_tokens=80)
    counted = {"input_tokens": 90, "output_tokens": 3, "cache_creation_input_tokens": 0}
    right = {"input_tokens": 10, "output_tokens": 3, "cache_creation_input_tokens": 80}
    whole = MESSAGES.recounted(json.dumps({"type": "message", "usage": counted}).encode(), prefill)
    assert json.loads(whole) == {"type": "message", "usage": right}
    told = START + TEXT + event(type="message_delta", delta={}, usage=counted) + STOP
    wanted = [
        *map(json.loads, map(data_of, (START, TEXT))),
        {"type": "message_delta", "delta": {}, "usage": right},
    ]
    assert [json.loads(data) for _, data in events(MESSAGES.recounted(told, prefill))][:3] == wanted
    for same in (b'{"type":"message"}', b'{"usage":{"input_tokens":5}}', STOP):
        assert MESSAGES.recounted(same, prefill) == same
    assert MESSAGES.recounted(told, Usage(90, 0)) == told


def event(**members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (members["type"].encode(), json.dumps(members).encode())


START = event(type="message_start", message={"stop_reason": None, "content": []})
TEXT = event(type="content_block_delta", delta={"type": "text_delta", "text": 'say "message_stop"'})
STOP = event(type="message_stop")


def data_of(event_: bytes) -> bytes:
    return event_.partition(b"data: ")[2].strip()


def test_a_stream_begins_with_its_first_block_and_ends_with_its_last_event() -> None:
    assert [MESSAGES.produces(data_of(e)) for e in (START, event(type="ping"), TEXT, STOP)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert [MESSAGES.ends(data_of(e)) for e in (START, TEXT, STOP)] == [False, False, True]
    end = event(type="message_delta", delta={"stop_reason": "end_turn"}) + STOP
    assert not wants_judging(MESSAGES, TEXT)
    assert wants_judging(MESSAGES, end)
    assert judge(MESSAGES, TEXT + end + b"more") == (TEXT + end, None, True)


@pytest.mark.parametrize(
    ("kind", "status"), [("internal_error", 500), ("overloaded_error", 503), ("BadRequestError", 400)]
)
def test_an_error_is_an_event_of_its_own(kind: str, status: int) -> None:
    told = event(type="error", error={"type": kind, "message": "no"})
    assert wants_judging(MESSAGES, told)
    failure = MESSAGES.failure(data_of(told), told)
    assert failure is not None
    assert (failure.status, failure.body, failure.event) == (status, data_of(told), told)


def test_an_answer_without_a_reason_to_stop_was_given_up() -> None:
    dropped = event(type="message_delta", delta={"stop_reason": None})
    failure = MESSAGES.failure(data_of(dropped), dropped)
    assert failure is not None
    assert failure.status == 500
    assert failure.event.startswith(dropped + b"event: error\ndata: {")
    whole = MESSAGES.failure(b'{"type":"message","content":[]}')
    assert whole is not None
    assert json.loads(whole.body)["error"]["type"] == "api_error"
    assert MESSAGES.failure(b'{"type":"message","content":[],"stop_reason":"max_tokens"}') is None
    assert MESSAGES.failure(data_of(START), START) is None


def test_our_errors_have_anthropics_types() -> None:
    kinds = [
        MESSAGES.error(error)["error"]["type"]
        for error in (NotFoundError("x"), RateLimitError("x"), UnavailableError("x"), EngineFailedError("x"))
    ]
    assert kinds == ["not_found_error", "rate_limit_error", "overloaded_error", "api_error"]
    assert MESSAGES.error_event(EngineFailedError("x")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n'
    )


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({"type": "error", "error": {"type": "BadRequestError", "message": "no"}}, "BadRequestError", "no"),
        ({"error": {"message": "no", "type": "Bad Request", "code": 400}}, "invalid_request_error", "no"),
        ([], "invalid_request_error", "the engine answered with status 400"),
    ],
)
def test_a_late_answer_becomes_an_event(answer: Any, kind: str, message: str) -> None:
    told = json.loads(data_of(MESSAGES.late_answer(400, msgspec.json.encode(answer))))
    assert told == {"type": "error", "error": {"type": kind, "message": message}}
