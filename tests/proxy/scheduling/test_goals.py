"""A goal for the first token: of the pairs that meet it, the one that costs others least."""

import math

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.scheduling.goals import OWN_SHARE, SURE_SHARE, Lateness, prices_within
from proxy.scheduling.policies.least_ms import LeastMs
from proxy.scheduling.terms import SHORTLIST, Terms, terms_of
from proxy.scheduling.types import Candidate, View
from tests.helpers.candidates import candidate

MS = st.floats(0, 1e5)


def terms(ttft_ms: float, others_ms: float) -> Terms:
    return Terms(
        wait_ms=ttft_ms, prefill_ms=0.0, overhead_ms=0.0, handshake_ms=0.0, transfer_ms=0.0,
        decode_wait_ms=0.0, step_ms=0.0, cache_price_ms=others_ms, stall_price_ms=0.0, decode_price_ms=0.0,
    )  # fmt: skip


def within(pairs: list[tuple[float, float]], left_ms: float) -> list[float]:
    """The prices of pairs of (time to first token, price for others)."""
    made = [terms(*each) for each in pairs]
    return [*prices_within([each.cost_ms for each in made], [each.ttft_ms for each in made], left_ms)]


@example([(7.9e-41, 0.0), (0.0, 1e5)], 0.0)
@given(st.lists(st.tuples(MS, MS), min_size=1, max_size=20), MS)
def test_what_is_chosen_meets_the_goal_if_anything_does_and_costs_others_least(
    pairs: list[tuple[float, float]], left_ms: float
) -> None:
    prices = within(pairs, left_ms)
    meeting = [each for each in pairs if each[0] <= SURE_SHARE * left_ms]
    if not meeting:
        assert prices == [sum(each) for each in pairs], "as without a goal"
        return
    ttft_ms, others_ms = pairs[prices.index(min(prices))]
    assert ttft_ms <= SURE_SHARE * left_ms
    least = min(others for _, others in meeting)
    assert others_ms <= least + OWN_SHARE * left_ms + 1e-6


@given(st.lists(st.tuples(MS, MS), min_size=2, max_size=20), MS)
def test_those_that_miss_it_stand_behind_in_their_usual_order(
    pairs: list[tuple[float, float]], left_ms: float
) -> None:
    prices = within(pairs, left_ms)
    late = [(sum(pair), price) for pair, price in zip(pairs, prices, strict=True) if pair[0] > left_ms]
    in_time = [p for pair, p in zip(pairs, prices, strict=True) if pair[0] <= SURE_SHARE * left_ms]
    assert [price for _, price in sorted(late)] == sorted(price for _, price in late)
    assert all(price >= most for _, price in late for most in in_time)


def test_of_equal_ones_the_sooner_is_better_and_a_late_goal_changes_nothing() -> None:
    assert within([(300.0, 5.0), (100.0, 5.0)], 1000.0)[1] < within([(300.0, 5.0), (100.0, 5.0)], 1000.0)[0]
    assert within([(300.0, 5.0), (100.0, 9.0)], -20.0) == [305.0, 109.0]


def test_pairs_that_are_not_worth_a_look_stay_so() -> None:
    latency = LatencyModel(PROFILES[UNKNOWN])
    prefill = [candidate(f"p{number}:1", uncached=8000) for number in range(2 * SHORTLIST)]
    view = View(
        "tiny", 8000, prefill, [candidate("d:1", uncached=8000)], estimated_tokens=8000, latency=latency
    )
    view.left_ms = 1e6
    prices = LeastMs().prices(view)
    assert [price < math.inf for price in prices] == [True] * SHORTLIST + [False] * SHORTLIST


@pytest.mark.parametrize(
    ("ttft_ms", "left_ms", "goal_ms", "factor", "far"),
    [
        (100.0, 50.0, 50.0, 0.0, False),
        (99.0, 50.0, 50.0, 2.0, False),
        (101.0, 50.0, 50.0, 2.0, True),
        (80.0, 20.0, 50.0, 2.0, True),  # it has waited for 30 ms
        (1.0, -60.0, 50.0, 2.0, True),
    ],
)
def test_far_late_is_by_the_time_since_the_request_came(
    ttft_ms: float, left_ms: float, goal_ms: float, factor: float, far: bool
) -> None:
    assert Lateness(ttft_ms, left_ms, goal_ms).is_far(factor) is far


def place(name: str, uncached: int, wait_ms: float = 0.0) -> Candidate:
    return msgspec.structs.replace(candidate(name, uncached=uncached), wait_ms=wait_ms)


def test_least_ms_waits_at_a_full_cache_rather_than_push_out_another_if_there_is_time() -> None:
    latency = LatencyModel(PROFILES[UNKNOWN])
    tokens = 8000
    cold_ms = latency.prefill_ms("q:1", tokens, tokens)
    warm, cold = place("p:1", 16, wait_ms=1.6 * cold_ms), place("q:1", tokens)
    decode = [place("d:1", tokens)]

    def seen(left_ms: float | None) -> View:
        view = View("tiny", tokens, [warm, cold], decode, estimated_tokens=tokens, latency=latency)
        view.left_ms = left_ms
        return view

    def chosen(left_ms: float | None) -> str:
        view = seen(left_ms)
        prices = LeastMs().prices(view)
        return view.pairs[prices.index(min(prices))].prefill.instance

    slower, quicker = (terms_of(pair, seen(None)).ttft_ms for pair in seen(None).pairs)
    assert slower > quicker
    assert chosen(None) == "q:1", "it is there much sooner"
    assert chosen(1.01 * slower / SURE_SHARE) == "p:1", "there is time, and q's cache keeps what it has"
    assert chosen(0.99 * slower / SURE_SHARE) == "q:1", "p would be late"
    assert chosen(1.0) == "q:1", "nobody is in time"
