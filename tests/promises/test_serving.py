"""Through kvproxy a client sees what one engine would answer, and each prompt goes where its prefix is
cached.
"""

import asyncio
import re
from collections import Counter
from typing import Any

import aiohttp
import pytest

from kvevents import Prompt
from proxy.edge.app_keys import SERVICE
from proxy.serving.director import Director
from proxy.simulation import StandIn
from proxy.tokenizing import Tokenized
from tests.helpers.service import ADMIN_KEY, UNHURRIED, ask, engines, fleet, kvproxy, prose, wait_until


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_are_those_of_one_engine_over_several_turns(stream: bool) -> None:
    async with fleet() as pair, StandIn() as plain, aiohttp.ClientSession() as session:
        for seed in range(4):
            messages: list[dict[str, Any]] = []
            for turn in range(3):
                messages.append({"role": "user", "content": prose(40, seed * 10 + turn)})
                body = {
                    "model": "tiny",
                    "messages": messages,
                    "max_tokens": 20,
                    "stream": stream,
                    "temperature": 0,
                }
                expected = await ask(session, plain.url, "/v1/chat/completions", body)
                answer = await pair.service.ask("/v1/chat/completions", body)
                assert answer.status == 200
                assert answer.text == expected.text
                assert answer.streamed is stream
                messages.append({"role": "assistant", "content": answer.text})
        for engine in pair.engines.decode:  # pulled everything, computed nothing
            text = (await ask(session, engine.url, "/metrics")).body.decode()
            assert 'source="local_compute"} 0.0' in text or 'source="local_compute"' not in text
        await pair.service.settled()
        assert pair.engines.holds == 0


async def test_follow_up_turns_go_to_the_holder_and_predictions_are_what_engines_report() -> None:
    async with fleet(decision_headers=True, stand_in=UNHURRIED) as pair:
        chats: dict[int, tuple[list[dict[str, Any]], str | None]] = {n: ([], None) for n in range(6)}
        for turn in range(3):
            for number, (messages, holder) in chats.items():
                messages.append({"role": "user", "content": prose(60, number * 100 + turn)})
                answer = await pair.service.chat(messages)
                prefill = answer.headers["X-Kvproxy-Prefill"]
                assert holder in {None, prefill}
                usage = answer.json["usage"]
                cached = int(answer.headers["X-Kvproxy-Cached-Tokens"])
                assert cached == usage["prompt_tokens_details"]["cached_tokens"]
                assert (cached > 0) is (turn > 0)
                messages.append({"role": "assistant", "content": answer.text})
                chats[number] = (messages, prefill)
        predicted = await pair.service.metric("kvproxy_predicted_cached_tokens_total")
        assert predicted == await pair.service.metric("kvproxy_reported_cached_tokens_total") > 0
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 0


def _posts(engine: StandIn, path: str) -> int:
    return sum(1 for seen in engine.seen if seen.path == path)


