"""The dialect of responses reads what engines read, and writes as a chat only what is surely rendered so."""

import json
from typing import Any

import pytest

from proxy.errors import BadRequestError, EngineFailedError
from proxy.request.body import Body
from proxy.request.dialects import CHAT, RESPONSES, Usage
from proxy.request.dialects.responses_as_chats import MAX_VALUES
from proxy.request.generation import read_request
from proxy.request.judging import judge, wants_judging
from proxy.request.outline import outline
from proxy.request.sse import event_of


def body_of(given: Any = "hi", **members: Any) -> Body:
    return Body.parse(json.dumps({"input": given} | members).encode())


def chat_of(given: Any = "hi", **members: Any) -> Any:
    found = RESPONSES.prompt(body_of(given, **members))
    if found is None:
        return None
    assert found[0] is CHAT
    return json.loads(found[1].encoded())


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"stream": "maybe"}, "stream"),
        ({"store": 7}, "store"),
    ],
)
def test_what_the_prefill_leg_replaces_is_judged_first(members: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        RESPONSES.read(body_of(**members))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("members", "whole"),
    [
        ({}, False),
        ({"store": True}, False),
        ({"background": None, "previous_response_id": None}, False),
        ({"background": False}, False),
        ({"background": True}, True),
        ({"previous_response_id": "resp_1"}, True),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, False),
        ({"tools": [{"type": "code_interpreter"}]}, True),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, True),
        ({"tools": 5}, False),
    ],
)
def test_one_instance_serves_what_two_cannot(members: dict[str, Any], whole: bool) -> None:
    assert RESPONSES.read(body_of(**members)).whole is whole


def test_the_first_leg_stores_nothing() -> None:
    first = RESPONSES.first_token_only(body_of(store=True, stream=True, max_output_tokens=None, seed=1))
    told = {"input": "hi", "store": False, "stream": False, "max_output_tokens": 1, "seed": 1}
    assert json.loads(first.encoded()) == told


def test_its_limit_is_known() -> None:
    request = read_request(RESPONSES, b'{"input": "hi", "max_output_tokens": 5}', "tiny")
    assert request.answer_limit == ("max_output_tokens", 5)
    assert RESPONSES.answer_limit(body_of()) is None
    assert RESPONSES.may_end_early(body_of())
    assert not RESPONSES.may_end_early(body_of(ignore_eos=True))
    assert RESPONSES.may_end_early(body_of(ignore_eos="perhaps"))


def test_usage_is_read_of_responses_alone() -> None:
    used = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2}
    metrics = {"time_to_first_token_ms": 1.5}
    answer = {"object": "response", "usage": used, "metrics": metrics}
    assert RESPONSES.usage(json.dumps(answer).encode()) == Usage(9, 4, 2, 1.5)
    assert RESPONSES.usage(b'{"object": "response", "usage": null}') == Usage()
    for odd in (b"", b"[]", b'{"usage": {"input_tokens": 1}}', b'{"object": "list"}'):
        with pytest.raises(ValueError, match="cannot be read"):
            RESPONSES.usage(odd)
    with pytest.raises(ValueError, match="fewer than 0"):
        RESPONSES.usage(b'{"object": "response", "usage": {"input_tokens": -1}}')


# -- streams ----------------------------------------------------------------------------------------------


def named(kind: str, **members: Any) -> bytes:
    return event_of(json.dumps({"type": kind} | members).encode(), kind)


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_a_stream_ends_with_the_event_that_has_the_whole_response(kind: str) -> None:
    begun = named("response.output_text.delta", delta="the response.completed event")
    end = named(kind, response={"status": "x"})
    assert judge(RESPONSES, begun) == (begun, None, False)
    assert wants_judging(RESPONSES, end)
    assert judge(RESPONSES, begun + end + begun) == (begun + end, None, True)


def test_events_before_anything_is_generated_hold_an_answer_back() -> None:
    for kind in ("response.created", "response.queued", "response.in_progress"):
        assert not RESPONSES.produces(json.dumps({"type": kind}).encode())
    for kind in ("response.output_item.added", "response.output_text.delta", "response.completed"):
        assert RESPONSES.produces(json.dumps({"type": kind}).encode())
    assert RESPONSES.produces(b"{")


def test_failures_are_known() -> None:
    failed = b'{"error": {"message": "no", "code": 503}}'
    assert (failure := RESPONSES.failure(failed)) is not None
    assert (failure.status, failure.body) == (503, failed)
    ended = b'{"type": "response.failed", "response": {"error": {"message": "no"}}}'
    assert (failure := RESPONSES.failure(ended, b"event")) is not None
    assert (failure.status, failure.event) == (500, b"event")
    for well in (b'{"object": "response", "error": null}', b'{"type": "x", "delta": "response.failed"}'):
        assert RESPONSES.failure(well) is None


