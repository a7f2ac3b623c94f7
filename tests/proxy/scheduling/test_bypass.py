"""Which requests a decode instance serves whole: by a number of tokens whatever the policy, by the policy if
it weighs that, or never.
"""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.config import Admission, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.why import Why
from proxy.phases import Phase, Role
from proxy.scheduling.bypass import Bypass, few_left, offered
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import CacheAffinity, LeastLoad, LeastMs, RoundRobin
from proxy.scheduling.question import Question
from proxy.scheduling.sides import PricedPlaces, Sides
from proxy.scheduling.types import AnyPolicy, Candidate, Pair, View
from tests.helpers.candidates import candidate

PREFIX = list(range(1000, 2000))
ROLES = {"p:1": Role.PREFILL, "q:1": Role.PREFILL, "d:1": Role.DECODE, "e:1": Role.DECODE}


class Exact:
    state = "exact"
    epoch = 0


class Pairs:
    """Prices pairs by a function, and may weigh a bypass."""

    unit = "coins"

    def __init__(self, price: Callable[[Pair], float], *, weighs_bypass: bool) -> None:
        self._price = price
        self.weighs_bypass = weighs_bypass
        self.seen: list[str] = []

    def prices(self, view: View) -> list[float]:
        self.seen = [pair.prefill.instance[0] + pair.decode.instance[0] for pair in view.pairs]
        assert view.whole or view.bypass == any(p.one_leg and not p.decode.serves_all for p in view.pairs)
        return [self._price(pair) for pair in view.pairs]


def alone_is_cheap(pair: Pair) -> float:
    return 0.0 if pair.one_leg else 1.0


