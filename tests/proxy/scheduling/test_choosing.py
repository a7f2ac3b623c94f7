"""Both legs are chosen together, whether a policy prices pairs or legs."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.fleet.why import Why
from proxy.scheduling.decision import Choice
from proxy.scheduling.legs import ByLeg
from proxy.scheduling.pairs import ByPair
from proxy.scheduling.policies import LeastLoad
from proxy.scheduling.types import Candidate, Pair, View


def candidate(name: str, load: int = 0, *, usable: bool = True, serves_all: bool = False) -> Candidate:
    return Candidate(
        instance=name,
        rank=0,
        usable=usable,
        why=None if usable else Why.DOWN,
        cached_tokens=None,
        expected_tokens=None,
        uncached_tokens=None,
        load_tokens=load,
        index="unknown",
        serves_all=serves_all,
    )


def view(prefill: Sequence[Candidate] = (), decode: Sequence[Candidate] = (), *, whole: bool = False) -> View:
    return View("tiny", None, prefill, decode, whole=whole)


class Priced:
    """A policy of pairs that is a function."""

    unit = "coins"

    def __init__(self, price: Callable[[Pair], float]) -> None:
        self._price = price

    def prices(self, view: View) -> list[float]:
        return [self._price(pair) for pair in view.pairs]


def by_load(pair: Pair) -> float:
    """What `LeastLoad` asks for each leg."""
    return pair.prefill.load_tokens + (0 if pair.one_leg else pair.decode.load_tokens)


def named(choice: Choice) -> str:
    return "".join(
        "-" if pick.chosen is None else pick.chosen.instance for pick in (choice.prefill, choice.decode)
    )


P, Q, D, E = candidate("p", 1), candidate("q", 2), candidate("d", 1), candidate("e", 2)
B = candidate("b", 9, serves_all=True)
GONE = candidate("x", usable=False)


@pytest.mark.parametrize("chooser", [ByLeg(LeastLoad()), ByPair(Priced(by_load))], ids=["legs", "pairs"])
@pytest.mark.parametrize(
    ("seen", "chosen", "possible"),
    [
        pytest.param(view([P, Q, GONE], [D, E, GONE]), "pd", "pd", id="two legs"),
        pytest.param(view([B, GONE]), "bb", "pd", id="one that does both"),
        pytest.param(view([], [D, E], whole=True), "dd", "pd", id="one that is served whole"),
        pytest.param(
            view([P, B], [candidate("b", 9, usable=False)]), "bb", "pd", id="nowhere to hand over to"
        ),
        pytest.param(view([GONE], [D]), "-d", "d", id="nothing to prefill"),
        pytest.param(view([P], [GONE]), "p-", "p", id="nothing to decode"),
        pytest.param(view(), "--", "", id="nothing at all"),
    ],
)
def test_the_choice_by_a_table(chooser: ByLeg | ByPair, seen: View, chosen: str, possible: str) -> None:
    choice = chooser.choose(seen, random.Random(1))
    if "-" in chosen and isinstance(chooser, ByPair):
        chosen = "--"  # half a pair has no price
    assert named(choice) == chosen
    assert (choice.prefill.possible, choice.decode.possible) == ("p" in possible, "d" in possible)


def test_a_pair_may_be_cheapest_of_which_neither_leg_is() -> None:
    prices = {"pd": 3.0, "pe": 2.0, "qd": 2.5, "qe": 1.0}
    choice = ByPair(Priced(lambda pair: prices[pair.prefill.instance + pair.decode.instance])).choose(
        view([P, Q, GONE], [D, E]), random.Random(1)
    )
    assert named(choice) == "qe"
    assert [priced.cost for priced in choice.prefill.candidates] == [2.0, 1.0, None]
    assert [priced.cost for priced in choice.decode.candidates] == [2.5, 1.0]
    cheapest = choice.pairs.cheapest(3)
    assert [(pair.prefill.instance + pair.decode.instance, cost) for pair, cost in cheapest] == [
        ("qe", 1.0),
        ("pe", 2.0),
        ("qd", 2.5),
    ]


@pytest.mark.parametrize("chooser", [ByLeg(LeastLoad()), ByPair(Priced(by_load))], ids=["legs", "pairs"])
def test_after_the_prefill_leg_only_the_other_is_chosen(chooser: ByLeg | ByPair) -> None:
    assert named(chooser.choose_decode(view([Q], [E, D]), random.Random(1))) == "qd"
    left = chooser.choose_decode(view([Q], [GONE]), random.Random(1))
    assert left.decode.chosen is None


def test_ties_between_pairs_are_drawn_from_at_random() -> None:
    rng, chooser = random.Random(1), ByPair(Priced(lambda _: 1.0))
    drawn = Counter(named(chooser.choose(view([P, Q], [D, E]), rng)) for _ in range(400))
    assert set(drawn) == {"pd", "pe", "qd", "qe"}
    assert min(drawn.values()) > 60


def test_a_price_that_is_no_number_or_infinite_is_paid_only_if_there_is_no_other() -> None:
    prices = {"pd": math.nan, "pe": math.inf, "qd": 7.0, "qe": math.nan}
    chooser = ByPair(Priced(lambda pair: prices[pair.prefill.instance + pair.decode.instance]))
    assert named(chooser.choose(view([P, Q], [D, E]), random.Random(1))) == "qd"
    only = chooser.choose(view([P], [E]), random.Random(1))
    assert named(only) == "pe"
    assert only.prefill.candidates[0].cost == math.inf


def test_a_policy_with_too_few_prices_is_an_error() -> None:
    class Short(Priced):
        def prices(self, view: View) -> list[float]:
            return super().prices(view)[1:]

    with pytest.raises(ValueError, match="3 prices for 4 pairs"):
        ByPair(Short(by_load)).choose(view([P, Q], [D, E]), random.Random(1))


LOADS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@given(LOADS, LOADS)
def test_legs_priced_singly_are_as_cheap_as_the_cheapest_pair(prefill: list[int], decode: list[int]) -> None:
    seen = view(
        [candidate(f"p{n}", load) for n, load in enumerate(prefill)],
        [candidate(f"d{n}", load) for n, load in enumerate(decode)],
    )
    costs = []
    for chooser in (ByLeg(LeastLoad()), ByPair(Priced(by_load))):
        choice = chooser.choose(seen, random.Random(1))
        assert choice.prefill.chosen is not None
        assert choice.decode.chosen is not None
        costs.append(choice.prefill.chosen.load_tokens + choice.decode.chosen.load_tokens)
    assert costs == [min(map(sum, itertools.product(prefill, decode)))] * 2