def test_an_error_of_ours_is_an_event_for_every_client() -> None:
    event = RESPONSES.error_event(EngineFailedError("it broke"))
    name, data = event.strip().split(b"\n")
    assert name == b"event: error"
    told = json.loads(data.removeprefix(b"data: "))
    assert told["type"] == "error"
    assert told["error"]["message"] == "it broke"


def test_transfer_params_are_taken_out_of_the_response_of_an_event() -> None:
    params = {"remote_engine_id": "x"}
    end = named("response.completed", response={"id": "resp_1", "kv_transfer_params": params, "user": None})
    passed = judge(RESPONSES, end).passed
    assert b"remote_engine_id" not in passed
    assert passed.startswith(b"event: response.completed\n")
    assert json.loads(passed.split(b"data: ")[1]) == {
        "type": "response.completed",
        "response": {"id": "resp_1", "user": None},
    }


# -- as a chat --------------------------------------------------------------------------------------------

TOLD = {"add_special_tokens": True}
TOOL = {"type": "function", "name": "f", "description": None, "parameters": {"b": 1, "a": 2}}


@pytest.mark.parametrize(
    ("given", "members", "chat"),
    [
        ("hi", {}, {"messages": [{"role": "user", "content": "hi"}]}),
        (
            "hi",
            {"instructions": "be kind"},
            {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]},
        ),
        ("hi", {"instructions": ""}, {"messages": [{"role": "user", "content": "hi"}]}),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            {},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        ),
        (
            [
                {"role": "developer", "content": "d"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "said", "annotations": []}],
                },
            ],
            {},
            {
                "messages": [
                    {"role": "developer", "content": "d"},
                    {"role": "assistant", "content": "said"},
                ]
            },
        ),
        (
            "hi",
            {"tools": [TOOL, {"type": "web_search"}], "tool_choice": {"type": "function", "name": "f"}},
            {
                "messages": [{"role": "user", "content": "hi"}],
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "description": None, "parameters": {"b": 1, "a": 2}},
                    }
                ],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        (
            "hi",
            {"reasoning": {"effort": "low"}, "truncation": "disabled", "text": {"format": {"type": "text"}}},
            {"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "low"},
        ),
        (
            "hi",
            {"documents": [1], "messages": [], "add_generation_prompt": False, "truncate_prompt_tokens": 3},
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
    ],
)
def test_a_request_is_written_as_the_chat_that_engines_render(
    given: Any, members: dict[str, Any], chat: dict[str, Any]
) -> None:
    found = chat_of(given, **members)
    assert found == chat | TOLD
    if "tools" in chat:
        assert list(found["tools"][0]["function"]["parameters"]) == ["b", "a"]


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("given", "members"),
    [
        (5, {}),
        ([CALL], {}),
        ([{"role": "user", "content": "a", "name": "b"}], {}),
        ([{"role": "tool", "content": "a"}], {}),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], {}),
        ([{"role": "assistant", "content": [{"type": "output_text", "text": "a"}] * 2}], {}),
        ([{"role": "assistant", "content": "a", "status": "incomplete"}], {}),
        ([{"role": "user", "content": 5}], {}),
        ([{"role": "user", "content": [{"type": "input_text", "text": 5}]}], {}),
        ("hi", {"instructions": 5}),
        ("hi", {"tools": [{"type": "custom", "name": "c"}]}),
        ("hi", {"tools": [{"type": "web_search"}]}),
        ("hi", {"tools": [TOOL | {"defer_loading": True}]}),
        ("hi", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}),
        ("hi", {"reasoning": {"effort": "xhigh"}}),
        ("hi", {"truncation": "auto"}),
        ("hi", {"truncation": None}),
        ("hi", {"previous_response_id": "resp_1"}),
        ("hi", {"previous_input_messages": [{}]}),
    ],
)
def test_what_is_not_surely_rendered_so_is_for_the_engine_alone_to_know(
    given: Any, members: dict[str, Any]
) -> None:
    assert chat_of(given, **members) is None


def test_a_conversation_of_very_many_parts_is_not_translated() -> None:
    part = b'{"type":"input_text","text":"a"}'
    parts = b",".join([part] * (MAX_VALUES // 2))
    data = bytearray(b'{"input":[{"role":"user","content":[' + parts + b"]}]}")
    body = Body.of_outline(data, outline(data))
    assert RESPONSES.prompt(body) is None
    assert RESPONSES.prompt(body.changed({"input": "a" * len(data)})) is not None
