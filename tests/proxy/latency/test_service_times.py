"""From the ends of legs to what the engine took: each test is a transcript of legs, in seconds, and of what
is told, in milliseconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.latency.service_times import MAX_SUMMED, Leg, Served, ServiceTimes

CHUNK = 1000
"""A step of the engine of these tests."""


class Engine:
    def __init__(self) -> None:
        self.times = ServiceTimes(CHUNK)
        self.told: list[Served] = []

    def leg(self, began_at: float, ended_at: float, tokens: int | None = 100, **more: object) -> None:
        others = more.pop("others", None)
        assert others is None or isinstance(others, int)
        leg = Leg(began_at, ended_at, tokens, 4000 if tokens is None else tokens, **more)  # type: ignore[arg-type]  # a test's fields
        self.told += self.times.ended(leg, step_ms=2.0, overhead_ms=5.0, others=others)

    def rest(self) -> list[tuple[float, int, bool]]:
        """What was told: ms, tokens and whether the engine was idle; two legs later."""
        self.leg(1000.0, 1001.0)
        self.leg(2000.0, 2001.0)
        return [(round(each.ms, 3), each.uncached_tokens, each.idle) for each in self.told]

    def times_of(self, *, shared: bool) -> list[float]:
        """Milliseconds of those beside requests of others, or of the rest."""
        return [round(each.ms, 3) for each in self.told if each.shared == shared]


def test_a_leg_alone_took_its_own_time_with_the_overhead_in_it() -> None:
    engine = Engine()
    engine.leg(1.0, 1.1)
    engine.leg(2.0, 2.3)
    assert engine.rest() == [(100, 100, True), (300, 100, True)]


def test_legs_that_waited_took_the_time_since_the_end_before() -> None:
    engine = Engine()
    for ended_at in (1.1, 1.2, 1.3):
        engine.leg(1.0, ended_at)
    assert engine.rest() == [(100, 100, True), (100, 100, False), (100, 100, False)]


def test_a_leg_that_came_as_the_engine_became_idle_has_the_overhead_in_its_time() -> None:
    engine = Engine()
    engine.leg(1.0, 1.1)
    engine.leg(1.098, 1.2)  # 2 ms before the end; the overhead is 5 ms
    engine.leg(1.19, 1.3)  # 10 ms before
    assert engine.rest() == [(100, 100, True), (102, 100, True), (100, 100, False)]


def test_legs_of_one_step_are_summed_in_whatever_order_they_end() -> None:
    engine = Engine()
    engine.leg(1.0, 1.1)
    for began_at, ended_at, tokens in ((1.05, 1.3, 200), (1.01, 1.301, 300), (1.02, 1.3015, 50)):
        engine.leg(began_at, ended_at, tokens)
    assert engine.rest() == [(100, 100, True), (201.5, 550, False)]
    assert engine.told[1].attended == sum(t * t / 2 for t in (200, 300, 50))


def test_a_step_that_is_full_is_told_with_the_leg_that_filled_it() -> None:
    engine = Engine()
    engine.leg(1.0, 1.5, 600)
    engine.leg(1.0, 1.9, 700)
    assert engine.rest() == [(900, 1300, True)]


def test_a_leg_that_came_later_shared_nothing() -> None:
    engine = Engine()
    engine.leg(1.0, 1.5, 600)
    engine.leg(1.6, 1.9, 700)
    assert engine.rest() == [(500, 600, True), (300, 700, True)]


def test_what_is_summed_is_cut_under_lasting_load_and_that_is_told() -> None:
    engine = Engine()
    for index in range(40):
        engine.leg(1.0, 2.0 + index, 900)
    engine.rest()
    assert [each.whole for each in engine.told] == [False, False, False]
    assert [each.uncached_tokens for each in engine.told] == [MAX_SUMMED * 900, MAX_SUMMED * 900, 8 * 900]
    assert sum(each.ms for each in engine.told) == pytest.approx(40_000)


def test_an_engine_tells_itself_when_it_began() -> None:
    engine = Engine()
    engine.leg(1.0, 1.5, first_token_ms=190.0)  # 10 ms of HTTP
    engine.leg(1.0, 1.7, first_token_ms=200.0)
    assert engine.rest() == [(190, 100, False), (200, 100, False)]


def test_by_its_word_legs_shared_a_step_or_did_not() -> None:
    engine = Engine()
    engine.leg(1.0, 1.5, 600, first_token_ms=500.0)
    engine.leg(1.0, 1.9, 700, first_token_ms=400.0)  # begun after the first
    engine.leg(1.0, 2.2, 300, first_token_ms=500.0)  # begun with the second
    assert engine.rest() == [(500, 600, False), (700, 1000, False)]


def test_the_last_leg_of_a_step_may_be_the_one_that_shared() -> None:
    """By its word the long leg was begun with the first, and ended with a short one, reported before it."""
    engine = Engine()
    engine.leg(1.0, 1.5, 100, first_token_ms=400.0)
    engine.leg(1.0, 2.0, 100, first_token_ms=100.0)
    engine.leg(1.0, 2.001, 5000, first_token_ms=901.0)
    assert engine.rest() == [(901, 5200, False)]


def test_nothing_is_waited_for_if_no_other_leg_runs() -> None:
    engine = Engine()
    engine.leg(1.0, 1.1, others=0)
    assert [each.ms for each in engine.told] == [pytest.approx(100)]
    engine.leg(1.0, 1.2, others=0)
    assert [each.ms for each in engine.told] == [pytest.approx(100)] * 2


@pytest.mark.parametrize(
    "unknown", [{"served": False}, {"tokens": None}, {"tokens": -1}], ids=["failed", "no tokens", "nonsense"]
)
def test_times_that_overlap_what_nobody_knows_are_not_told(unknown: dict[str, object]) -> None:
    engine = Engine()
    engine.leg(1.0, 1.1)
    engine.leg(2.0, 2.5)  # the engine may have worked on the next until its end
    engine.leg(2.2, 2.6, **unknown)  # type: ignore[arg-type]  # a leg's fields
    engine.leg(2.3, 2.9)
    engine.leg(2.7, 3.1)  # from the end before, all is known
    assert engine.rest() == [(100, 100, True), (200, 100, False)]


def test_times_beside_requests_of_other_routers_are_shared_until_these_are_gone() -> None:
    engine = Engine()
    engine.times.gauges(0.0, requests=0, own=0)
    engine.leg(0.1, 0.2)
    engine.times.gauges(1.0, requests=3, own=3)
    engine.leg(0.9, 1.1)
    engine.times.gauges(2.0, requests=2, own=1)
    engine.leg(1.5, 2.3)
    engine.leg(2.1, 2.4)
    engine.times.gauges(3.0, requests=1, own=1)
    engine.leg(2.9, 3.3)
    engine.leg(3.1, 3.5)
    engine.rest()
    assert engine.times_of(shared=False) == [100, 200]
    assert engine.times_of(shared=True) == [200, 800, 100, 400]


def test_an_engine_that_is_asked_no_more_is_trusted_again() -> None:
    engine = Engine()
    engine.times.gauges(1.0, requests=5, own=0)
    engine.leg(2.0, 2.1)
    engine.leg(20.0, 20.2)
    engine.rest()
    assert engine.times_of(shared=True) == [100]
    assert engine.times_of(shared=False) == [200]


LEGS = st.lists(
    st.tuples(st.floats(0.01, 5), st.floats(0.001, 0.5), st.integers(0, 3000), st.booleans(), st.booleans()),
    max_size=50,
)


@given(LEGS)
def test_no_time_is_told_twice_and_no_token_is_lost_or_told_twice(
    legs: list[tuple[float, float, int, bool, bool]],
) -> None:
    """For whatever legs: the times told do not overlap by more than the overhead that is believed."""
    engine = Engine()
    end, first_start = 0.0, 0.0
    for waited, gap, tokens, served, told in legs:
        end += gap
        first_start = min(first_start, end - waited)
        engine.leg(end - waited, end, tokens, served=served, first_token_ms=gap * 500 if told else None)
    engine.rest()
    assert sum(each.ms for each in engine.told) / 1000 <= end - first_start + 0.005 * len(legs) + 1e-6
    served_tokens = sum(tokens for _, _, tokens, served, _ in legs if served)
    told_tokens = sum(each.uncached_tokens for each in engine.told)
    assert told_tokens <= served_tokens
    if all(served for *_, served, _ in legs):
        assert told_tokens == served_tokens
