"""`/v1/messages` is served by two legs as one engine would serve it, and its errors are in its own words."""

import json
import pathlib
from typing import Any

import pytest

from proxy.config import Security
from proxy.request.sse import events
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.live.faults import Fault
from tests.helpers.raw import send
from tests.helpers.service import UNHURRIED, InOrder, ask, fleet, prose

PATH = "/v1/messages"
CACHED = {"cache_control": {"type": "ephemeral"}}
TOOL = {"name": "look", "description": "Look it up.", "input_schema": {"type": "object", "properties": {}}}


def body_of(text: str, **members: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"type": "text", "text": text} | CACHED]}]
    return {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": messages} | members


CONVERSATION = [
    {"role": "user", "content": "look"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I shall."},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1.0}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_1",
                "content": [{"type": "text", "text": prose(40)}],
            },
            {"type": "text", "text": "and now?"},
        ],
    },
]
"""A loop of tools, as its client sends it back."""


def posts(engine: StandIn) -> list[Any]:
    return [seen for seen in engine.seen if seen.path.partition("?")[0] == PATH]


def told(data: bytes) -> list[Any]:
    """A whole answer, or the events of a stream, without what differs each time."""
    said = [data] if data.startswith(b"{") else [each for _, each in events(data)]
    found = [json.loads(each) for each in said]
    for each in found:
        (each if "id" in each else each.get("message", {})).pop("id", None)
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_two_legs_answer_as_one_engine_and_find_the_prompt_again(stream: bool) -> None:
    settings = UNHURRIED | {"tool_parser": True}
    async with (
        fleet(2, 1, stand_in=settings, decision_headers=True) as pair,
        StandIn(StandInConfig(profile=PROFILES["tiny-cpu"], tool_parser=True)) as plain,
    ):
        body = body_of(
            "", stream=stream, messages=CONVERSATION, tools=[TOOL | CACHED], tool_choice={"type": "auto"},
            system=[{"type": "text", "text": prose(80)} | CACHED],
        )  # fmt: skip
        for again in (False, True):
            answer = await pair.service.ask(f"{PATH}?beta=true", body, Anthropic_Version="2023-06-01")
            alone = await ask(pair.service.session, plain.url, PATH, body)
            assert answer.status == alone.status == 200
            assert told(answer.body) == told(alone.body)  # what is cached, and is from now on, included
            if again:
                assert int(answer.headers["X-Kvproxy-Cached-Tokens"]) > 0
        legs = [seen for engine in pair.engines.all for seen in posts(engine)]
        assert len(legs) == 4
        assert {leg.headers["Anthropic-Version"] for leg in legs} == {"2023-06-01"}
        await pair.service.settled()
        assert not pair.engines.holds
        assert await pair.service.metric("kvproxy_holds_total", end="pulled") == 2
        assert await pair.service.metric("kvproxy_unknown_prompts_total") == 0
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 0


async def test_a_chat_and_messages_that_say_the_same_share_what_is_cached() -> None:
    async with fleet(2, 1, stand_in=UNHURRIED, decision_headers=True) as pair:
        text = prose(80)
        chat = await pair.service.chat(text)
        answer = await pair.service.ask(PATH, body_of(text))
        assert answer.headers["X-Kvproxy-Prefill"] == chat.headers["X-Kvproxy-Prefill"]
        cached = int(answer.headers["X-Kvproxy-Cached-Tokens"])
        assert answer.json["usage"]["cache_read_input_tokens"] == cached > 0
        explained = await pair.service.ask(f"/explain?route={PATH}", body_of(text), X_API_Key="admin-key")
        assert explained.json["known_tokens"] == explained.json["prompt_tokens"]


WRONG: list[dict[str, Any]] = [
    {"max_tokens": None},
    {"max_tokens": 0, "stream": True},
    {"max_tokens": 1.5},
    {"stream": "perhaps"},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "enabled", "budget_tokens": 1}},
    {"messages": 7},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
    {"messages": []},
    {"stop_sequences": ["a", "b", "c", "d", "e"]},
    {"tools": [{"name": "x"}], "tool_choice": {"type": "tool"}},
    {"top_p": 7},
]


async def test_wrong_bodies_get_the_engines_own_words_and_leave_no_hold() -> None:
    async with fleet(1, 1, kv_events=False) as pair:
        for members in WRONG:
            body = body_of("hello") | members
            answer = await pair.service.ask(PATH, body)
            alone = await ask(pair.service.session, pair.engines.decode[0].url, PATH, body)
            assert (answer.status, answer.body) == (400, alone.body), members
        await pair.service.settled()
        assert await pair.service.metric("kvproxy_holds_total") == 0
        assert not pair.engines.holds


async def test_a_key_may_come_as_anthropics_clients_send_it(tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice sk-alice")
    keys.chmod(0o600)
    async with fleet(1, 1, kv_events=False, security=Security(api_key_file=keys)) as pair:
        for headers, status in (
            ({"X_Api_Key": "sk-alice"}, 200),
            ({"Authorization": "Bearer none", "X_Api_Key": "sk-alice"}, 200),
            ({"Authorization": "Bearer sk-alice", "X_Api_Key": "none"}, 200),
            ({"X_Api_Key": "none"}, 401),
            ({}, 401),
        ):
            answer = await pair.service.ask(PATH, body_of("hello"), **headers)
            assert answer.status == status
        assert answer.json == {
            "type": "error",
            "error": {"type": "authentication_error", "message": "Unauthorized"},
        }
        assert not [
            seen for engine in pair.engines.all for seen in posts(engine) if "X-Api-Key" in seen.headers
        ]


async def test_a_later_failure_is_an_event_in_anthropics_words_and_a_cut() -> None:
    async with fleet(1, 1, stand_in=UNHURRIED, policy=InOrder()) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="cut", path=PATH, after_bytes=700, times=1))
        data = json.dumps(body_of(prose(60), stream=True, max_tokens=40)).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        received = await send(
            pair.service, head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        assert received.closed
        assert b"message_stop" not in received.data
        *_, last = received.data.split(b"event: ")
        assert last.startswith(b'error\ndata: {"type":"error","error":{"type":"api_error","message":"')
        await pair.service.settled()
