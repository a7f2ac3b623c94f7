"""Prices, picks and predictions, all pure."""

import itertools
import math
import pathlib
import random
import re
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.caches.expected import SWEPT_AT_ONCE, Awaited, PredictedBlocks
from proxy.cli.flags.commands import SETTINGS
from proxy.errors import ConfigError
from proxy.scheduling.decision import Pick
from proxy.scheduling.legs import ByLeg
from proxy.scheduling.policies import POLICIES, CacheAffinity, LeastLoad, RoundRobin, load_policy
from proxy.scheduling.types import Candidate, Leg, LegPolicy, View
from tests.helpers.candidates import candidate


def pick(policy: LegPolicy, candidates: Sequence[Candidate], rng: random.Random) -> Pick:
    """What a policy makes of the candidates for a prefill leg."""
    return ByLeg(policy).choose(View("tiny", 100, candidates, ()), rng).prefill


@pytest.mark.parametrize(
    ("policy", "a", "b", "winner"),
    [
        (CacheAffinity(), candidate("a:1", uncached=20), candidate("b:1", uncached=100), "a:1"),
        (CacheAffinity(), candidate("a:1", uncached=20, prefill=90), candidate("b:1", uncached=100), "b:1"),
        (CacheAffinity(), candidate("a:1", uncached=None, prefill=9), candidate("b:1", uncached=None), "b:1"),
        (LeastLoad(), candidate("a:1", uncached=0, load=2), candidate("b:1", uncached=100, load=1), "b:1"),
        (RoundRobin(), candidate("a:1", last_pick=7), candidate("b:1", last_pick=3), "b:1"),
        (RoundRobin(), candidate("a:1", last_pick=1), candidate("b:1", last_pick=0, load=999), "b:1"),
    ],
)
def test_the_cheapest_is_picked(policy: LegPolicy, a: Candidate, b: Candidate, winner: str) -> None:
    for candidates in ([a, b], [b, a]):
        chosen = pick(policy, candidates, random.Random(1)).chosen
        assert chosen is not None
        assert chosen.instance == winner


def test_ties_are_drawn_from_at_random() -> None:
    rng = random.Random(1)
    names = ["a:1", "b:1", "c:1"]
    drawn = Counter(
        chosen.instance
        for _ in range(300)
        if (chosen := pick(LeastLoad(), [candidate(n) for n in names], rng).chosen)
    )
    assert set(drawn) == set(names)
    assert min(drawn.values()) > 60


def test_the_unusable_are_listed_without_a_price_and_never_picked() -> None:
    bad, good = candidate("a:1", usable=False, uncached=0), candidate("b:1")
    made = pick(CacheAffinity(), [bad, good], random.Random(1))
    assert made.chosen == good
    assert [(p.candidate.instance, p.cost) for p in made.candidates] == [("a:1", None), ("b:1", 100.0)]
    assert pick(CacheAffinity(), [bad], random.Random(1)).chosen is None


class Fixed:
    def __init__(self, costs: list[float]) -> None:
        self._costs = costs

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        return self._costs


def test_a_price_that_is_no_number_loses() -> None:
    made = pick(Fixed([math.nan, 5.0]), [candidate("a:1"), candidate("b:1")], random.Random(1))
    assert made.chosen is not None
    assert made.chosen.instance == "b:1"


def test_a_policy_with_too_few_prices_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 prices for 2 candidates"):
        pick(Fixed([1.0]), [candidate("a:1"), candidate("b:1")], random.Random(1))


def test_a_users_policy_is_loaded_by_name() -> None:
    assert isinstance(load_policy("proxy.scheduling.policies:LeastLoad"), LeastLoad)


def test_a_policy_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, type[LegPolicy]]", POLICIES), "fixed", LeastLoad)
    assert isinstance(load_policy("fixed"), LeastLoad)
    with pytest.raises(ConfigError, match="round_robin, random, fixed, or"):
        load_policy("fixe")


def test_the_flag_names_all_policies_and_the_default_is_one_of_them() -> None:
    (declared,) = (declared for declared in SETTINGS if declared.key == "policy")
    assert declared.default in POLICIES
    assert f"how instances are picked: {', '.join(POLICIES)}, or" in declared.setting.help


def test_the_page_of_policies_has_a_line_for_each_with_its_unit() -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    table = page.partition("| policy | price | `unit` |\n")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", table, re.MULTILINE))
    assert told == {name: getattr(kind(), "unit", None) for name, kind in POLICIES.items()}


def test_round_robin_visits_all_in_turn() -> None:
    last = dict.fromkeys(["a:1", "b:1", "c:1"], 0)
    rng = random.Random(3)
    visits = []
    for number in range(1, 10):
        chosen = pick(RoundRobin(), [candidate(n, last_pick=last[n]) for n in last], rng).chosen
        assert chosen is not None
        last[chosen.instance] = number
        visits.append(chosen.instance)
    assert visits[:3] == visits[3:6] == visits[6:]
    assert len(set(visits[:3])) == 3


def test_running_predictions_hold_until_they_settle_and_then_expire() -> None:
    predicted = PredictedBlocks(settle_s=2.0)
    awaited = predicted.expect("a:1", 0, [1, 2, 3])
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 9], 1000.0) == 2
    assert predicted.prefix_blocks("a:1", 1, [1, 2], 0.0) == 0
    assert predicted.prefix_blocks("b:1", 0, [1, 2], 0.0) == 0
    predicted.settle(awaited, 1000.0, came=True)
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 3, 4], 1001.9) == 3
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 3, 4], 1002.0) == 0


