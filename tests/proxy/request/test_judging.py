"""Each event of an engine is known for what it is: nothing yet, something produced, a failure, or the end."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request.dialects import CHAT, Failure
from proxy.request.dialects.choices import DONE, MAX_JUDGED_BYTES, failure_status
from proxy.request.judging import judge, without_params
from proxy.request.sse import EventCutter, events


def verdict(data: bytes) -> str:
    """What an event is worth, as `EngineStream` finds it out."""
    if CHAT.failure(data) is not None:
        return "failed"
    if CHAT.ends(data):
        return "done"
    return "produced" if CHAT.produces(data) else "nothing"


ERROR = b'{"error": {"message": "Internal server error", "code": 500}}'


@pytest.mark.parametrize("odd", [b"[]", b"{}", b'["error"]', b'{"a": "abort"}', b"1", b"true"])
def test_a_reason_that_is_no_word_is_no_failure(odd: bytes) -> None:
    data = b'{"choices": [{"finish_reason": ' + odd + b'}], "a": "error", "b": "abort"}'
    assert failure_status(data) is None
    assert verdict(data) == "produced"


@given(
    st.lists(st.sampled_from([b"data: {}", b"data:[DONE]", b": c", b"event: e\ndata: 1"]), max_size=6),
    st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    st.data(),
)
def test_nothing_is_lost_or_reordered(said: list[bytes], end: bytes, data: st.DataObject) -> None:
    whole = b"".join(event + end for event in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cutter = EventCutter()
    runs = [cutter.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert b"".join(runs) == whole
    assert [event for run in runs for event, _ in events(run)] == [event + end for event in said]
    upto = said.index(b"data:[DONE]") + 1 if b"data:[DONE]" in said else len(said)
    judged = judge(CHAT, whole)
    assert judged == (b"".join(event + end for event in said[:upto]), None, b"data:[DONE]" in said)


def test_an_event_too_large_to_judge_says_something() -> None:
    assert verdict(b'{"choices": [], "x": "' + b"x" * MAX_JUDGED_BYTES + b'"}') == "produced"
    failed = b'{"error": {"code": 400}, "x": "' + b"x" * MAX_JUDGED_BYTES + b'"}'
    assert verdict(failed) == "failed"
    assert CHAT.failure(failed) == Failure(500, failed, b"")
    assert CHAT.failure(b'{"x": ["error", "' + b"x" * MAX_JUDGED_BYTES + b'"]}') is None


def chat(**members: Any) -> dict[str, Any]:
    """A chunk as vLLM begins a chat with, and then some."""
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    return {"id": "a", "choices": [choice | members], "prompt_token_ids": [1, 2]}


def text(**members: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": None} | members]}


NOTHING: list[Any] = [
    {},
    chat(),
    chat(token_ids=None),
    chat(delta={}),
    chat(delta={"role": "assistant", "content": None, "tool_calls": []}),
    {"choices": []},
    {"choices": [], "usage": {"prompt_tokens": 5}},
    {"choices": None, "error": None},
    text(),
    text(token_ids=[], prompt_token_ids=[1]),
]
PRODUCED: list[Any] = [
    chat(delta={"content": "x"}),
    chat(delta={"reasoning": "x"}),
    chat(delta={"reasoning_content": "x"}),
    chat(delta={"tool_calls": [{"index": 0}]}),
    chat(finish_reason="stop"),
    chat(logprobs={"content": []}),
    chat(token_ids=[7]),
    text(text=" "),
    text(text="error"),
    text(text="abort"),
    text(finish_reason="length"),
    text(token_ids=[0]),
    text(text='{"error": 1}'),
    "text",
    [1],
]
FAILED: list[tuple[Any, int]] = [
    ({"error": {"message": "m", "code": 500}}, 500),
    ({"error": {"message": "m", "code": 400}}, 400),
    ({"error": {"message": "m", "code": "503"}}, 503),
    ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, 500),
    ({"error": {"message": "m", "code": 200}}, 500),
    ({"error": {"message": "m", "code": None}}, 500),
    ({"error": "Unauthorized"}, 500),
    ({"id": "a", "choices": [], "error": {"code": 429}}, 429),
    ({"object": "error", "message": "m", "code": 404}, 404),
    (chat(finish_reason="error"), 500),
    (text(text="half", finish_reason="error"), 500),
    (text(text="half", finish_reason="abort"), 500),
]


@pytest.mark.parametrize("said", NOTHING)
def test_events_in_which_nothing_was_generated_yet(said: Any) -> None:
    assert verdict(json.dumps(said).encode()) == "nothing"


@pytest.mark.parametrize("said", PRODUCED)
def test_events_in_which_something_was_generated(said: Any) -> None:
    data = json.dumps(said).encode()
    assert verdict(data) == "produced"
    assert CHAT.failure(data) is None
    run = b"data: " + data + b"\n\n"
    assert judge(CHAT, run) == (run, None, False)


@pytest.mark.parametrize(("said", "status"), FAILED)
def test_events_that_are_failures(said: Any, status: int) -> None:
    data = json.dumps(said).encode()
    assert verdict(data) == "failed"
    before, event = b"data: 1\n\n: c\n\n", b"data: " + data + b"\n\n"
    passed, failure, done = judge(CHAT, before + event + b"data: [DONE]\n\n")
    assert (passed, done) == (before, False)
    assert failure is not None
    assert failure.status == status
    assert failure.event.startswith(event)
    if "choices" in said and "error" not in said:  # clients know an error by its event, and so does this
        told = json.loads(failure.body)["error"]
        assert (told["code"], told["type"]) == (500, "InternalServerError")
        assert failure.event == event + b"data: " + failure.body + b"\n\n"
    else:
        assert (failure.event, failure.body) == (event, data)


@pytest.mark.parametrize(
    "data", [b"", b"no json", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000, b'"error"', b"null"]
)
def test_an_event_that_cannot_be_read_is_no_failure(data: bytes) -> None:
    assert CHAT.failure(data) is None
    assert not data or verdict(data) == "produced"  # nobody asks what a comment is worth


@pytest.mark.parametrize(
    "event",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]\n\n",
        b"data: [DONE]\r\n\r\n",
        b"data:[DONE]\r\n\n",
        b": c\ndata: [DONE]\n\n",
    ],
)
def test_the_end(event: bytes) -> None:
    first = b'data: {"choices": [{"index": 0, "text": "[DONE]"}]}\n\n'
    assert judge(CHAT, first) == (first, None, False)
    assert judge(CHAT, first + event + b": late\n\ndata: " + ERROR + b"\n\n") == (first + event, None, True)
    assert verdict(DONE) == "done"


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("null", [b"null", b" null"])
def test_transfer_params_are_no_clients_business(name: str, null: bytes) -> None:
    member = b'"%s"' % name.encode()
    plain = b'{"choices":[{"text":"%s"}],%s:%s}' % (rb"\"kv_transfer_params\": 1", member, null)
    assert without_params(plain) is plain
    run = b"data: " + plain + b"\n\n"
    assert judge(CHAT, run).passed is run
    told = b'{"choices":[{"text":"%s"}],%s:{"remote_host":"a"},"x":1}' % (
        rb"\"kv_transfer_params\": 1",
        member,
    )
    kept = rb'{"choices":[{"text":"\"kv_transfer_params\": 1"}],"x":1}'
    assert without_params(told) == kept
    events = b": c\n\nevent: last\r\ndata: " + told + b"\r\n\r\ndata: [DONE]\n\n"
    assert judge(CHAT, events) == (b": c\n\nevent: last\ndata: " + kept + b"\n\ndata: [DONE]\n\n", None, True)


def test_only_members_of_the_answer_itself_are_params() -> None:
    nested = b'{"choices":[{"text":"","kv_transfer_params":{"a":1}}],"ec_transfer_params":null}'
    assert without_params(nested) == nested
    both = b'{"kv_transfer_params":null,"a":1,"ec_transfer_params":{"b":2}}'
    assert without_params(both) == b'{"kv_transfer_params":null,"a":1}'
    assert without_params(b'no json "kv_transfer_params": {}') == b'no json "kv_transfer_params": {}'
