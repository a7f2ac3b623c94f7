"""Of two that are drawn the less loaded gets the leg."""

import math
from collections import Counter
from itertools import combinations

import pytest

from proxy.phases import Phase
from proxy.scheduling.policies import PowerOfTwo
from proxy.scheduling.types import Leg
from tests.helpers.candidates import candidate


def leg(draw: float) -> Leg:
    return Leg(Phase.PREFILL, "tiny", 100, draw=draw)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_two_are_drawn_equally_often_and_priced_by_their_tokens(count: int) -> None:
    candidates = [candidate(f"{n}:1", load=n) for n in range(count)]
    draws = 60 * count * (count - 1)
    drawn: Counter[tuple[int, ...]] = Counter()
    for number in range(draws):
        costs = PowerOfTwo().costs(leg((number + 0.5) / draws), candidates)
        priced = [number for number, cost in enumerate(costs) if cost < math.inf]
        assert [costs[number] for number in priced] == priced
        drawn[tuple(priced)] += 1
    assert drawn == dict.fromkeys(combinations(range(count), 2), 120)


@pytest.mark.parametrize("draw", [0.0, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_are_always_two_where_there_are_two(count: int, draw: float) -> None:
    costs = PowerOfTwo().costs(leg(draw), [candidate(f"{n}:1") for n in range(count)])
    assert sum(cost < math.inf for cost in costs) == min(2, count)