def test_blocks_no_longer_expected_are_forgotten_a_part_at_a_time() -> None:
    predicted = PredictedBlocks(settle_s=2.0)
    prompts = [range(first, first + 100) for first in range(0, 300 * SWEPT_AT_ONCE, 100)]
    for keys in prompts:
        predicted.settle(predicted.expect("a:1", 0, keys), 0.0, came=True)
    for left in (2 * SWEPT_AT_ONCE, SWEPT_AT_ONCE, 0):
        assert predicted.prefix_blocks("a:1", 0, prompts[-1], 2.0) == 0
        assert predicted.runs == left
    assert not predicted.prefix_blocks("a:1", 0, prompts[-1], 1.0)


def test_prompts_of_one_beginning_hold_it_once() -> None:
    predicted, system = PredictedBlocks(), tuple(range(1000))
    for chat in range(1000, 3000, 2):
        predicted.expect("a:1", 0, (*system, chat, chat + 1))
    assert predicted.runs == 1 + 1000
    assert predicted.prefix_blocks("a:1", 0, (*system, 1008, 1009, 5), 0.0) == 1002
    assert predicted.prefix_blocks("a:1", 0, (*system, 5), 0.0) == 1000
    assert predicted.prefix_blocks("a:1", 0, (*system[:70], 5), 0.0) == 70


def test_an_expected_block_takes_little_more_than_its_key() -> None:
    """A volley of long prompts is expected for seconds."""
    prompts = [array("Q", range(first, first + 4096)) for first in range(1, 1 << 20, 4096)]
    predicted = PredictedBlocks()
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        for keys in prompts:
            predicted.settle(predicted.expect("a:1", 0, memoryview(keys)), 0.0, came=True)
        after_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_bytes - before_bytes < 10 * (1 << 20)


def test_a_failed_leg_brings_nothing() -> None:
    predicted = PredictedBlocks()
    predicted.settle(predicted.expect("a:1", 0, [1, 2]), 0.0, came=False)
    assert predicted.prefix_blocks("a:1", 0, [1, 2], 0.0) == 0


def test_an_instance_that_lost_its_cache_is_expected_to_have_nothing() -> None:
    predicted = PredictedBlocks()
    of_the_old, others = (predicted.expect("a:1", 0, [1]) for _ in range(2))
    predicted.forget("a:1")
    assert predicted.prefix_blocks("a:1", 0, [1], 0.0) == 0
    predicted.settle(of_the_old, 0.0, came=False)  # the legs that were running then end without harm
    new = predicted.expect("a:1", 0, [1])
    predicted.settle(others, 0.0, came=True)
    assert predicted.legs == 1
    predicted.settle(new, 0.0, came=False)
    assert predicted.runs == predicted.legs == 0


def test_a_leg_that_shares_some_of_its_blocks_ends_with_all_of_its_own() -> None:
    predicted = PredictedBlocks(settle_s=2.0)
    first = predicted.expect("a:1", 0, [1, 2, 3, 4])
    second = predicted.expect("a:1", 0, [1, 2, 5])
    predicted.settle(first, 0.0, came=True)
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 3, 4], 1.9) == 4
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 3, 4], 2.0) == 2
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 5], 2.0) == 3
    predicted.settle(second, 2.0, came=False)
    assert predicted.prefix_blocks("a:1", 0, [1, 2, 5], 2.0) == 0
    assert predicted.runs == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_predictions_never_leak(legs: list[tuple[int, bool]]) -> None:
    predicted = PredictedBlocks(settle_s=1.0)
    awaited = [(predicted.expect("a:1", 0, range(length)), came) for length, came in legs]
    for blocks, came in awaited:
        predicted.settle(blocks, 10.0, came=came)
    assert predicted.prefix_blocks("a:1", 0, [0, 1, 2], 11.0) == 0
    assert predicted.runs == 0


class BlockByBlock:
    """What is expected, held simply: each block by all the prompts that bring it."""

    def __init__(self) -> None:
        self.running: Counter[tuple[int, ...]] = Counter()
        self.until: dict[tuple[int, ...], float] = {}

    def of(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(tokens[: n + 1]) for n in range(len(tokens))]

    def prefix_blocks(self, tokens: Sequence[int], now: float) -> int:
        blocks = self.of(tokens)
        here = (self.running[block] > 0 or self.until.get(block, 0.0) > now for block in blocks)
        return len(list(itertools.takewhile(bool, here)))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 2), max_size=6),  # tokens of a prompt, a block each
            st.integers(0, 3),  # how long its leg takes
            st.booleans(),
        ),
        max_size=20,
    ),
    st.lists(st.lists(st.integers(1, 2), max_size=7), min_size=1, max_size=4),
)
def test_the_expected_blocks_are_those_that_any_prompt_brings(
    legs: list[tuple[list[int], int, bool]], asked: list[list[int]]
) -> None:
    predicted, simple = PredictedBlocks(settle_s=2.0), BlockByBlock()

    def keys(tokens: Sequence[int]) -> list[int]:
        return [int("".join(map(str, block))) for block in simple.of(tokens)]

    ends: list[tuple[int, list[int], bool, Awaited | None]] = []
    for now, leg in enumerate([*legs, *[([], 0, False)] * 8], start=1):
        tokens, takes, came = leg
        awaited = predicted.expect("a:1", 0, keys(tokens))
        simple.running.update(simple.of(tokens))
        ends.append((now + takes, tokens, came, awaited))
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            predicted.settle(end[3], now, came=end[2])
            simple.running.subtract(simple.of(end[1]))
            if end[2]:
                simple.until |= dict.fromkeys(simple.of(end[1]), now + 2.0)
        for each in asked:
            assert predicted.prefix_blocks("a:1", 0, keys(each), now) == simple.prefix_blocks(each, now)
    assert predicted.runs == 0
