"""A router that comes late learns what engines have had for long, and nobody's request suffers for it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvevents import REPORT_SESSION, BlockStored, PrefixIndex, Prompt, Slot
from proxy.config import parse_instance
from proxy.connectors import Handoff, asking_for_report
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Fleet, Instance
from proxy.happenings import BlocksLearnt, Happening, ReportAsked
from proxy.phases import Role
from proxy.request.body import Body
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate
from proxy.serving.healing import BURST, CONFIRM_S, RESERVE, SHARE, USELESS_AFTER, Healing
from proxy.simulation import StandIn
from proxy.simulation.engine.request import Request, Sampling
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.publisher import EventForm
from tests.helpers.service import UNHURRIED, Answer, Pair, ask, engines, fleet, kvproxy, wait_until

ENGINE = "a:1"
BLOCK = 16


# ---- when a leg asks --------------------------------------------------------------------------------------


class Source:
    def __init__(self) -> None:
        self.state = "partial"
        self.epoch = 0


class Scene:
    """One partial rank, and an engine that has whatever a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = self.learnt = 0
        self.index = PrefixIndex()
        self.fleet = Fleet()
        self.source = Source()
        self.join()
        self.healing = Healing(self.fleet, self.index, self._heard, lambda: self.now)

    def join(self) -> None:
        instance = Instance(parse_instance(ENGINE, Role.PREFILL))
        instance.is_followed({0: self.source})
        self.fleet.add(instance)

    def _heard(self, happening: Happening) -> None:
        match happening:
            case ReportAsked(instance, rank):
                self.asked += 1
            case BlocksLearnt(instance, rank, blocks):
                self.learnt += blocks
            case _:
                raise AssertionError(happening)
        assert (instance, rank) == (ENGINE, 0)

    def store(self, prompt: list[int], blocks: int) -> None:
        hashes: list[int | bytes] = [hash(tuple(prompt[: BLOCK * (n + 1)])) % 2**64 for n in range(blocks)]
        self.index.store(ENGINE, 0, BlockStored(hashes, None, prompt[: blocks * BLOCK], BLOCK, medium="GPU"))

    def leg(self, prompt: list[int] | None, *, reported: int | None = 0, tells: bool = True) -> bool:
        """A prefill leg; whether it asked. `tells`: a report that is asked for tells of the blocks."""
        question = Question("tiny", None if prompt is None else Prompt(prompt), 50)
        match = self.index.match(question.prompt) if question.prompt else {}
        cached = match.get(Slot(ENGINE, 0, "GPU"), 0) if prompt is not None else None
        state = self.source.state
        chosen = Candidate(ENGINE, 0, True, None, cached, cached, None, 0, state)
        asked = self.healing.wants_report(chosen, question)
        if asked and tells and prompt is not None:
            self.store(prompt, (reported or 0) // BLOCK)
        handoff = Handoff(None, None if prompt is None else len(prompt), reported, None)
        self.healing.answered(chosen, question, handoff, asked=asked)
        return asked

    @property
    def told(self) -> tuple[int, int, int, bool]:
        told = self.healing.status(ENGINE, 0)
        assert told is not None
        return told.legs, told.blocks_learnt, told.suspected_prefixes, told.refused


def prompt(seed: int, tokens: int = 65) -> list[int]:
    return [seed, *range(tokens - 1)]


def test_blocks_nobody_told_of_are_learnt_with_the_first_leg_that_meets_them() -> None:
    scene = Scene()
    assert scene.leg(prompt(1), reported=48)
    assert scene.told == (1, 0, 0, False)  # events may still be on their way
    scene.now += CONFIRM_S
    assert scene.told == (1, 3, 0, False)
    assert (scene.asked, scene.learnt) == (1, 3)
    assert scene.leg(prompt(1), reported=48)  # its fourth block is not known
    scene.store(prompt(1), 4)
    assert not scene.leg(prompt(1), reported=64)  # all that can be reused is


@pytest.mark.parametrize("state", ["exact", "unknown"])
def test_nobody_asks_where_nothing_can_be_missing_or_nothing_is_known(state: str) -> None:
    scene = Scene()
    scene.source.state = state
    assert not scene.leg(prompt(1), reported=48)
    assert scene.healing.status(ENGINE, 0) is None


def test_prompts_of_unknown_tokens_and_without_a_whole_block_ask_nothing() -> None:
    scene = Scene()
    assert not scene.leg(None)
    assert not scene.leg(prompt(1, 16))
    assert scene.leg(prompt(1, 17))


def test_the_share_of_legs_that_ask_is_bounded() -> None:
    scene = Scene()
    legs = 3000
    asked = sum(scene.leg(prompt(n)) for n in range(legs))
    assert BURST - RESERVE < asked <= BURST + SHARE * legs
    assert scene.told[0] == asked


def test_where_the_budget_is_short_only_beginnings_the_engine_is_known_to_have_are_asked_about() -> None:
    scene = Scene()
    assert scene.leg(prompt(0))
    scene.healing._ranks[ENGINE, 0].budget = RESERVE / 2
    shared = prompt(901, 33)
    assert not scene.leg([*shared, 1], reported=32)
    assert scene.told[2] == 1
    assert not scene.leg(prompt(902))
    assert scene.leg([*shared, 2, *range(50)], reported=32)
    assert scene.told[2] == 0
    assert not scene.leg([*shared, 3, *range(50)], reported=32)  # it is known now


def test_an_engine_that_ignores_the_question_is_asked_rarely() -> None:
    scene = Scene()
    for n in range(USELESS_AFTER):
        assert scene.leg(prompt(n), reported=48, tells=False)
        scene.now += CONFIRM_S
    legs = 3000
    asked = sum(scene.leg(prompt(n % 5), reported=48, tells=False) for n in range(legs))
    assert asked <= BURST + SHARE * legs / 16
    assert scene.told[1] == 0
    while not scene.leg(prompt(1), reported=48):
        scene.now += CONFIRM_S
    scene.now += CONFIRM_S
    assert scene.told[1] == 3  # it has learnt to


def test_an_engine_that_refuses_is_asked_no_more_until_it_is_another_process() -> None:
    scene = Scene()
    assert scene.leg(prompt(1))
    scene.healing.refused(Candidate(ENGINE, 0, True, None, 0, 0, None, 0, "partial"))
    assert not scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, True)
    scene.source.epoch += 1
    assert scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, False)


