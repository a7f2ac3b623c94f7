"""A prompt goes where its beginning was sent before, unless that is too little, or makes loads uneven."""

import pytest

from proxy.phases import Phase
from proxy.scheduling.policies import ApproxPrefix
from proxy.scheduling.types import CacheLost, Candidate, Granted, Leg
from tests.helpers.candidates import candidate

LONG = list(range(1, 101))


def leg(keys: list[int], *, computes: bool = True) -> Leg:
    phase = Phase.PREFILL if computes else Phase.DECODE
    return Leg(phase, "tiny", None, computes=computes, find_keys=lambda: keys)


def sent(policy: ApproxPrefix, to: Candidate, keys: list[int]) -> None:
    policy.learn(Granted("tiny", None, keys, to, candidate("decode:1")))


def cheapest(policy: ApproxPrefix, keys: list[int], candidates: list[Candidate]) -> set[str]:
    costs = policy.costs(leg(keys), candidates)
    return {c.instance for c, cost in zip(candidates, costs, strict=True) if cost == min(costs)}


@pytest.mark.parametrize(("shared", "counts"), [(100, True), (31, True), (30, False), (0, False)])
def test_a_match_counts_if_it_is_more_than_three_tenths_of_the_prompt(shared: int, counts: bool) -> None:
    policy, a, b = ApproxPrefix(), candidate("a:1", legs=5), candidate("b:1")
    sent(policy, a, LONG)
    asked = LONG[:shared] + list(range(1000, 1100 - shared))
    assert cheapest(policy, asked, [a, b]) == {"a:1" if counts else "b:1"}


def test_the_longest_match_wins_and_of_equal_ones_the_less_busy() -> None:
    policy = ApproxPrefix()
    a, b, c = candidate("a:1"), candidate("b:1", legs=9), candidate("c:1", legs=3)
    sent(policy, a, LONG[:50])
    sent(policy, b, LONG[:80])
    sent(policy, c, LONG[:80])
    assert cheapest(policy, LONG, [a, b, c]) == {"c:1"}
    assert cheapest(policy, LONG, [a, b]) == {"b:1"}


@pytest.mark.parametrize(
    ("legs", "others", "holder"),
    [(64, 0, True), (65, 0, False), (195, 130, True), (196, 130, False), (1000, 900, True)],
)
def test_the_holder_is_left_when_it_is_much_busier(legs: int, others: int, holder: bool) -> None:
    policy, a, b = ApproxPrefix(), candidate("a:1", legs=legs), candidate("b:1", legs=others)
    sent(policy, a, LONG)
    assert cheapest(policy, LONG, [a, b]) == {"a:1" if holder else "b:1"}


def test_without_keys_or_history_and_for_decode_legs_the_least_busy_is_taken() -> None:
    policy, a, b = ApproxPrefix(), candidate("a:1", legs=2), candidate("b:1", legs=1)
    assert cheapest(policy, [], [a, b]) == {"b:1"}
    assert cheapest(policy, LONG, [a, b]) == {"b:1"}
    sent(policy, a, LONG)
    assert policy.costs(leg(LONG, computes=False), [a, b]) == [2, 1]


def test_what_an_instance_lost_does_not_draw_prompts_there() -> None:
    policy, a, b = ApproxPrefix(), candidate("a:1", legs=2), candidate("b:1")
    sent(policy, a, LONG)
    policy.learn(CacheLost("a:1"))
    assert cheapest(policy, LONG, [a, b]) == {"b:1"}
    sent(policy, a, LONG)
    assert cheapest(policy, LONG, [a, b]) == {"a:1"}


def test_ranks_have_caches_of_their_own() -> None:
    policy, ranks = ApproxPrefix(), [candidate("a:1", rank=rank) for rank in range(3)]
    sent(policy, ranks[1], LONG)
    costs = policy.costs(leg(LONG), ranks)
    assert costs.index(min(costs)) == 1