class Scene:
    """Two prefill and two decode instances, exactly known, block size 10."""

    def __init__(
        self,
        bypass_tokens: int | None = None,
        policy: AnyPolicy | None = None,
        roles: dict[str, Role] = ROLES,
        **limits: Any,
    ) -> None:
        self.bypass_tokens = bypass_tokens
        self.index = PrefixIndex()
        self.fleet = Fleet()
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
            "policy",
            clock=lambda: 0.0,
            rng=random.Random(1),
            limits=Admission(**limits),
            bypass_tokens=lambda: self.bypass_tokens,
        )

    def cache(self, address: str, tokens: list[int]) -> None:
        hashes: list[int | bytes] = list(range(len(tokens) // 10))
        whole = tokens[: len(hashes) * 10]
        self.index.store(address, 0, BlockStored(hashes, None, whole, 10, medium="GPU"))

    def instance(self, address: str) -> Instance:
        found = self.fleet.get(address)
        assert found is not None
        return found

    def decide(self, tokens: list[int] | None, **more: Any) -> Decision:
        """The decision, which is the same whether or not it is to be shown."""
        question = Question("tiny", None if tokens is None else Prompt(tokens), 50)
        question = msgspec.structs.replace(question, whole=more.pop("whole", False))
        shown = self.placement.decide(question, **more)
        followed = self.placement.decide(question, **more, shown=False)
        assert shown.bypass is followed.bypass
        return shown


def went(decision: Decision) -> tuple[str, Bypass | None]:
    picks = (decision.prefill.chosen, decision.decode.chosen)
    return "".join("-" if c is None else c.instance[0] for c in picks), decision.bypass


# -- so many tokens ------------------------------------------------------------------------------------------


def test_a_short_prompt_goes_whole_to_a_decode_instance_and_a_longer_one_has_two_legs() -> None:
    scene = Scene(100)
    legs, why = went(scene.decide(PREFIX[:100]))
    assert legs in {"dd", "ee"}
    assert why is Bypass.SHORT
    legs, why = went(scene.decide(PREFIX[:101]))
    assert legs[0] in "pq"
    assert legs[1] in "de"
    assert why is None


@pytest.mark.parametrize(
    "policy",
    [CacheAffinity(), LeastMs(), LeastLoad(), RoundRobin(), Pairs(lambda _: 1.0, weighs_bypass=False)],
)
def test_a_prompt_goes_whole_where_little_of_it_is_left_whatever_the_policy(policy: AnyPolicy) -> None:
    scene = Scene(100, policy)
    scene.cache("e:1", PREFIX[:900])
    scene.instance("e:1").load.count(Phase.DECODE, 0, 5, 5000, 5000, 0)  # which any policy would avoid
    decision = scene.decide(PREFIX)
    assert went(decision) == ("ee", Bypass.CACHED)
    why = {p.candidate.instance: p.candidate.why for p in decision.decode.candidates}
    assert why == {"d:1": Why.MORE_LEFT, "e:1": None}
    scene.cache("p:1", PREFIX)
    assert went(scene.decide([*PREFIX[:900], *range(101)]))[1] is None


def test_a_prompt_of_which_more_is_left_is_placed_as_quickly_as_without_it() -> None:
    asked: list[int] = []

    class Counted(LeastMs):
        def priced(self, sides: Sides) -> PricedPlaces:
            asked.append(len(sides.alone))
            return super().priced(sides)

        def prices(self, view: View) -> list[float]:
            asked.append(-1)
            return [0.0 for _ in view.pairs]

    scene = Scene(100, Counted())
    scene.cache("e:1", PREFIX[:900])
    question = Question("tiny", Prompt(PREFIX[:899] + PREFIX[:102]), 50)
    assert scene.placement.decide(question, shown=False).bypass is None
    assert asked == [0], "no candidate was made of those that were not chosen"
    question = Question("tiny", Prompt(PREFIX), 50)
    assert scene.placement.decide(question, shown=False).bypass is Bypass.CACHED
    assert asked == [0, 1], "and then of those alone that have few left"


def test_of_several_with_little_left_the_policy_chooses() -> None:
    scene = Scene(1000, LeastLoad())
    scene.instance("d:1").load.count(Phase.DECODE, 0, 1, 500, 500, 0)
    assert went(scene.decide(PREFIX)) == ("ee", Bypass.SHORT)
    scene.instance("e:1").load.count(Phase.DECODE, 0, 1, 600, 600, 0)
    assert went(scene.decide(PREFIX)) == ("dd", Bypass.SHORT)


def test_what_is_expected_there_counts_as_cached() -> None:
    scene = Scene(300)
    scene.cache("d:1", PREFIX[:10])  # so that its block size is known
    decision = scene.decide(PREFIX[:300])
    chosen = decision.prefill.chosen
    assert chosen is not None
    expected = scene.placement.expect(chosen, Question("tiny", Prompt(PREFIX[:300]), 50))
    legs, why = went(scene.decide(PREFIX[:500]))
    assert (legs, why) == (chosen.instance[0] * 2, Bypass.CACHED)
    expected.settle(came=False)
    assert went(scene.decide(PREFIX[:500]))[1] is None


@pytest.mark.parametrize(
    ("bypass_tokens", "tokens", "more"),
    [
        pytest.param(100, None, {}, id="an unknown prompt"),
        pytest.param(0, [1], {}, id="off"),
        pytest.param(None, [1], {}, id="auto, and a policy of legs"),
    ],
)
def test_these_have_two_legs(
    bypass_tokens: int | None, tokens: list[int] | None, more: dict[str, Any]
) -> None:
    legs, why = went(Scene(bypass_tokens).decide(tokens, **more))
    assert legs[0] != legs[1]
    assert why is None


def test_a_request_that_cannot_be_split_is_no_bypass() -> None:
    legs, why = went(Scene(100).decide([1], whole=True))
    assert legs in {"dd", "ee"}
    assert why is None


def test_the_beginning_of_a_prompt_is_no_prompt() -> None:
    scene = Scene(100)
    question = Question("tiny", Prompt([1, 2, 3]), 50, prefix_only=True)
    assert scene.placement.decide(question).bypass is None
    assert not scene.placement.is_short(question)


def test_prompts_are_read_for_it_even_if_the_policy_reads_none() -> None:
    scene = Scene(0, RoundRobin())
    assert not scene.placement.reads_prompt
    scene.bypass_tokens = 5
    assert scene.placement.reads_prompt
    scene.bypass_tokens = None
    assert not scene.placement.reads_prompt


def test_one_that_does_both_is_none_of_it() -> None:
    scene = Scene(100, roles={"b:1": Role.BOTH, "c:1": Role.BOTH})
    legs, why = went(scene.decide([1, 2]))
    assert legs in {"bb", "cc"}
    assert why is None


# -- what bounds it ------------------------------------------------------------------------------------------


def test_without_prefill_instances_a_short_prompt_is_served_and_a_long_one_is_not() -> None:
    scene = Scene(100)
    for address in ("p:1", "q:1"):
        scene.instance(address).drain()
    assert went(scene.decide([1]))[1] is Bypass.SHORT
    assert went(scene.decide(PREFIX))[0][0] == "-"


def test_a_decode_instance_that_is_out_gets_none() -> None:
    scene = Scene(100)
    scene.instance("d:1").drain()
    assert went(scene.decide([1])) == ("ee", Bypass.SHORT)
    scene.instance("e:1").went_down("gone")
    assert not scene.decide([1]).admissible


def test_the_limit_of_prefill_legs_bounds_what_a_decode_instance_computes() -> None:
    scene = Scene(100, max_prefill_tokens=120)
    question = Question("tiny", Prompt(PREFIX[:100]), 50)
    claims = []
    for _ in range(2):  # an idle one takes any
        decision = scene.placement.decide(question)
        assert decision.bypass is Bypass.SHORT
        assert decision.decode.chosen is not None
        claims.append(scene.placement.claim(decision.decode.chosen, Phase.DECODE, question, computes=True))
    assert {claim.instance.address for claim in claims} == {"d:1", "e:1"}
    assert went(scene.decide(PREFIX[:100]))[1] is None, "now it is computed elsewhere"
    assert went(scene.decide(PREFIX[:20]))[1] is Bypass.SHORT, "120 are as many as may be"
    assert went(scene.decide(PREFIX[:100], over_limit=True))[1] is Bypass.SHORT, "a retry does not wait"
    claims[0].computed()
    there = claims[0].instance.address[0]
    assert went(scene.decide(PREFIX[:100])) == (there * 2, Bypass.SHORT)


def test_the_limit_of_decode_legs_counts_prompt_and_answer() -> None:
    scene = Scene(100, max_decode_tokens=200)
    for address in ("d:1", "e:1"):
        scene.instance(address).load.count(Phase.DECODE, 0, 1, 150, 150, 0)
    assert went(scene.decide(PREFIX[:50]))[1] is Bypass.SHORT
    assert not scene.decide(PREFIX[:51]).admissible
    assert not scene.decide(PREFIX[:10], kept=[(Phase.DECODE, "d:1"), (Phase.DECODE, "e:1")]).admissible


def test_an_instance_that_failed_it_serves_it_whole_only_if_nothing_else_can() -> None:
    scene = Scene(100, roles={"p:1": Role.PREFILL, "d:1": Role.DECODE})
    assert went(scene.decide([1])) == ("dd", Bypass.SHORT)
    assert went(scene.decide([1], failed={"d:1": 1})) == ("pd", None)
    assert went(scene.decide([1], failed={"p:1": 1})) == ("dd", Bypass.SHORT)
    scene.instance("p:1").drain()
    assert went(scene.decide([1], failed={"d:1": 1})) == ("dd", Bypass.SHORT)


def test_an_instance_that_did_not_fail_it_comes_before_one_that_did() -> None:
    scene = Scene(100)
    assert went(scene.decide([1], failed={"d:1": 1})) == ("ee", Bypass.SHORT)


# -- a policy that weighs it ---------------------------------------------------------------------------------


def test_a_policy_that_weighs_it_is_offered_decode_instances_after_all_pairs() -> None:
    policy = Pairs(alone_is_cheap, weighs_bypass=True)
    scene = Scene(None, policy)
    legs, why = went(scene.decide(PREFIX))
    assert policy.seen == ["pd", "pe", "qd", "qe", "dd", "ee"]
    assert legs in {"dd", "ee"}
    assert why is Bypass.POLICY
    dear = Pairs(lambda pair: -alone_is_cheap(pair), weighs_bypass=True)
    assert went(Scene(None, dear).decide(PREFIX))[1] is None
    assert len(dear.seen) == 6


@pytest.mark.parametrize(("bypass_tokens", "weighs"), [(None, False), (0, True), (50, True), (0, False)])
def test_no_other_sees_anything_new(bypass_tokens: int | None, weighs: bool) -> None:
    policy = Pairs(alone_is_cheap, weighs_bypass=weighs)
    assert went(Scene(bypass_tokens, policy).decide(PREFIX))[1] is None
    assert policy.seen == ["pd", "pe", "qd", "qe"]


def test_predicted_milliseconds_weigh_it() -> None:
    scene, long = Scene(None, LeastMs()), list(range(20_000))
    assert went(scene.decide(long))[1] is Bypass.POLICY, "nothing is fetched, and nobody waits meanwhile"
    streaming = Question("tiny", Prompt(PREFIX), 1000)
    for priced in scene.placement.decide(streaming).decode.candidates:
        for _ in range(50):
            claim = scene.placement.claim(priced.candidate, Phase.DECODE, streaming, computes=True)
            claim.computed()
    assert went(scene.decide(long))[1] is None, "a hundred streams would wait meanwhile"
    for address in ("d:1", "e:1"):
        scene.cache(address, long)
    assert went(scene.decide(long))[1] is Bypass.POLICY, "nothing is left to compute"
    assert went(Scene(0, LeastMs()).decide(PREFIX))[1] is None


@pytest.mark.parametrize("policy", [LeastMs(), Pairs(alone_is_cheap, weighs_bypass=True)])
def test_the_limit_of_prefill_legs_bounds_a_policy_too(policy: AnyPolicy) -> None:
    scene = Scene(None, policy, max_prefill_tokens=1005)
    assert went(scene.decide(PREFIX))[1] is Bypass.POLICY
    for address in ("d:1", "e:1"):
        scene.fleet.claim(address, 0, Phase.DECODE, 10, prefill_tokens=6)
    assert went(scene.decide(PREFIX))[1] is None
    assert went(scene.decide(PREFIX[:999]))[1] is Bypass.POLICY


def test_a_prompt_that_is_not_known_may_go_whole_where_the_policy_says_so() -> None:
    scene = Scene(None, Pairs(alone_is_cheap, weighs_bypass=True), max_prefill_tokens=60)
    assert went(scene.decide(None))[1] is Bypass.POLICY
    for address in ("d:1", "e:1"):
        scene.fleet.claim(address, 0, Phase.DECODE, 10, prefill_tokens=11)
    assert went(scene.decide(None))[1] is None, "50 are estimated"


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        ({}, ["pd", "pe", "pb", "qd", "qe", "qb", "bb", "dd", "ee"]),
        ({"failed": {"d:1": 1}}, ["pe", "pb", "qe", "qb", "bb", "ee"]),
        ({"failed": {"p:1": 1, "q:1": 1}}, ["bb"]),
    ],
)
def test_beside_one_that_does_both(more: dict[str, Any], seen: list[str]) -> None:
    policy = Pairs(lambda pair: ord(pair.prefill.instance[0]), weighs_bypass=True)
    scene = Scene(None, policy, ROLES | {"b:1": Role.BOTH})
    assert went(scene.decide(PREFIX, **more)) == ("bb", None)
    assert policy.seen == seen


