"""`/v1/responses` as vLLM answers it: every member and event, what is refused, what a store keeps."""

import json
from typing import Any

import pytest

from proxy.request.body import Body
from proxy.request.dialects import RESPONSES
from proxy.request.sse import EventReader
from tests.contract.asking import Engine
from tests.contract.pairs import PREFILL, Pair

PATH = RESPONSES.path
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"b": {}, "a": {}}, "strict": True}
MEMBERS = """
    id created_at incomplete_details instructions metadata model object output parallel_tool_calls temperature
    tool_choice tools top_p background max_output_tokens max_tool_calls previous_response_id prompt reasoning
    service_tier status text top_logprobs truncation usage user presence_penalty frequency_penalty
    kv_transfer_params ec_transfer_params input_messages output_messages
""".split()  # noqa: SIM905  # a list of these is a page long


def body_of(given: Any = "hello there", **members: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": given, "max_output_tokens": 6, "temperature": 0} | members


async def said(
    engine: Engine, body: dict[str, Any] | None, below: str = "", method: str = "POST"
) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json"}
    status, _, answer = await engine.send(method, PATH + below, data, head)
    return status, json.loads(answer)


def text_in(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


async def test_a_response_has_these_members(engine: Engine) -> None:
    status, response = await said(engine, body_of(include=["message.output_text.logprobs"], top_logprobs=2))
    assert (status, list(response)) == (200, MEMBERS)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (response["tool_choice"], response["service_tier"]) == ("none", "auto")
    [item] = response["output"]
    assert list(item) == ["id", "content", "role", "status", "type", "phase"]
    [part] = item["content"]
    assert list(part) == ["annotations", "text", "type", "logprobs"]
    assert [list(each) for each in part["logprobs"]] == [["token", "bytes", "logprob", "top_logprobs"]] * 6
    used = response["usage"]
    assert list(used) == [
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    ]
    assert (used["output_tokens"], used["total_tokens"]) == (6, used["input_tokens"] + 6)


async def test_a_stream_has_these_events(engine: Engine) -> None:
    _, _, answer = await engine.send(
        "POST", PATH, json.dumps(body_of(stream=True)).encode(), {"Content-Type": "application/json"}
    )
    events = [json.loads(data) for data in EventReader().feed(answer)]
    kinds = [event["type"] for event in events]
    assert answer.count(b"event: ") == len(events)
    assert [line[7:].decode() for line in answer.split(b"\n") if line.startswith(b"event: ")] == kinds
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    whole = events[-1]["response"]
    assert list(whole) == list(events[0]["response"]) == MEMBERS
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == text_in(whole)
    assert text_in(whole) == text_in((await said(engine, body_of()))[1])
    place = ["content_index", "item_id", "output_index"]
    by_kind = {event["type"]: sorted({*event} - {"type", "sequence_number"}) for event in events}
    assert by_kind["response.output_text.delta"] == sorted([*place, "delta", "logprobs"])
    assert by_kind["response.output_text.done"] == sorted([*place, "text", "logprobs"])
    assert by_kind["response.content_part.done"] == sorted([*place, "part"])


@pytest.mark.parametrize(
    ("members", "message", "param"),
    [
        ({"max_output_tokens": 0}, "max_tokens must be at least 1, got 0.", "max_tokens"),
        ({"max_output_tokens": 99_999}, "max_output_tokens=99999 cannot be greater", "max_output_tokens"),
        ({"stream": "maybe"}, "1 validation error:", "body.stream"),
        ({"store": 7}, "1 validation error:", "body.store"),
        ({"instructions": 5}, "1 validation error:", "body.instructions"),
        ({"background": True, "store": False}, "background can only be used when", "background"),
        ({"prompt": {"id": "x"}}, "prompt template is not supported", "prompt"),
        ({"tool_choice": "required"}, "Tool choice 'required' must be specified with", "tool_choice"),
        ({"temperature": 7}, "temperature must be in [0, 2], got 7.0.", "temperature"),
        ({"cache_salt": ""}, "Parameter 'cache_salt' must be", "cache_salt"),
        ({"input": []}, "Cannot apply chat template to an empty conversation.", None),
        ({"input": None}, "2 validation errors:", "body.input"),
        ({"input": "x " * 2060}, "This model's maximum context length is 2048 tokens.", "input_tokens"),
    ],
)
async def test_a_bad_request_is_refused(
    engine: Engine, members: dict[str, Any], message: str, param: str | None
) -> None:
    status, answer = await said(engine, body_of() | members)
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, 400, param)
    assert error["message"].startswith(message)


async def test_what_is_stored_can_be_fetched_and_built_upon(engine: Engine) -> None:
    _, first = await said(engine, body_of())
    assert await said(engine, None, f"/{first['id']}", "GET") == (200, first)
    status, second = await said(engine, body_of("more", previous_response_id=first["id"]))
    assert (status, second["previous_response_id"]) == (200, first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    status, answer = await said(engine, None, f"/{first['id']}/cancel")
    assert (status, answer["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
    _, unstored = await said(engine, body_of(store=False, request_id="resp_of_mine"))
    assert unstored["id"] == "resp_of_mine"
    lost = {
        "message": "Response with id 'resp_of_mine' not found.",
        "type": "invalid_request_error",
        "param": "response_id",
        "code": 404,
    }
    for asked in (
        said(engine, None, "/resp_of_mine", "GET"),
        said(engine, None, "/resp_of_mine/cancel"),
        said(engine, body_of(previous_response_id="resp_of_mine")),
    ):
        assert await asked == (404, {"error": lost})
    assert (await said(engine, None, "/resp_of_mine", "DELETE"))[0] == 405
    assert (await said(engine, None, "/resp_of_mine/input_items", "GET"))[0] == 404


async def test_work_in_the_background_is_cancelled(engine: Engine) -> None:
    status, queued = await said(engine, body_of(background=True, max_output_tokens=1500, ignore_eos=True))
    assert (status, queued["status"], queued["usage"], list(queued)) == (200, "queued", None, MEMBERS)
    status, cancelled = await said(engine, None, f"/{queued['id']}/cancel")
    assert (status, cancelled) == (200, queued | {"status": "cancelled"})
    assert await said(engine, None, f"/{queued['id']}", "GET") == (200, cancelled)
    await engine.at_rest()


@pytest.mark.parametrize(
    "members",
    [
        {"instructions": "Be brief."},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"input": [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}]},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": t} for t in ("one", "two")]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
                {"role": "user", "content": "u"},
            ]
        },
    ],
    ids=["instructions", "tools", "developer", "parts"],
)
async def test_a_prompt_is_that_of_the_chat_it_is_written_as(engine: Engine, members: dict[str, Any]) -> None:
    body = body_of() | members
    chat = RESPONSES.prompt(Body.parse(json.dumps(body).encode()))
    assert chat is not None
    dialect, translated = chat
    asked = json.loads(translated.encoded())
    question = {name: asked[name] for name in {*asked} & {*dialect.prompt_members.asked, "model"}}
    _, _, answer = await engine.send(
        "POST", "/tokenize", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    _, response = await said(engine, body)
    assert json.loads(answer)["count"] == response["usage"]["input_tokens"]


@pytest.mark.parametrize("stream", [False, True])
async def test_two_legs_say_what_one_engine_says(pair: Pair, stream: bool) -> None:
    body = body_of(f"some words to be handed over, streamed: {stream} " * 8, stream=stream)
    first = body | {"max_output_tokens": 1, "stream": False, "store": False, "kv_transfer_params": PREFILL}
    _, prefilled = await said(pair.prefill, first)
    params = prefilled["kv_transfer_params"]
    assert params["remote_request_id"].startswith(f"{prefilled['id']}_0-")
    data = json.dumps(body | {"kv_transfer_params": params}).encode()
    _, _, answer = await pair.decode.send("POST", PATH, data, {"Content-Type": "application/json"})
    response = json.loads(EventReader().feed(answer)[-1])["response"] if stream else json.loads(answer)
    _, by_one = await said(pair.plain, body | {"stream": False})
    assert text_in(response) == text_in(by_one)
    assert response["usage"]["input_tokens"] == by_one["usage"]["input_tokens"]
    assert (
        response["usage"]["input_tokens_details"]["cached_tokens"] == params["remote_prefill_cached_tokens"]
    )