async def test_what_the_client_wrote_reaches_both_engines_value_for_value() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        body = (
            b'{"model": "tiny", "prompt": "hello", "temperature": 0.70, "seed": 1e2, "max_tokens": 3, "n": 2,'
            b' "top_p": 1.0, "unheard_of": {"a": [1.50, "\\u00e9"]}, "request_id": "evil",'
            b' "kv_transfer_params": {"do_remote_prefill": true}}'
        )
        answer = await pair.service.ask("/v1/completions", body)
        assert answer.status == 200
        assert len(answer.json["choices"]) == 2
        for engine in (pair.engines.prefill[0], pair.engines.decode[0]):
            sent = [seen.body for seen in engine.seen if seen.path == "/v1/completions"][-1]
            assert b'"temperature":0.70' in sent
            assert b'"seed":1e2' in sent
            assert b'"unheard_of":{"a": [1.50, "\\u00e9"]}' in sent
            assert b"evil" not in sent
        prefill = pair.engines.prefill[0].seen[-1].json()
        assert (prefill["n"], prefill["max_tokens"], prefill["stream"]) == (1, 1, False)
        assert pair.engines.decode[0].seen[-1].json()["n"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_to_one_prompt_fetch_its_blocks_once(stream: bool) -> None:
    async with fleet() as pair, StandIn() as plain, aiohttp.ClientSession() as session:
        body = {"model": "tiny", "prompt": prose(100), "max_tokens": 6, "n": 4, "seed": 3, "stream": stream}
        expected = await ask(session, plain.url, "/v1/completions", body)
        answer = await pair.service.ask("/v1/completions", body)
        assert answer.by_choice == expected.by_choice
        assert len(answer.by_choice) == 4
        await pair.service.settled()
        assert sum(engine.model.holds.pulled for engine in pair.engines.prefill) == 1
        assert sum(engine.model.holds.after_expiry for engine in pair.engines.prefill) == 0


async def test_headers_cross_as_they_should() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        answer = await pair.service.ask(
            "/v1/completions",
            {"prompt": "hi", "max_tokens": 1},
            X_Request_Id="my-id",
            X_data_parallel_rank="9",
            Authorization="Bearer client",
            Traceparent="00-aa-bb-01",
        )
        assert answer.headers["X-Request-Id"] == "my-id"
        legs = [e.seen[-1].headers for e in (pair.engines.prefill[0], pair.engines.decode[0])]
        assert legs[0]["X-Request-Id"] == legs[1]["X-Request-Id"]
        assert re.fullmatch(r"my-id-[0-9a-f]{12}", legs[0]["X-Request-Id"])
        assert answer.json["id"] == f"cmpl-{legs[0]['X-Request-Id']}"
        for leg in legs:
            assert "X-data-parallel-rank" not in leg
            assert leg["Authorization"] == "Bearer client"
            assert leg["Traceparent"] == "00-aa-bb-01"


async def test_streams_tell_proxies_not_to_hold_them_back() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        for prompt in ("hi", ["hi", "ho"]):
            answer = await pair.service.complete(prompt, stream=True)
            assert (answer.headers["X-Accel-Buffering"], answer.headers["Cache-Control"]) == (
                "no",
                "no-cache",
            )
            assert "X-Accel-Buffering" not in (await pair.service.complete(prompt)).headers


async def test_with_an_engine_key_the_clients_stays_here() -> None:
    async with fleet(prefill=1, decode=1, engine_api_key="engine") as pair:
        await pair.service.ask("/v1/completions", {"prompt": "hi"}, Authorization="Bearer client")
        for engine in pair.engines.all:
            assert {s.headers["Authorization"] for s in engine.seen} == {"Bearer engine"}


async def test_the_rank_that_was_chosen_is_sent() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED | {"ranks": 2}) as pair:
        prompt = list(range(100, 200))
        assert (await pair.service.complete(prompt)).status == 200
        explained = await pair.service.explain({"prompt": [*prompt, 7]})
        ranks = {c["rank"]: c["cached_tokens"] for c in explained["prefill"]["candidates"]}
        chosen = explained["prefill"]["chosen_rank"]
        assert ranks == {chosen: 96, 1 - chosen: 0}
        assert (await pair.service.complete([*prompt, 7])).status == 200
        legs = [s for s in pair.engines.prefill[0].seen if s.path == "/v1/completions"]
        assert [leg.headers["X-data-parallel-rank"] for leg in legs] == [str(chosen)] * 2


async def test_adapters_and_salts_have_caches_of_their_own() -> None:
    async with fleet(
        prefill=1, decode=1, stand_in=UNHURRIED | {"loras": ("alpha",)}, decision_headers=True
    ) as pair:
        for members in ({}, {"model": "alpha"}, {"cache_salt": "s"}, {"model": "alpha", "cache_salt": "s"}):
            for expected_hit in (False, True):
                answer = await pair.service.chat(prose(60), **members)
                cached = int(answer.headers["X-Kvproxy-Cached-Tokens"])
                assert cached == answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert (cached > 0) is expected_hit


async def test_instances_that_do_both_serve_in_one_leg() -> None:
    async with fleet(prefill=0, decode=0, both=2) as pair:
        assert (await pair.service.complete("hello there")).status == 200
        assert sum(_posts(e, "/v1/completions") for e in pair.engines.both) == 1
        status = (await pair.service.ask("/status")).json
        assert status["prefill_node_count"] == status["decode_node_count"] == 2