def test_without_prefill_instances_none_is_offered() -> None:
    policy = Pairs(alone_is_cheap, weighs_bypass=True)
    scene = Scene(None, policy)
    for address in ("p:1", "q:1"):
        scene.instance(address).drain()
    assert not scene.decide(PREFIX).admissible
    assert went(scene.decide(PREFIX, whole=True))[1] is None


def test_once_the_prompt_is_prefilled_no_decode_instance_computes_it_again() -> None:
    policy = Pairs(alone_is_cheap, weighs_bypass=True)
    scene = Scene(None, policy)
    question = Question("tiny", Prompt(PREFIX), 50)
    first = scene.placement.decide(question, failed={"d:1": 1, "e:1": 1})
    assert went(first)[1] is None
    again = scene.placement.decide_decode(question, first, failed=(), tried=["d:1"])
    assert again.decode.chosen is not None
    assert (again.decode.chosen.instance, again.bypass) == ("e:1", None)


# -- by hand -------------------------------------------------------------------------------------------------


def view(prefill: list[Candidate], decode: list[Candidate], *, tokens: int | None = 100) -> View:
    return View("tiny", tokens, prefill, decode)


P, D, E = candidate("p"), candidate("d", uncached=30), candidate("e", uncached=100)
GONE = candidate("x", usable=False)


