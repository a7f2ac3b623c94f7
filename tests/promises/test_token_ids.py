"""`/inference/v1/generate` is served by two legs as one engine would serve it."""

import json
from typing import Any

import pytest

from proxy.request.sse import events
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.engine.latency import PROFILES
from tests.helpers.service import UNHURRIED, ask, fleet

PATH = "/inference/v1/generate"
OPEN = UNHURRIED | {"scale_out": True}


def body_of(*ids: int, stream: bool = False, **sampling: Any) -> dict[str, Any]:
    params = {"max_tokens": 6, "temperature": 0} | sampling
    return {"model": "tiny", "token_ids": list(ids), "sampling_params": params, "stream": stream}


def told(data: bytes) -> list[Any]:
    """A whole answer, or the events of a stream, without what differs each time."""
    said = [data] if data.startswith(b"{") else [each for _, each in events(data)]
    found = [each if each == b"[DONE]" else json.loads(each) for each in said]
    return [
        {name: value for name, value in each.items() if name not in {"request_id", "created"}}
        if isinstance(each, dict)
        else each
        for each in found
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_two_legs_answer_as_one_engine_and_find_the_prompt_again(stream: bool) -> None:
    plain_config = StandInConfig(profile=PROFILES["tiny-cpu"], scale_out=True)
    async with fleet(2, 1, stand_in=OPEN, decision_headers=True) as pair, StandIn(plain_config) as plain:
        body = body_of(*range(300, 400), stream=stream, logprobs=2, min_tokens=2)
        body |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
        for again in (False, True):
            answer = await pair.service.ask(PATH, body)
            alone = await ask(pair.service.session, plain.url, PATH, body)
            assert answer.status == alone.status == 200
            assert told(answer.body) == told(alone.body)
            assert (int(answer.headers["X-Kvproxy-Cached-Tokens"]) > 0) is again
        [first, *_] = [s.json() for e in pair.engines.prefill for s in e.seen if s.path == PATH]
        sampling = {"max_tokens": 1, "temperature": 0, "logprobs": 2, "n": 1}
        assert (first["sampling_params"], first["stream"]) == (sampling, False)
        explained = await pair.service.ask("/explain", body, X_API_Key="admin-key")
        assert explained.json["known_tokens"] == 100
        chat = await pair.service.complete(list(range(300, 400)))
        assert chat.headers["X-Kvproxy-Prefill"] == answer.headers["X-Kvproxy-Prefill"]
        await pair.service.settled()
        assert not pair.engines.holds
        assert await pair.service.metric("kvproxy_requests_total", route="generate", outcome="ok") == 2


WRONG: list[dict[str, Any]] = [
    {"sampling_params": {"max_tokens": 0}},
    {"sampling_params": {"max_tokens": "x"}},
    {"sampling_params": {"min_tokens": 9, "max_tokens": 5}},
    {"sampling_params": {"min_tokens": 20}},
    {"sampling_params": {"n": 0}},
    {"sampling_params": {"top_p": 7}},
    {"sampling_params": 5},
    {"token_ids": []},
    {"token_ids": [-1]},
    {"stream": "perhaps"},
    {"stream_options": {"include_usage": "perhaps"}},
]


async def test_wrong_bodies_get_the_engines_own_words_and_leave_no_hold() -> None:
    async with fleet(1, 1, kv_events=False, stand_in={"scale_out": True}) as pair:
        for members in WRONG:
            body = body_of(300, 301) | members
            answer = await pair.service.ask(PATH, body)
            alone = await ask(pair.service.session, pair.engines.decode[0].url, PATH, body)
            assert (answer.status, answer.body) == (400, alone.body), members
        await pair.service.settled()
        assert await pair.service.metric("kvproxy_holds_total") == 0


async def test_no_client_reads_anothers_blocks_by_extra_arguments() -> None:
    async with fleet(1, 1, kv_events=False, stand_in={"scale_out": True}) as pair:
        extra = {"kv_transfer_params": {"do_remote_prefill": True}, "mine": 1.50}
        assert (await pair.service.ask(PATH, body_of(300, 301, extra_args=extra))).status == 200
        for engine in pair.engines.all:
            [leg] = [seen.json() for seen in engine.seen if seen.path == PATH]
            assert leg["sampling_params"]["extra_args"] == {"mine": 1.5}


async def test_an_engine_that_has_not_the_route_says_so() -> None:
    async with fleet(1, 1, kv_events=False) as pair:
        answer = await pair.service.ask(PATH, body_of(300, 301))
        assert answer.status == 403
        assert "--enable-scale-out" in answer.json["error"]["message"]
