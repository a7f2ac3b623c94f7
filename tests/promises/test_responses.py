"""`/v1/responses` through kvproxy is answered as by one engine: events, errors, usage, and nothing held for
what is refused.
"""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from proxy.request.dialects import RESPONSES
from proxy.request.sse import EventReader
from proxy.simulation import Fault, StandIn
from tests.helpers.service import UNHURRIED, Answer, InOrder, ask, fleet, prose

PATH = RESPONSES.path
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def body_of(given: Any, **members: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": given, "max_output_tokens": 8, "temperature": 0} | members


def said_in(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream."""
    return [json.loads(each) for each in EventReader().feed(data)]


def text_in(answer: Answer) -> str:
    """What a response says."""
    response = said_in(answer.body)[-1]["response"] if answer.streamed else answer.json
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def plain(told: Any) -> Any:
    """An answer or an event without its ids and times, and without what an engine computed itself."""
    if isinstance(told, Mapping):
        mine = {"id", "item_id", "created_at", "cache_write_tokens"}
        return {name: None if name in mine else plain(value) for name, value in told.items()}
    return [plain(each) for each in told] if isinstance(told, list) else told


async def alone(body: dict[str, Any]) -> Answer:
    """The answer of one engine."""
    async with StandIn() as engine, aiohttp.ClientSession() as session:
        return await ask(session, engine.url, PATH, body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        {"store": True, "instructions": "Be brief.", "metadata": {"a": "b"}},
        {"tools": [TOOL], "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ],
    ids=["stored", "tools"],
)
async def test_two_legs_serve_a_response_as_one_engine_would(members: dict[str, Any], stream: bool) -> None:
    async with fleet(1, 1) as pair:
        body = body_of(prose(60), stream=stream, **members)
        answer = await pair.service.ask(PATH, body)
        by_one = await alone(body)
        assert (answer.status, by_one.status) == (200, 200)
        if stream:
            assert plain(said_in(answer.body)) == plain(said_in(by_one.body))
            names = [line for line in answer.body.split(b"\n") if line.startswith(b"event: ")]
            assert names == [line for line in by_one.body.split(b"\n") if line.startswith(b"event: ")]
            assert names[-1] == b"event: response.completed"
            assert answer.body.endswith(b"}\n\n")
        else:
            assert plain(answer.json) == plain(by_one.json)
        [first], [second] = ([s.json() for s in e.seen if s.path == PATH] for e in pair.engines.all)
        hold = {"do_remote_decode": True, "do_remote_prefill": False}
        one_token = {"stream": False, "max_output_tokens": 1, "store": False, "kv_transfer_params": hold}
        response = said_in(answer.body)[-1]["response"] if stream else answer.json
        assert first == body | one_token | {"request_id": response["id"]}
        assert second["kv_transfer_params"]["do_remote_prefill"]
        await pair.service.settled()
        assert not pair.engines.holds
        assert await pair.service.metric("kvproxy_requests_total", route="responses", outcome="ok") == 1
        assert await pair.service.metric("kvproxy_holds_total", end="pulled") == 1


@pytest.mark.parametrize(
    "members",
    [
        {"instructions": prose(60)},
        {"tools": [TOOL | {"description": prose(60), "strict": True}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": prose(80)}]}]},
    ],
    ids=["instructions", "tools", "items"],
)
async def test_a_prompt_is_known_and_found_again(members: dict[str, Any]) -> None:
    async with fleet(2, 1, stand_in=UNHURRIED, decision_headers=True) as pair:
        body = body_of("hello") | members
        first = await pair.service.ask(PATH, body)
        second = await pair.service.ask(PATH, body)
        assert second.headers["X-Kvproxy-Prefill"] == first.headers["X-Kvproxy-Prefill"]
        cached = int(second.headers["X-Kvproxy-Cached-Tokens"])
        assert cached > 0
        assert second.json["usage"]["input_tokens_details"]["cached_tokens"] == cached
        told = await pair.service.explain(body)
        assert (told["why_unknown"], told["known_tokens"]) == (None, told["prompt_tokens"])
        assert told["prompt_tokens"] == second.json["usage"]["input_tokens"]
        assert await pair.service.metric("kvproxy_unknown_prompts_total") == 0


async def test_a_prompt_that_only_engines_can_make_is_served_by_load() -> None:
    async with fleet(1, 1) as pair:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
        result = {"type": "function_call_output", "call_id": "c", "output": "2"}
        body = body_of([{"role": "user", "content": prose(40)}, call, result])
        answer = await pair.service.ask(PATH, body)
        assert plain(answer.json) == plain((await alone(body)).json)
        assert await pair.service.metric("kvproxy_unknown_prompts_total", reason="route") == 1


REFUSED: list[dict[str, Any]] = [
    {"max_output_tokens": 0},
    {"max_output_tokens": 1 << 20},
    {"store": "perhaps"},
    {"stream": "perhaps"},
    {"input": None},
    {"input": []},
    {"input": prose(20_000)},
    {"instructions": 5},
    {"temperature": 7},
    {"top_logprobs": 50, "include": ["message.output_text.logprobs"]},
    {"tool_choice": "required"},
    {"prompt": {"id": "x"}},
    {"background": True, "store": False},
    {"background": True},
    {"previous_response_id": "resp_none"},
    {"cache_salt": ""},
    {"stop": [""]},
]


async def test_a_wrong_request_gets_a_4xx_and_leaves_nothing_held() -> None:
    async with fleet(1, 1) as pair:
        for wrong in REFUSED:
            answer = await pair.service.ask(PATH, body_of("hi") | wrong)
            by_one = await alone(body_of("hi") | wrong)
            assert answer.status == by_one.status, (wrong, answer.body)
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}
            assert not pair.engines.holds, wrong
        assert await pair.service.metric("kvproxy_holds_total") == 0


async def test_a_failure_before_anything_was_generated_is_tried_again() -> None:
    async with fleet(1, 2) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=PATH, status=500, after_chunks=2, times=1))
        body = body_of(prose(60), stream=True)
        answer = await pair.service.ask(PATH, body)
        assert text_in(answer) == text_in(await alone(body)) != ""
        assert await pair.service.metric("kvproxy_retries_total", phase="decode") == 2


async def test_a_later_failure_is_an_event_of_its_kind_and_a_cut() -> None:
    async with fleet(1, 1, stand_in=UNHURRIED, policy=InOrder()) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="cut", path=PATH, after_bytes=3000, times=1))
        body = body_of(prose(60), stream=True, max_output_tokens=40)
        received = bytearray()

        async def listen() -> None:
            async with pair.service.session.post(pair.service.url + PATH, json=body) as response:
                async for chunk in response.content.iter_any():
                    received.extend(chunk)

        with pytest.raises(aiohttp.ClientPayloadError):
            await listen()
        *before, last = said_in(bytes(received))
        assert "response.output_text.delta" in {event["type"] for event in before}
        assert "response.completed" not in {event["type"] for event in before}
        assert (last["type"], last["error"]["code"]) == ("error", 502)
        assert bytes(received).rpartition(b"event: ")[2].startswith(b"error\n")


async def test_a_client_that_leaves_ends_both_legs() -> None:
    async with fleet(1, 1, stand_in=UNHURRIED) as pair:
        body = body_of(prose(60), stream=True, max_output_tokens=2000)
        async with pair.service.session.post(pair.service.url + PATH, json=body) as response:
            await response.content.readuntil(b"response.output_text.delta")
        await pair.service.settled()
        assert not pair.engines.holds
        await pair.service.counts(1, "kvproxy_requests_total", route="responses", outcome="client_left")