def test_what_is_left_of_a_view_shows_everybody() -> None:
    there = few_left(view([P], [D, E, GONE]), (), tokens=50, most_prefill_tokens=0)
    assert there is not None
    assert there.whole
    assert [(c.instance, c.usable, c.why) for c in there.decode] == [
        ("d", True, None),
        ("e", False, Why.MORE_LEFT),
        ("x", False, Why.DOWN),
    ]
    assert there.pairs == [Pair(there.decode[0], there.decode[0])]


def test_why_another_is_left_out() -> None:
    busy = msgspec.structs.replace(E, instance="f", uncached_tokens=20, prefill_tokens=90)
    failed = msgspec.structs.replace(D, instance="g")
    there = few_left(view([], [D, busy, failed]), ["g"], tokens=50, most_prefill_tokens=100)
    assert there is not None
    assert [c.why for c in there.decode] == [None, Why.FULL, Why.FAILED]


def test_nobody_is_offered_twice() -> None:
    both = msgspec.structs.replace(P, instance="b", serves_all=True)
    seen = view([P, both], [D, both, GONE])
    seen.alone = offered(seen, (), estimated_tokens=0, most_prefill_tokens=0)
    assert [c.instance for c in seen.alone] == ["d"]
    assert [(a.instance, b.instance) for a, b in seen.pairs] == [
        ("p", "d"),
        ("p", "b"),
        ("b", "b"),
        ("d", "d"),
    ]
