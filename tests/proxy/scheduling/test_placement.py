"""Decisions from what is known: caches, loads, predictions, failures."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.config import Admission, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.circuit import Breaker
from proxy.phases import Phase, Role
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import CacheAffinity, LeastLoad, RoundRobin
from proxy.scheduling.question import Question
from proxy.scheduling.types import AnyPolicy, Candidate, Leg, Policy, View

PREFIX = list(range(1000, 2000))


class Exact:
    state = "exact"
    epoch = 0


class Scene:
    """Three prefill and two decode instances, exactly known, block size 10."""

    def __init__(self, limits: Admission | None = None, policy: AnyPolicy | None = None) -> None:
        self.now = 0.0
        self.index = PrefixIndex()
        self.fleet = Fleet()
        roles = {
            "a:1": Role.PREFILL,
            "b:1": Role.PREFILL,
            "c:1": Role.PREFILL,
            "d:1": Role.DECODE,
            "e:1": Role.DECODE,
        }
        for address, role in roles.items():
            instance = Instance(parse_instance(address, role))
            instance.came_up()
            instance.listed([ModelCard("tiny")], 0.0)
            instance.is_followed({0: Exact()})
            self.fleet.add(instance)
        self.placement = Placement(
            self.fleet,
            self.index,
            policy or CacheAffinity(),
            "cache_affinity",
            clock=lambda: self.now,
            rng=random.Random(1),
            limits=limits,
        )

    def cache(self, address: str, tokens: list[int], block_size: int = 10) -> None:
        hashes: list[int | bytes] = list(range(len(tokens) // block_size))
        whole = tokens[: len(hashes) * block_size]
        self.index.store(address, 0, BlockStored(hashes, None, whole, block_size, medium="GPU"))

    def decide(self, tokens: list[int] | None, **more: Any) -> Decision:
        return self.placement.decide(ask(tokens), **more)

    def start_prefill(self, tokens: list[int]) -> str:
        question = ask(tokens)
        chosen = self.placement.decide(question).prefill.chosen
        assert chosen is not None
        self.placement.expect(chosen, question)
        self.placement.claim(chosen, Phase.PREFILL, question)
        return chosen.instance


def ask(tokens: list[int] | None) -> Question:
    return Question("tiny", None if tokens is None else Prompt(tokens), 50)


def chosen(decision: Decision) -> tuple[str | None, str | None]:
    prefill, decode = decision.prefill.chosen, decision.decode.chosen
    return (prefill.instance if prefill else None, decode.instance if decode else None)


def test_both_legs_go_where_the_prefix_is() -> None:
    scene = Scene()
    scene.cache("b:1", PREFIX)
    scene.cache("e:1", PREFIX[:500])
    decision = scene.decide([*PREFIX, 1, 2, 3])
    assert chosen(decision) == ("b:1", "e:1")
    terms = {p.candidate.instance: p for p in [*decision.prefill.candidates, *decision.decode.candidates]}
    assert (terms["b:1"].candidate.cached_tokens, terms["b:1"].cost) == (1000, 3.0)
    assert (terms["a:1"].candidate.cached_tokens, terms["a:1"].cost) == (0, 1003.0)
    assert (terms["e:1"].candidate.cached_tokens, terms["e:1"].cost) == (500, 503.0)


def test_a_saturated_holder_loses_to_computing_elsewhere() -> None:
    scene = Scene()
    scene.cache("b:1", PREFIX)
    for n in range(3):
        question = Question("tiny", None, 400 + n)
        candidate = scene.decide(PREFIX).prefill.chosen
        assert candidate is not None
        scene.fleet.claim("b:1", 0, Phase.PREFILL, question.estimated_tokens)
    assert chosen(scene.decide(PREFIX))[0] in {"a:1", "c:1"}


def test_a_burst_with_one_prefix_meets_before_the_first_is_computed() -> None:
    scene = Scene()
    for address in ("b:1", "c:1"):
        scene.fleet.claim(address, 0, Phase.PREFILL, 2000)
    assert [scene.start_prefill([*PREFIX, n]) for n in range(5)] == ["a:1"] * 5


def test_claims_end_once_and_load_with_them() -> None:
    scene = Scene()
    instance = scene.fleet.get("a:1")
    assert instance is not None
    with scene.fleet.claim("a:1", 0, Phase.PREFILL, 70) as claim:
        assert instance.load_tokens(Phase.PREFILL, 0) == 70
        assert instance.load_tokens(Phase.DECODE, 0) == 0
        claim.end()
        assert instance.load_tokens(Phase.PREFILL, 0) == 0
    assert instance.running_legs() == 0


def test_a_leg_that_does_both_is_work_until_its_prompt_is_computed_and_a_stream_until_its_end() -> None:
    scene = Scene()
    scene.cache("d:1", PREFIX)
    question = Question("tiny", Prompt([*PREFIX, 1, 2, 3]), 50, whole=True, generated_tokens=50)
    there = scene.placement.decide(question).decode.chosen
    assert there is not None
    assert there.instance == "d:1"
    instance = scene.fleet.get("d:1")
    assert instance is not None
    load = instance.load.on(Phase.DECODE, 0)
    claim = scene.placement.claim(there, Phase.DECODE, question, computes=True)
    assert (load.prefill_tokens, load.decode_tokens, load.weight_tokens) == (3, 1003, 1053)
    (seen,) = (c.candidate for c in scene.decide(PREFIX).decode.candidates if c.candidate.instance == "d:1")
    assert (seen.prefill_tokens, seen.decode_tokens, seen.load_tokens) == (3, 1003, 1003)
    assert seen.running_legs == 1
    claim.computed()
    assert (load.prefill_tokens, load.decode_tokens, load.weight_tokens) == (0, 1003, 1053)
    claim.end()
    assert (load.prefill_tokens, load.decode_tokens, load.weight_tokens, load.legs) == (0, 0, 0, 0)


def test_a_prompt_that_is_not_known_is_placed_by_load_alone() -> None:
    scene = Scene()
    scene.cache("a:1", PREFIX)
    scene.fleet.claim("a:1", 0, Phase.PREFILL, 1)
    scene.fleet.claim("b:1", 0, Phase.PREFILL, 1)
    decision = scene.decide(None)
    assert chosen(decision)[0] == "c:1"
    assert {p.candidate.uncached_tokens for p in decision.prefill.candidates} == {None}


def test_an_instance_whose_index_is_unknown_counts_as_caching_nothing() -> None:
    scene = Scene()
    scene.cache("a:1", PREFIX)
    instance = scene.fleet.get("b:1")
    assert instance is not None
    instance.is_followed({})
    terms = {p.candidate.instance: p.candidate for p in scene.decide([*PREFIX, 1]).prefill.candidates}
    assert terms["b:1"].cached_tokens is None
    assert terms["b:1"].uncached_tokens == 1001
    assert terms["b:1"].index == "unknown"


def test_an_instance_that_failed_just_now_is_used_only_if_there_is_no_other() -> None:
    scene = Scene()
    scene.cache("a:1", PREFIX)
    decision = scene.decide([*PREFIX, 1], failed={"a:1", "d:1"})
    assert chosen(decision)[0] in {"b:1", "c:1"}
    assert chosen(decision)[1] == "e:1"
    whys = {p.candidate.instance: p.candidate.why for p in decision.prefill.candidates}
    assert whys["a:1"] == "failed just now"
    assert chosen(scene.decide([*PREFIX, 1], failed={"a:1", "b:1", "c:1", "d:1", "e:1"}))[0] == "a:1"


def test_a_repeated_prefill_prefers_the_instance_that_computed_it() -> None:
    scene = Scene()
    scene.cache("a:1", PREFIX)
    assert chosen(scene.decide(PREFIX, prefill_on="c:1"))[0] == "c:1"
    gone = scene.fleet.get("c:1")
    assert gone is not None
    gone.went_down("gone")
    assert chosen(scene.decide([*PREFIX, 1], prefill_on="c:1"))[0] == "a:1"


def test_only_instances_that_serve_the_model_are_usable() -> None:
    scene = Scene()
    adapter = scene.fleet.get("c:1")
    assert adapter is not None
    adapter.listed([ModelCard("tiny"), ModelCard("alpha", "tiny")], 0.0)
    decision = scene.placement.decide(Question("alpha", Prompt(PREFIX), 1))
    assert chosen(decision) == ("c:1", None)
    assert not decision.admissible
    assert {p.candidate.why for p in decision.decode.candidates} == {"model not served"}


def test_what_an_engine_that_does_both_has_cached_makes_its_leg_no_smaller() -> None:
    scene = Scene(Admission(max_decode_tokens=2500))
    for address in ("a:1", "b:1", "c:1", "d:1", "e:1"):
        scene.fleet.remove(address)
    both = Instance(parse_instance("f:1", Role.BOTH))
    both.came_up()
    both.listed([ModelCard("tiny")], 0.0)
    both.is_followed({0: Exact()})
    scene.fleet.add(both)
    scene.cache("f:1", PREFIX)
    placed = 0
    while (one := scene.decide(PREFIX).decode.chosen) is not None and placed < 5:
        scene.placement.claim(one, Phase.DECODE, ask(PREFIX))
        placed += 1
    assert placed == 2
    assert both.running_tokens() == 2000


def test_block_sizes_may_differ_between_instances() -> None:
    scene = Scene()
    scene.cache("a:1", PREFIX, 16)
    scene.cache("b:1", PREFIX, 100)
    terms = {p.candidate.instance: p.candidate for p in scene.decide(PREFIX).prefill.candidates}
    assert terms["a:1"].cached_tokens == 992
    assert (
        terms["b:1"].cached_tokens == 900
    )  # the last token is always computed, and reuse is by whole blocks


def test_an_instance_that_says_it_is_full_is_not_used_even_over_the_limit() -> None:
    scene = Scene()
    for address in ("d:1", "e:1"):
        found = scene.fleet.get(address)
        assert found is not None
        found.fullness.said(0.0, 0, 0.0)
    decision = scene.decide([1], over_limit=True)
    assert not decision.admissible
    assert {p.candidate.why for p in decision.decode.candidates} == {"says it is full"}
    scene.now = 1.0
    assert scene.decide([1]).admissible


def test_a_full_one_is_waited_for_rather_than_one_that_fails_but_not_rather_than_one_that_starts() -> None:
    scene = Scene()
    d, e = scene.fleet.get("d:1"), scene.fleet.get("e:1")
    assert d is not None
    assert e is not None
    d.fullness.said(0.0, 0, 0.0)
    for _ in range(3):
        e.breaker.engine_failed(0.0)
    assert scene.decide([1]).decode.chosen is None
    assert {p.candidate.why for p in scene.decide([1]).decode.candidates} == {"says it is full", "failing"}
    starting = Breaker(slow_start_s=60.0, joins=True)
    starting.answered(0.0)
    e.breaker = starting
    scene.fleet.claim("e:1", 0, Phase.DECODE, 1)  # its share
    assert scene.fleet.set_aside(Phase.DECODE, 0.0) == {"e:1": "slow start"}
    assert chosen(scene.decide([1]))[1] == "e:1"


def test_an_instance_that_failed_once_is_used_rather_than_a_full_one_waited_for() -> None:
    scene = Scene()
    d, e = scene.fleet.get("d:1"), scene.fleet.get("e:1")
    assert d is not None
    assert e is not None
    e.fullness.said(0.0, 0, 0.0)
    for failed in ({"d:1"}, {"d:1", "e:1"}, {"e:1"}, set[str]()):
        assert chosen(scene.decide([1], failed=failed))[1] == "d:1"
    assert chosen(scene.decide([1], failed=Counter({"d:1": 2})))[1] is None  # again and again: better wait
    assert chosen(scene.decide([1], failed=Counter({"d:1": 2, "e:1": 2})))[1] == "d:1"
    for _ in range(3):
        d.breaker.engine_failed(0.0)
    for failed in ({"d:1"}, {"d:1", "e:1"}, set[str]()):
        assert chosen(scene.decide([1], failed=failed))[1] is None
    e.fullness.forget()
    assert chosen(scene.decide([1], failed={"d:1"}))[1] == "e:1"


def test_nor_does_a_full_one_stand_for_others_that_are_worse_than_the_one_that_failed() -> None:
    scene = Scene()
    b, c = scene.fleet.get("b:1"), scene.fleet.get("c:1")
    assert b is not None
    assert c is not None
    b.fullness.said(0.0, 0, 0.0)
    for _ in range(3):
        c.breaker.engine_failed(0.0)
    assert chosen(scene.decide([1], failed={"a:1"}))[0] == "a:1"
    b.fullness.forget()
    assert chosen(scene.decide([1], failed={"a:1"}))[0] == "b:1"


def test_a_policy_derived_from_the_protocol_may_price_legs() -> None:
    class Derived(Policy):
        def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
            return LeastLoad().costs(leg, candidates)

    decision = Scene(policy=Derived()).decide([1, 2, 3])  # type: ignore[abstract]  # it prices no pairs
    assert decision.admissible


class _Blind:
    reads_prompt = False

    def costs(self, _leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
        return [0.0 for _ in candidates]


class _BlindOfPairs:
    unit = "places"
    reads_prompt = False

    def prices(self, view: View) -> Sequence[float]:
        return [0.0 for _ in view.pairs]


class _Silent:
    def costs(self, _leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
        return [0.0 for _ in candidates]


class _NearTheCache(LeastLoad):
    """Prices of its own, which do read the prompt."""

    def costs(self, _leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        return [-float(candidate.cached_tokens or 0) for candidate in candidates]


class _BlindAsWell(_NearTheCache):
    reads_prompt = False


class _Renamed(RoundRobin):
    unit = "turns"


@pytest.mark.parametrize(
    ("policy", "limits", "reads"),
    [
        (_NearTheCache(), Admission(), True),
        (_BlindAsWell(), Admission(), False),
        (_Renamed(), Admission(), False),
        (CacheAffinity(), Admission(), True),
        (LeastLoad(), Admission(), False),
        (RoundRobin(), Admission(), False),
        (_Silent(), Admission(), True),
        (_Blind(), Admission(), False),
        (_BlindOfPairs(), Admission(), False),
        (RoundRobin(), Admission(max_prefill_tokens=1000), True),
        (RoundRobin(), Admission(max_decode_tokens=1000), True),
    ],
)
def test_a_prompt_matters_to_a_policy_that_does_not_deny_it_and_to_limits_of_tokens(
    policy: AnyPolicy, limits: Admission, reads: bool
) -> None:
    assert Scene(limits, policy).placement.reads_prompt is reads


def test_a_prompt_matters_while_contexts_differ() -> None:
    scene = Scene(policy=RoundRobin())
    for instance in scene.fleet:
        instance.listed([ModelCard("tiny", max_model_len=100)], 0.0)
    assert not scene.placement.reads_prompt
    _, second, *_ = scene.fleet
    second.listed([ModelCard("tiny", max_model_len=200)], 0.0)
    assert scene.placement.reads_prompt
    second.listed([ModelCard("tiny")], 0.0)
    assert scene.placement.reads_prompt, "one that tells none takes what others do not"
    scene.fleet.remove(second.address)
    assert not scene.placement.reads_prompt
