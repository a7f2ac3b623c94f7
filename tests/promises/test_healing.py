"""A kvproxy that starts late learns what engines had cached before, and no request suffers for it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvevents import REPORT_SESSION, PrefixIndex, Prompt, Slot
from proxy.edge.app_keys import SERVICE
from proxy.phases import Role
from proxy.serving.healing import Healing
from proxy.simulation import StandIn
from proxy.simulation.engine.request import Request, Sampling
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.publisher import EventForm
from tests.helpers.service import UNHURRIED, Answer, Pair, ask, engines, fleet, kvproxy, wait_until

BLOCK = 16

PREFIXES = [[100 + n, *range(200, 200 + 16 * (3 + n % 5))] for n in range(30)]


# ---- a late joiner ----------------------------------------------------------------------------------------


@asynccontextmanager
async def late_joiner(*, both: bool = False, **stand_in: Any) -> AsyncIterator[Pair]:
    """Engines that have cached many prompts, more than their replay buffer tells of, and then a kvproxy."""
    settings: dict[str, Any] = UNHURRIED | {"buffer_steps": 5} | stand_in
    roles = (0, 0, 1) if both else (1, 1, 0)
    async with engines(*roles, **settings) as made, kvproxy(made.config(), ready=False) as unready:
        for prefix in PREFIXES:
            engine = made.all[0]
            answer = await ask(unready.session, engine.url, "/v1/completions", completion([*prefix, 7], 1))
            assert answer.status == 200
        async with kvproxy(made.config(decision_headers=True), ready=False) as service:
            await wait_until(lambda: states(service) == {"partial"}, "partial indexes")
            await wait_until(lambda: service.fleet.ready, "readiness")
            yield Pair(made, service)


def states(service: Any) -> set[str]:
    return {i.index_state(0) for i in service.fleet if i.role is not Role.DECODE}


def completion(tokens: list[int], max_tokens: int = 2) -> dict[str, Any]:
    return {"model": "tiny", "prompt": tokens, "max_tokens": max_tokens, "temperature": 0}


def exact(answer: Answer) -> bool:
    assert answer.status == 200, answer.body
    reported = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return bool(answer.headers.get("X-Kvproxy-Cached-Tokens") == str(reported))


async def heal(pair: Pair, requests: int = 200, *, at_once: int = 5) -> list[bool]:
    """So many requests, each with a prefix of before and an end of its own; which were predicted exactly."""
    dice = random.Random(1)
    bodies = []
    for n in range(requests):
        prefix = dice.choice(PREFIXES)
        bodies.append([*prefix, 300 + n, *range(dice.randrange(40))])
    hits = []
    for first in range(0, requests, at_once):
        some = [pair.service.complete(tokens, max_tokens=2) for tokens in bodies[first : first + at_once]]
        hits += [exact(answer) for answer in await asyncio.gather(*some)]
    return hits


async def rank_status(pair: Pair, engine: StandIn) -> Any:
    instances = (await pair.service.ask("/status")).json["instances"]
    (told,) = [i for i in instances if i["instance"] == engine.address]
    return told["ranks"][0]


@pytest.mark.parametrize("sessions", [True, False])
async def test_a_late_joiner_predicts_95_percent_within_200_requests(sessions: bool) -> None:
    async with late_joiner(event_form=EventForm(sessions=sessions)) as pair:
        hits = await heal(pair)
        assert sum(hits[-100:]) >= 95
        assert sum(hits[:20]) < 15  # it did not know them in the beginning
        healings = [(await rank_status(pair, engine))["healing"] for engine in pair.engines.prefill]
        assert (
            await pair.service.metric("kvproxy_cache_reports_total") == sum(h["legs"] for h in healings) > 0
        )
        assert not any(h["refused"] for h in healings)
        assert states(pair.service) == {"partial"}


async def test_each_rank_heals_by_itself() -> None:
    async with late_joiner(ranks=2, buffer_steps=3) as pair:
        hits = await heal(pair)
        assert sum(hits[-100:]) >= 95
        (instance, _) = (await pair.service.ask("/status")).json["instances"]
        assert [rank["index"] for rank in instance["ranks"]] == ["partial"] * 2
        assert all(rank["healing"]["legs"] > 0 for rank in instance["ranks"])


async def test_an_instance_that_does_both_heals_too() -> None:
    async with late_joiner(both=True) as pair:
        (engine,) = pair.engines.both
        engine.faults.add(Fault(kind="status", status=400, path="/v1/completions", times=1))
        assert sum((await heal(pair))[-100:]) < 60  # it refused the question, so nothing was asked
        assert (await rank_status(pair, engine))["healing"]["refused"] is True
    async with late_joiner(both=True) as pair:
        assert sum((await heal(pair))[-100:]) >= 85  # more slowly: what its engine reports is not read


async def test_each_prompt_of_a_list_asks() -> None:
    async with late_joiner() as pair:
        (engine,) = pair.engines.prefill
        engine.seen.clear()
        prompts = [[*prefix, 9] for prefix in PREFIXES[:4]]
        assert (await pair.service.complete(prompts, max_tokens=1)).status == 200
        assert [("vllm_xargs" in leg) for leg in prefill_legs(engine)] == [True] * 4


async def test_a_clients_session_id_passes_untouched_and_is_no_report() -> None:
    async with late_joiner() as pair:
        (engine,) = pair.engines.prefill
        engine.seen.clear()
        for session in ("s-1", REPORT_SESSION):
            body = completion([*PREFIXES[0], 9], 1)
            answer = await pair.service.ask("/v1/completions", body, X_Session_ID=session)
            assert answer.status == 200
        own, ours = [s for s in engine.seen if s.path == "/v1/completions"]
        assert own.headers["X-Session-ID"] == "s-1"
        assert "vllm_xargs" not in own.json()
        assert "X-Session-ID" not in ours.headers  # vLLM would take it for the id of the report, too
        assert ours.json()["vllm_xargs"]["session_id"] == REPORT_SESSION
        await pair.service.settled()
        (decode,) = pair.engines.decode
        legs = [s for s in decode.seen if s.path == "/v1/completions"]
        assert [leg.headers.get("X-Session-ID") for leg in legs] == ["s-1", None]


async def test_without_reports_a_late_joiner_does_not_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Healing, "wants_report", lambda *_: False)
    async with late_joiner() as pair:
        assert sum(await heal(pair, 60)) < 15  # those its replay buffer still told of


@pytest.mark.parametrize("sessions", [True, False])
async def test_what_was_learnt_is_forgotten_when_the_engine_evicts_it(sessions: bool) -> None:
    """Reports are no copies: the index never believes in what the engine has not, whatever was reported
    before."""
    form = EventForm(sessions=sessions)
    async with late_joiner(blocks=257, max_model_len=2048, event_form=form) as pair:
        (engine,) = pair.engines.prefill
        await heal(pair, 60)
        removed = await pair.service.metric("kvproxy_kv_events_total", type="BlockRemoved")
        for n in range(12):
            assert (await pair.service.complete([400 + n, *range(700)], max_tokens=1)).status == 200
        await pair.service.settled()
        assert await pair.service.metric("kvproxy_kv_events_total", type="BlockRemoved") > removed
        index = pair.service.app[SERVICE].index
        await wait_until(lambda: within(index, engine), "an index that believes in nothing that is not there")


def within(index: PrefixIndex, engine: StandIn) -> bool:
    """Whether every prefix the index believes to be cached is."""
    for prefix in PREFIXES:
        known = index.match(Prompt(prefix)).get(Slot(engine.address, 0, "GPU"), 0)
        asked = Request("x", [*prefix, 0], Sampling(1), 0.0)
        if known > len(engine.model.cache.lookup(asked)) * BLOCK:
            return False
    return True


async def test_a_reset_makes_the_index_exact() -> None:
    async with late_joiner() as pair:
        await heal(pair, 10)
        await pair.service.settled()
        for engine in pair.engines.prefill:
            await wait_until(engine.model.reset_prefix_cache, "a reset")
            body = completion([5] * 40, 1)
            assert (await ask(pair.service.session, engine.url, "/v1/completions", body)).status == 200
        await wait_until(lambda: states(pair.service) == {"exact"}, "exact indexes")
        before = await pair.service.metric("kvproxy_cache_reports_total")
        assert all(await heal(pair, 20, at_once=1))
        assert await pair.service.metric("kvproxy_cache_reports_total") == before


# ---- nobody suffers ---------------------------------------------------------------------------------------


def prefill_legs(engine: StandIn) -> list[Any]:
    return [s.json() for s in engine.seen if s.path == "/v1/completions" and b"do_remote_decode" in s.body]


async def test_an_engine_that_refuses_the_question_serves_the_request_all_the_same() -> None:
    async with late_joiner() as pair:
        for engine in pair.engines.prefill:
            engine.seen.clear()
            engine.faults.add(Fault(kind="status", status=400, path="/v1/completions", times=1))
        for prefix in PREFIXES:
            assert (await pair.service.complete([*prefix, 9])).status == 200
        for engine in pair.engines.prefill:
            first, second, *others = prefill_legs(engine)
            assert first.pop("vllm_xargs")["kv_cache_report_mode"] == "full"
            assert first == second
            assert not any("vllm_xargs" in leg for leg in others)
            assert (await rank_status(pair, engine))["healing"]["refused"] is True
        assert await pair.service.metric("kvproxy_retries_total") == 0


async def test_a_clients_own_mistake_is_its_own_with_or_without_the_question() -> None:
    async with late_joiner() as pair:
        answer = await pair.service.complete([*PREFIXES[0], 9], temperature=-1)
        assert answer.status == 400
        assert await pair.service.metric("kvproxy_holds_total", end="stranded") == 0
        told = [await rank_status(pair, engine) for engine in pair.engines.prefill]
        assert not any(rank["healing"] and rank["healing"]["refused"] for rank in told)


async def test_a_retry_asks_for_no_report() -> None:
    async with late_joiner() as pair:
        for engine in pair.engines.prefill:
            engine.seen.clear()
            engine.faults.add(Fault(kind="status", status=500, path="/v1/completions", times=1))
        assert (await pair.service.complete([*PREFIXES[0], 9])).status == 200
        legs = [leg for engine in pair.engines.prefill for leg in prefill_legs(engine)]
        assert [("vllm_xargs" in leg) for leg in legs] == [True, False]


async def test_a_client_with_a_session_of_its_own_keeps_it() -> None:
    async with late_joiner() as pair:
        for engine in pair.engines.prefill:
            engine.seen.clear()
        assert (await pair.service.complete([*PREFIXES[0], 9], session_id="mine")).status == 200
        body = completion([*PREFIXES[0], 9])
        assert (await pair.service.ask("/v1/completions", body, X_Session_ID="mine")).status == 200
        legs = [leg for engine in pair.engines.prefill for leg in prefill_legs(engine)]
        assert len(legs) == 2
        assert not any("vllm_xargs" in leg for leg in legs)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    "member", ['"session_id": 1e999', '"vllm_xargs": {"a": 1e999}', '"vllm_xargs": [1e999]']
)
async def test_what_cannot_be_read_is_the_engines_to_refuse_and_leaves_nothing_behind(
    both: bool, member: str
) -> None:
    async with late_joiner(both=both) as pair:
        body = f'{{"model": "tiny", "prompt": "hello", "max_tokens": 1, {member}}}'
        assert (await pair.service.ask("/v1/completions", body.encode())).status in {200, 400}
        await pair.service.settled()
        assert not sum(pair.service.fleet.holds.values())
        assert (await pair.service.complete([*PREFIXES[0], 9])).status == 200


async def test_an_exact_rank_is_never_asked() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        for prefix in PREFIXES[:5]:
            assert (await pair.service.complete([*prefix, 9])).status == 200
        assert not any("vllm_xargs" in leg for leg in prefill_legs(pair.engines.prefill[0]))
        assert (await rank_status(pair, pair.engines.prefill[0]))["healing"] is None
