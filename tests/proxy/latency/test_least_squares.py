"""Coefficients are never negative, are the prior's where nothing was observed, and stay right however many
observations there are."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.latency.least_squares import RIDGE, LeastSquares

PRIOR = (10.0, 0.05, 1e-7)
USUAL = (1.0, 2048.0, 2048.0**2 / 2)


def row(uncached: int, prompt: int) -> tuple[float, float, float]:
    return 1.0, uncached, uncached * (2 * prompt - uncached) / 2


def value(truth: tuple[float, ...], features: tuple[float, ...]) -> float:
    return sum(t * x for t, x in zip(truth, features, strict=True))


ROWS = st.lists(
    st.tuples(
        st.builds(lambda u, more: row(u, u + more), st.integers(1, 200_000), st.integers(0, 200_000)),
        st.floats(1e-3, 1e6),
        st.floats(1e-3, 1.0),
    ),
    max_size=60,
)


@given(ROWS)
def test_coefficients_are_finite_and_none_is_negative(
    rows: list[tuple[tuple[float, float, float], float, float]],
) -> None:
    fit = LeastSquares(PRIOR, USUAL)
    for features, observed, weight in rows:
        fit.learn(features, observed, weight)
        assert all(0 <= each < math.inf for each in fit.coefficients)
        assert fit.predict(features) > 0


@settings(max_examples=25)
@given(st.tuples(st.floats(0, 40), st.floats(0.02, 0.15), st.floats(0, 1e-6)))
def test_exact_observations_are_predicted_again(truth: tuple[float, float, float]) -> None:
    fit = LeastSquares(PRIOR, USUAL)
    rng = random.Random(1)
    seen = [row(u := int(10 ** rng.uniform(0, 5)), int(u * rng.uniform(1, 4))) for _ in range(300)]
    for features in seen:
        fit.learn(features, value(truth, features))
    for features in seen[-50:]:
        assert fit.predict(features) == pytest.approx(value(truth, features), rel=0.03)


def test_it_begins_with_the_prior() -> None:
    fit = LeastSquares(PRIOR, USUAL)
    assert fit.coefficients == PRIOR
    assert fit.prior == pytest.approx(PRIOR)


def test_what_observations_do_not_tell_is_the_priors() -> None:
    fit = LeastSquares(PRIOR, USUAL)
    for _ in range(5000):
        fit.learn(row(100, 100), 2 * value(PRIOR, row(100, 100)))
    assert fit.predict(row(100, 100)) == pytest.approx(2 * value(PRIOR, row(100, 100)), rel=0.01)
    a, b, c = fit.coefficients
    assert a > PRIOR[0]
    assert (b, c) == pytest.approx(PRIOR[1:], rel=0.2), "prompts of one length tell nothing of longer ones"


def test_a_coefficient_of_which_one_is_sure_moves_less() -> None:
    fits = [LeastSquares((1.0, 1.0), (1.0, 1.0), (1.0, sure)) for sure in (1.0, 100.0)]
    for fit in fits:
        for _ in range(20):
            fit.learn((1.0, 1.0), 4.0)
    free, held = (fit.coefficients[1] for fit in fits)
    assert free == pytest.approx(2.0, rel=0.02)
    assert held < 1.1


def test_newer_observations_count_more() -> None:
    fit = LeastSquares((1.0,), (1.0,))
    for observed in (1.0, 1.5):
        for _ in range(3000):
            fit.learn((1.0,), observed)
    assert fit.coefficients[0] == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(
    ("prior", "usual"),
    [((0.0, 0.0), (1.0, 1.0)), ((1.0, -1.0), (1.0, 0.5)), ((1.0,), (0.0,)), ((math.nan,), (1.0,))],
)
def test_a_prior_that_predicts_nothing_is_refused(prior: tuple[float, ...], usual: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="prior"):
        LeastSquares(prior, usual)


def test_a_million_updates_leave_the_equations_well_conditioned() -> None:
    """Most of them alike, so that what they do not tell fades away; then it is told again."""
    truth = (20.0, 0.06, 4e-7)
    fit = LeastSquares(PRIOR, USUAL)
    alike = row(512, 512)
    observed = value(truth, alike)
    for _ in range(1_000_000):
        fit.learn(alike, observed)
    information = np.array(fit.state()[0])
    assert np.isfinite(information).all()
    assert np.allclose(information, information.T, rtol=1e-9)
    assert np.linalg.cond(information + RIDGE * np.eye(3)) < 1e6
    assert fit.predict(alike) == pytest.approx(observed, rel=1e-3)
    rng = random.Random(0)
    for _ in range(2000):
        uncached = int(10 ** rng.uniform(0, 5))
        features = row(uncached, int(uncached * rng.uniform(1, 3)))
        fit.learn(features, value(truth, features) * math.exp(rng.gauss(0, 0.1)))
    for uncached, prompt in ((16, 64), (16, 100_000), (2048, 2048), (100_000, 100_000)):
        features = row(uncached, prompt)
        assert fit.predict(features) == pytest.approx(value(truth, features), rel=0.05)


@given(ROWS)
def test_a_fit_restored_goes_on_as_the_one_it_was(
    rows: list[tuple[tuple[float, float, float], float, float]],
) -> None:
    fit, other = LeastSquares(PRIOR, USUAL), LeastSquares(PRIOR, USUAL)
    for features, observed, weight in rows:
        fit.learn(features, observed, weight)
    other.restore(*fit.state())
    assert other.coefficients == pytest.approx(fit.coefficients, rel=1e-9)
    for each in (fit, other):
        each.learn(row(100, 200), 30.0)
    assert other.coefficients == pytest.approx(fit.coefficients, rel=1e-9)


@pytest.mark.parametrize(
    ("information", "seen"),
    [
        ([[1.0]], [1.0]),
        ([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [1.0, math.nan, 1.0]),
        ([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]], [1.0, 1.0, 1.0]),
        ([[1.0, 9, 0], [9, 1, 0], [0, 0, 1]], [1.0, 1.0, 1.0]),
        ([[math.inf, 0, 0], [0, 1, 0], [0, 0, 1]], [1.0, 1.0, 1.0]),
    ],
)
def test_what_no_fit_has_kept_is_refused(information: list[list[float]], seen: list[float]) -> None:
    fit = LeastSquares(PRIOR, USUAL)
    with pytest.raises(ValueError, match=r"fit|sums"):
        fit.restore(information, seen)
    assert fit.coefficients == PRIOR
