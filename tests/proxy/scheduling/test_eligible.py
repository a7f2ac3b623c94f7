"""A table of candidates shows which of them the policy may choose from."""

import itertools
from collections import Counter

import pytest

from proxy.fleet.why import ASIDE, Why
from proxy.scheduling.eligible import eligible
from proxy.scheduling.question import Constraints
from proxy.scheduling.types import Candidate


def candidate(name: str, why: Why | None = None, *, usable: bool | None = None, rank: int = 0) -> Candidate:
    return Candidate(
        instance=name,
        rank=rank,
        usable=why is None if usable is None else usable,
        why=why,
        cached_tokens=None,
        expected_tokens=None,
        uncached_tokens=None,
        load_tokens=0,
        index="unknown",
    )


FULL, SAYS_FULL = candidate("full", Why.FULL), candidate("says", Why.SAYS_FULL)
A, B, DOWN = candidate("a"), candidate("b"), candidate("down", Why.DOWN)


@pytest.mark.parametrize(
    ("candidates", "aside", "constraints", "usable", "whys"),
    [
        pytest.param([A, B, DOWN], {}, Constraints(), "a b", {"down": Why.DOWN}, id="all are equal"),
        pytest.param([A, B], {"a": Why.FAILING}, Constraints(), "b", {"a": Why.FAILING}, id="a better one"),
        pytest.param(
            [A, B],
            {"a": Why.CIRCUIT_OPEN, "b": Why.HALF_OPEN},
            Constraints(),
            "b",
            {"a": Why.CIRCUIT_OPEN},
            id="the less grave",
        ),
        pytest.param([A], {"a": Why.CIRCUIT_OPEN}, Constraints(), "a", {}, id="there is no better one"),
        pytest.param([A, B], {}, Constraints(failed={"a"}), "b", {"a": Why.FAILED}, id="failed just now"),
        pytest.param([A, B], {}, Constraints(failed={"a", "b"}), "a b", {}, id="all failed just now"),
        pytest.param(
            [A, B], {}, Constraints(tried={"a", "b"}), "", {"a": Why.FAILED, "b": Why.FAILED}, id="tried"
        ),
        pytest.param([A, B], {}, Constraints(prefill_on="a"), "a", {"b": Why.FAILED}, id="preferred"),
        pytest.param(
            [A, B],
            {"a": Why.SLOW_START},
            Constraints(prefill_on="a"),
            "b",
            {"a": Why.SLOW_START},
            id="preferred, worse",
        ),
        pytest.param(
            [A, FULL],
            {"a": Why.FAILING},
            Constraints(),
            "",
            {"a": Why.FAILING, "full": Why.FULL},
            id="wait for room",
        ),
        pytest.param(
            [A, SAYS_FULL],
            {"a": Why.SLOW_START},
            Constraints(),
            "a",
            {"says": Why.SAYS_FULL},
            id="rather a slow start",
        ),
        pytest.param(
            [A, SAYS_FULL],
            {},
            Constraints(failed={"a"}),
            "a",
            {"says": Why.SAYS_FULL},
            id="failed once, and is well",
        ),
        pytest.param(
            [A, SAYS_FULL],
            {},
            Constraints(failed=Counter({"a": 2})),
            "",
            {"a": Why.FAILED, "says": Why.SAYS_FULL},
            id="failed twice",
        ),
        pytest.param(
            [candidate("full", Why.FULL, usable=True), A],
            {},
            Constraints(over_limit=True),
            "a",
            {"full": Why.FULL},
            id="over the limit only if there is no other",
        ),
    ],
)
def test_which_candidates_may_be_picked(
    candidates: list[Candidate],
    aside: dict[str, Why],
    constraints: Constraints,
    usable: str,
    whys: dict[str, Why],
) -> None:
    for order in (candidates, candidates[::-1]):
        found = eligible(order, aside, constraints)
        assert [c.instance for c in found] == [c.instance for c in order], "all are shown, in their order"
        assert {c.instance for c in found if c.usable} == set(usable.split())
        assert {c.instance: c.why for c in found if not c.usable} == whys


@pytest.mark.parametrize(("better", "worse"), [*itertools.pairwise(ASIDE)])
def test_a_candidate_set_aside_for_a_graver_reason_is_worse(better: Why, worse: Why) -> None:
    found = eligible([A, B], {"a": worse, "b": better}, Constraints())
    assert {c.instance: c.usable for c in found} == {"a": False, "b": True}


@pytest.mark.parametrize("aside", [{}, {"a": Why.SLOW_START}])
@pytest.mark.parametrize("over_limit", [False, True])
def test_a_rank_without_room_is_not_used_while_another_of_its_instance_has_some(
    aside: dict[str, Why], over_limit: bool
) -> None:
    ranks = [candidate("a", Why.FULL, usable=over_limit), candidate("a", rank=1)]
    found = eligible(ranks, aside, Constraints(over_limit=over_limit))
    assert [c.usable for c in found] == [False, True]