async def test_the_shared_connector_sends_two_plain_legs() -> None:
    async with fleet(prefill=1, decode=1, connector="shared", stand_in={"connector": False}) as pair:
        answer = await pair.service.complete(["one prompt", "another"], max_tokens=5)
        assert len(answer.json["choices"]) == 2
        first, second = (e.seen[-1].json() for e in (pair.engines.prefill[0], pair.engines.decode[0]))
        assert (first["max_tokens"], second["max_tokens"]) == (1, 5)
        assert "kv_transfer_params" not in first | second


async def test_prompt_logprobs_are_computed_in_one_leg() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        assert (await pair.service.complete("hello", prompt_logprobs=0)).status == 200
        assert _posts(pair.engines.prefill[0], "/v1/completions") == 0


@pytest.mark.parametrize("policy", ["round_robin", "least_load", "proxy.scheduling.policies:RoundRobin"])
async def test_other_policies_spread(policy: str) -> None:
    async with engines() as made, kvproxy(made.config(policy=policy)) as service:
        for n in range(8):
            assert (await service.complete(f"p{n}")).status == 200
        counts = [_posts(e, "/v1/completions") for e in made.prefill]
        assert sum(counts) == 8
        if "ound" in policy:
            assert counts == [4, 4]


async def test_instances_that_do_both_take_turns_too() -> None:
    async with engines(0, 0, both=3) as made, kvproxy(made.config(policy="round_robin")) as service:
        for n in range(9):
            assert (await service.complete(f"p{n}")).status == 200
        assert [_posts(e, "/v1/completions") for e in made.both] == [3, 3, 3]


class Fixed:
    """A user's policy: always the instance with the highest address."""

    def costs(self, leg: Any, candidates: Any) -> list[float]:
        highest = max(c.instance for c in candidates)
        return [float(c.instance != highest) for c in candidates]


async def test_a_policy_of_ones_own_can_be_given_from_python() -> None:
    async with fleet(policy=Fixed(), decision_headers=True) as pair:
        highest = max(e.address for e in pair.engines.prefill)
        for n in range(3):
            assert (await pair.service.complete(f"p{n}")).headers["X-Kvproxy-Prefill"] == highest
        assert (await pair.service.explain({"prompt": "x"}))["policy"] == "Fixed"


async def test_unknown_prompts_are_placed_by_load_and_counted() -> None:
    async with fleet(decision_headers=True, stand_in={"more_members": ("never_heard_of", "x")}) as pair:
        await pair.service.explain({"prompt": "x", "x": 1})
        await wait_until(lambda: bool(pair.service.app[SERVICE].tokenizer.status().schemas), "the schema")
        answer = await pair.service.chat("hello", never_heard_of=1)
        assert answer.status == 200
        assert "X-Kvproxy-Cached-Tokens" not in answer.headers
        assert await pair.service.metric("kvproxy_unknown_prompts_total", reason="field") == 1
        explained = await pair.service.explain({"messages": [{"role": "user", "content": "x"}], "x": 1})
        assert explained["prompt_tokens"] is None
        assert {c["cached_tokens"] for c in explained["prefill"]["candidates"]} == {None}


async def test_without_events_the_index_is_unknown_and_load_decides() -> None:
    async with fleet(stand_in={"events": None, "replay": None}) as pair:
        assert (await pair.service.complete("hello")).status == 200
        explained = await pair.service.explain({"prompt": [1, 2, 3]})
        for candidate in explained["prefill"]["candidates"]:
            assert candidate["index"] == "unknown"
            assert candidate["cached_tokens"] is None
            assert candidate["uncached_tokens"] == 3


async def test_explain_caps_what_is_cached_at_the_last_whole_block_before_the_last_token() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        prompt = list(range(100, 164))  # four blocks of 16
        await pair.service.complete(prompt)
        for asked, cached in ((prompt, 48), (prompt[:63], 48), ([*prompt, 1], 64), (prompt[:1], 0)):
            explained = await pair.service.explain({"prompt": asked})
            (candidate,) = explained["prefill"]["candidates"]
            assert candidate["cached_tokens"] == cached
            assert candidate["load_tokens"] == 0
            assert explained["unit"] == "tokens"


