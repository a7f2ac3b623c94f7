"""Blocks in a slower tier count for less than blocks that an engine can compute from at once, and for more
than none.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockHasher, BlockStored, PrefixIndex, Prompt
from proxy.cli.flags import read_config
from proxy.config import TIER_COSTS, parse_instance, read_tier_costs
from proxy.errors import ConfigError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Phase, Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.question import Question

SIZE = 4
TIERS = ("GPU", "CPU", "STORAGE")
LENGTH = 6


def store(index: PrefixIndex, block: int, tier: str, *, instance: str = "a:1", size: int = SIZE) -> None:
    """Block `block` of the one long prompt, whose tokens are 0, 1, 2, ..."""
    tokens = list(range(block * size, (block + 1) * size))
    index.store(instance, 0, BlockStored([block + 1], block or None, tokens, size, medium=tier))


def told(index: PrefixIndex, tokens: int, tiers: tuple[str, ...] = TIERS[1:]) -> dict[str, int]:
    return index.match_slower(Prompt(range(tokens)), tiers).get(("a:1", 0), {})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from(TIERS)), min_size=LENGTH, max_size=LENGTH),
    st.integers(0, LENGTH * SIZE + 3),
    st.permutations(TIERS[1:]),
)
def test_behind_the_fast_prefix_each_block_counts_for_the_first_tier_that_has_it(
    lies_in: list[set[str]], tokens: int, order: list[str]
) -> None:
    index = PrefixIndex(BlockHasher(b"test"))
    for block, where in enumerate(lies_in):
        for tier in where:
            store(index, block, tier)
    placed = 0
    while placed < LENGTH and lies_in[placed]:
        placed += 1  # a block whose parent lies nowhere has no key
    block, whole, expected = 0, min(placed, max(0, tokens - 1) // SIZE), dict[str, int]()
    while block < whole and "GPU" in lies_in[block]:
        block += 1
    while block < whole and (slower := [tier for tier in order if tier in lies_in[block]]):
        expected[slower[0]] = expected.get(slower[0], 0) + SIZE
        block += 1
    assert told(index, tokens, tuple(order)) == expected


def test_block_sizes_and_instances_are_told_apart() -> None:
    index = PrefixIndex()
    store(index, 0, "CPU")
    store(index, 0, "CPU", instance="b:1", size=8)
    store(index, 0, "GPU", instance="c:1")
    assert index.match_slower(Prompt(range(20)), ("CPU",)) == {("a:1", 0): {"CPU": 4}, ("b:1", 0): {"CPU": 8}}
    assert index.match_slower(Prompt(range(20)), ("STORAGE",)) == {}


class Exact:
    state = "exact"
    epoch = 0


def placement(index: PrefixIndex, costs: dict[str, float]) -> Placement:
    fleet = Fleet()
    for address, role in {"a:1": Role.PREFILL, "b:1": Role.PREFILL, "d:1": Role.DECODE}.items():
        instance = Instance(parse_instance(address, role))
        instance.came_up()
        instance.listed([ModelCard("tiny")], 0.0)
        instance.is_followed({0: Exact()})
        fleet.add(instance)
    rng = random.Random(1)
    return Placement(
        fleet, index, CacheAffinity(), "cache_affinity", clock=lambda: 0.0, rng=rng, tier_costs=costs
    )


@pytest.mark.parametrize(
    ("cpu_blocks", "gpu_blocks", "cost", "chosen"),
    [
        (10, 0, 0.2, "a:1"),  # reloading beats computing
        (10, 10, 0.2, "b:1"),  # and what need not be reloaded beats both
        (10, 7, 0.2, "a:1"),  # 8 computed tokens beat 12
        (10, 9, 0.2, "b:1"),  # 8 beat 4
        (10, 1, 1.0, "b:1"),  # as dear as computing: as if it were not there
        (10, 1, 0.0, "a:1"),
    ],
)
def test_a_prompt_goes_where_reloading_and_computing_cost_least(
    cpu_blocks: int, gpu_blocks: int, cost: float, chosen: str
) -> None:
    index = PrefixIndex()
    for block in range(cpu_blocks):
        store(index, block, "CPU")
    for block in range(gpu_blocks):
        store(index, block, "GPU", instance="b:1")
    placed = placement(index, {"CPU": cost})
    question = Question("tiny", Prompt(range(41)), 50)
    decision = placed.decide(question)
    assert decision.prefill.chosen is not None
    assert decision.prefill.chosen.instance == chosen
    terms = {p.candidate.instance: p for p in decision.prefill.candidates}
    a = terms["a:1"].candidate
    assert a.cached_tokens == 0
    if cost < 1:
        assert (a.reload_tokens, a.reload_cost_tokens, a.uncached_tokens) == (40, 40 * cost, 1)
        assert terms["a:1"].cost == 40 * cost + 1
    else:
        assert (a.reload_tokens, a.reload_cost_tokens, a.uncached_tokens) == (0, 0, 41)
    placed.claim(decision.prefill.chosen, Phase.PREFILL, question).end()


def test_what_a_running_leg_brings_need_not_be_reloaded_again() -> None:
    index = PrefixIndex()
    for block in range(10):
        store(index, block, "CPU")
    placed = placement(index, {"CPU": 0.5})
    first = Question("tiny", Prompt(range(21)), 50)
    chosen = placed.decide(first).prefill.chosen
    assert chosen is not None
    placed.expect(chosen, first)
    question = Question("tiny", Prompt(range(41)), 50)
    (a, *_) = [p.candidate for p in placed.decide(question).prefill.candidates]
    assert (a.cached_tokens, a.expected_tokens) == (0, 20)
    assert (a.reload_tokens, a.reload_cost_tokens, a.uncached_tokens) == (20, 10.0, 1)


def test_a_decode_leg_fetches_and_does_not_reload() -> None:
    index = PrefixIndex()
    store(index, 0, "CPU", instance="d:1")
    (decode,) = placement(index, {"CPU": 0.2}).decide(Question("tiny", Prompt(range(9)), 9)).decode.candidates
    assert (decode.candidate.reload_tokens, decode.candidate.uncached_tokens) == (0, 9)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["CPU=0.3"], {"CPU": 0.3}), (["CPU=0", "DISK=1", "x=.5"], {"CPU": 0, "DISK": 1, "x": 0.5})],
)
def test_costs_are_read(texts: list[str], expected: dict[str, float]) -> None:
    assert read_tier_costs(texts) == expected
    engines = ["serve", "-m", "tiny", "-p", "a:1", "-d", "b:1"]
    assert read_config([*engines, "--tier-cost", *texts]).tier_costs == expected
    assert read_config(engines).tier_costs == TIER_COSTS


@pytest.mark.parametrize(
    "texts",
    [["CPU"], ["CPU="], ["=1"], ["CPU=x"], ["CPU=-1"], ["CPU=2"], ["CPU=nan"], ["GPU=0"], ["a=1", "a=1"]],
)
def test_other_costs_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--tier-cost"):
        read_tier_costs(texts)
