"""A slow member has its factor, and the formula of the others is as if it were not there."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.latency.pool import MAX_LOG_FACTOR, WINDOW, Member, Pool

TRUTH = (12.0, 0.03)


def pool_of(*names: str) -> tuple[Pool[str], list[Member]]:
    pool: Pool[str] = Pool((10.0, 0.05), (1.0, 2048.0))
    return pool, [pool.join(name) for name in names]


def observe(
    pool: Pool[str], member: Member, rng: random.Random, times: int, *, speed: float = 1.0, noise: float = 0.1
) -> None:
    for _ in range(times):
        tokens = rng.uniform(10, 10_000)
        value = speed * (TRUTH[0] + TRUTH[1] * tokens) * math.exp(rng.gauss(0, noise))
        pool.learn(member, (1.0, tokens), value)


def predicted(pool: Pool[str], member: Member, tokens: float) -> float:
    fixed, each = pool.of(member)
    return fixed + each * tokens


def test_members_that_are_alike_have_one_formula() -> None:
    pool, members = pool_of("a", "b", "c")
    rng = random.Random(1)
    for _ in range(300):
        for member in members:
            observe(pool, member, rng, 1)
    assert pool.coefficients == pytest.approx(TRUTH, rel=0.05)
    assert all(factor == pytest.approx(1, abs=0.05) for factor in pool.factors().values())


def test_a_slow_member_gets_its_factor_and_bends_nothing() -> None:
    pool, members = pool_of("a", "b", "slow")
    rng = random.Random(2)
    for _ in range(200):
        for member, speed in zip(members, (1, 1, 3), strict=True):
            observe(pool, member, rng, 1, speed=speed)
    assert pool.coefficients == pytest.approx(TRUTH, rel=0.05)
    assert pool.factors()["slow"] == pytest.approx(3, rel=0.05)


def test_a_slow_member_that_does_most_of_the_work_bends_nothing() -> None:
    pool, (quick, slow) = pool_of("quick", "slow")
    rng = random.Random(3)
    for _ in range(100):
        observe(pool, quick, rng, 1)
        observe(pool, slow, rng, 9, speed=2.5)
    for tokens in (100, 1000, 10_000):
        truth = TRUTH[0] + TRUTH[1] * tokens
        assert predicted(pool, quick, tokens) == pytest.approx(truth, rel=0.06)
        assert predicted(pool, slow, tokens) == pytest.approx(2.5 * truth, rel=0.06)


@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("others", [0, 3])
def test_a_change_of_speed_is_followed_in_a_window(speed: float, others: int) -> None:
    pool, members = pool_of(*map(str, range(1 + others)))
    rng = random.Random(4)
    for _ in range(200):
        for member in members:
            observe(pool, member, rng, 1)
    for _ in range(WINDOW):
        for member, now in zip(members, [speed] + [1.0] * others, strict=True):
            observe(pool, member, rng, 1, speed=now)
    truth = TRUTH[0] + TRUTH[1] * 2000
    assert predicted(pool, members[0], 2000) == pytest.approx(speed * truth, rel=0.1)
    for other in members[1:]:
        assert predicted(pool, other, 2000) == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize("prior", [0.01, 100.0])
def test_a_prior_off_by_far_is_left_soon(prior: float) -> None:
    pool: Pool[str] = Pool((10.0 * prior, 0.05 * prior), (1.0, 2048.0))
    member = pool.join("a")
    observe(pool, member, random.Random(5), 30)
    for tokens in (500, 5000):
        assert predicted(pool, member, tokens) == pytest.approx(TRUTH[0] + TRUTH[1] * tokens, rel=0.15)


def test_outliers_count_little() -> None:
    pool, (member,) = pool_of("a")
    rng = random.Random(6)
    for _ in range(500):
        observe(pool, member, rng, 1, speed=rng.choice((4, 8, 20)) if rng.random() < 0.1 else 1.0)
    for tokens in (100, 1000, 10_000):
        assert predicted(pool, member, tokens) == pytest.approx(TRUTH[0] + TRUTH[1] * tokens, rel=0.08)


def test_a_member_begins_as_most_are_or_as_it_was() -> None:
    pool, members = pool_of("a", "b", "c")
    rng = random.Random(7)
    for _ in range(100):
        for member, speed in zip(members, (4, 4, 1), strict=True):
            observe(pool, member, rng, 1, speed=speed)
    truth = TRUTH[0] + TRUTH[1] * 2000
    assert predicted(pool, pool.join("new"), 2000) == pytest.approx(4 * truth, rel=0.08)
    known = pool.join("known", members[2].log_factor)
    assert predicted(pool, known, 2000) == pytest.approx(truth, rel=0.08)
    observe(pool, known, rng, WINDOW, speed=4)
    assert predicted(pool, known, 2000) == pytest.approx(4 * truth, rel=0.08)


def test_its_error_is_of_predictions_made_before() -> None:
    pool, (member,) = pool_of("a")
    before = predicted(pool, member, 1000)
    pool.learn(member, (1.0, 1000.0), 30.0)
    assert pool.errors.quantile(1.0) == pytest.approx(abs(before - 30) / 30)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 1e6), st.floats(1e-6, 1e9), st.floats(0.01, 1)), max_size=80
    )
)
def test_whatever_is_observed_predictions_are_finite(rows: list[tuple[int, float, float, float]]) -> None:
    pool, members = pool_of("a", "b", "c")
    for index, tokens, value, weight in rows:
        pool.learn(members[index], (1.0, tokens), value, weight)
        for member in members:
            assert abs(member.log_factor) <= MAX_LOG_FACTOR
            assert 0 < predicted(pool, member, 1000) < math.inf


def test_a_pool_restored_goes_on_as_the_one_it_was() -> None:
    pool, (member,) = pool_of("a")
    observe(pool, member, random.Random(8), 100, speed=3)
    other: Pool[str] = Pool((10.0, 0.05), (1.0, 2048.0))
    other.restore(pool.state())
    again = other.join("a", member.log_factor)
    assert other.of(again) == pytest.approx(pool.of(member))
    assert other.state() == pool.state()