async def test_models_are_merged_and_unknown_ones_refused() -> None:
    async with engines(prefill=1, decode=1, loras=("alpha",)) as made, kvproxy(made.config()) as service:
        listed = [card["id"] for card in (await service.ask("/v1/models")).json["data"]]
        assert listed == ["tiny", "alpha"]
        one = await service.ask("/v1/models/alpha")
        assert (one.status, one.json["id"], one.json["parent"]) == (200, "alpha", "tiny")
        none = await service.ask("/v1/models/some/model")
        assert (none.status, none.json["error"]["message"]) == (404, "The model `some/model` does not exist.")
        answer = await service.complete("hi", model="gpt-4")
        assert answer.status == 404
        assert answer.json["error"]["code"] == 404
        assert "gpt-4" in answer.json["error"]["message"]


async def test_status_and_metrics_tell_the_fleet() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        await pair.service.complete(list(range(100)))
        await pair.service.settled()
        status = (await pair.service.ask("/status")).json
        (prefill, decode) = status["instances"]
        assert status["prefill_nodes"] == [prefill["instance"]]
        assert status["decode_nodes"] == [decode["instance"]]
        assert (prefill["role"], prefill["model"]) == ("prefill", "tiny")
        assert (prefill["block_size"], prefill["blocks"], prefill["index"]) == (16, 6, "exact")
        assert prefill["in_flight"] == {"prefill": 0}
        address = prefill["instance"]
        metric = pair.service.metric
        assert await metric("kvproxy_instance_up", instance=address, role="prefill") == 1
        assert await metric("kvproxy_index_blocks", instance=address, tier="GPU") == 6
        assert await metric("kvproxy_index_state", instance=address, state="exact") == 1
        assert await metric("kvproxy_requests_total", route="completions", outcome="ok") == 1
        assert await metric("kvproxy_holds_total", end="pulled") == 1
        assert await metric("kvproxy_prompt_tokens_total", instance=address) == 100
        assert await metric("kvproxy_kv_events_total", instance=address, type="BlockStored") >= 1
        assert await metric("kvproxy_request_duration_seconds_count", route="completions") == 1
        assert await metric("kvproxy_time_to_first_byte_seconds_count", route="completions") == 1
        assert await metric("kvproxy_prefill_leg_duration_seconds_count", instance=address) == 1
        assert await metric("kvproxy_overhead_seconds_count") == 1


class Miscounting:
    """A tokenizer that is wrong, as one is whose chat template is not the engine's."""

    def __init__(self) -> None:
        self.distrusted: list[str] = []

    async def tokenize(self, request: Any, headers: Any, client: str) -> Tokenized:
        return Tokenized(Prompt(list(range(1000))), "a kind")

    async def measure(self, request: Any, client: str) -> Tokenized:
        return Tokenized(None, "")

    def distrust(self, kind: str) -> None:
        self.distrusted.append(kind)

    def is_distrusted(self, kind: str) -> bool:
        return kind in self.distrusted

    def counts_for(self, director: Director) -> "Miscounting":
        """In place of the tokenizer it has."""
        director._tokenizer = director._learning._tokenizer = self
        return self


async def test_a_prompt_the_engine_counts_otherwise_is_counted_and_its_kind_distrusted() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        tokenizer = Miscounting().counts_for(pair.service.app[SERVICE].director)
        assert (await pair.service.complete("hello")).status == 200
        assert tokenizer.distrusted == ["a kind"]
        assert await pair.service.metric("kvproxy_token_count_differences_total") == 1


async def test_explain_needs_the_admin_key_if_there_is_one() -> None:
    async with engines(prefill=1, decode=1) as made, kvproxy(made.config()) as service:
        assert (await service.ask("/explain", {"prompt": "x"})).status == 401
        assert (await service.ask("/explain", {"prompt": "x"}, X_API_Key="wrong")).status == 403
        assert (await service.ask("/explain", {"prompt": "x"}, X_API_Key=ADMIN_KEY)).status == 200
    async with engines(prefill=1, decode=1) as made, kvproxy(made.config(admin_api_key=None)) as service:
        assert (await service.ask("/explain", {"prompt": "x"})).status == 200  # we are on loopback
        forwarded = await service.ask("/explain", {"prompt": "x"}, X_Forwarded_For="10.0.0.9")
        assert forwarded.status == 403


async def test_the_decode_legs_of_a_burst_are_spread() -> None:
    async with fleet(decision_headers=True) as pair:
        answers = await asyncio.gather(*[pair.service.complete(prose(20, n)) for n in range(40)])
        decoded = Counter(answer.headers["X-Kvproxy-Decode"] for answer in answers)
        assert min(decoded.values()) >= 14