def test_what_was_kept_of_an_instance_goes_with_it() -> None:
    scene = Scene()
    assert scene.leg(prompt(1), reported=48)
    scene.fleet.remove(ENGINE)
    assert scene.healing.status(ENGINE, 0) is None
    assert not scene.leg(prompt(1), reported=48)
    scene.join()
    assert scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, False)


def test_an_engine_that_reports_nothing_or_counts_otherwise_teaches_nothing() -> None:
    scene = Scene()
    assert scene.leg(prompt(0))
    scene.healing._ranks[ENGINE, 0].budget = RESERVE / 2
    assert not scene.leg(prompt(901), reported=None)
    question = Question("tiny", Prompt(prompt(902)), 50)
    chosen = Candidate(ENGINE, 0, True, None, 0, 0, None, 0, "partial")
    scene.healing.answered(chosen, question, Handoff(None, 64, 48, None), asked=False)
    assert scene.told[2] == 0


# ---- how a leg asks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, {}),
        ({"vllm_xargs": None}, {}),
        ({"vllm_xargs": {}}, {}),
        ({"vllm_xargs": {"mine": 1.50}, "session_id": None}, {"mine": 1.50}),
        ({"session_id": "s"}, None),
        ({"vllm_xargs": {"session_id": "s"}}, None),
        ({"vllm_xargs": "odd"}, None),
    ],
)
def test_the_question_is_added_to_what_the_client_says_or_not_asked(
    members: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    asking = asking_for_report(Body.parse(json.dumps({"prompt": "hi", **members}).encode()))
    if expected is None:
        assert asking is None
    else:
        assert asking is not None
        report = {"kv_cache_report_mode": "full", "session_id": "kvproxy-cache-report"}
        assert json.loads(asking.encoded()) == {"prompt": "hi"} | members | {"vllm_xargs": expected | report}


# ---- a late joiner ----------------------------------------------------------------------------------------

PREFIXES = [[100 + n, *range(200, 200 + 16 * (3 + n % 5))] for n in range(30)]


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


async def test_without_reports_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_reset_ends_what_is_unknown() -> None:
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


async def test_a_retry_asks_nothing_beside() -> None:
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
