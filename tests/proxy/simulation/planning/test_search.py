"""Limits are found by few runs, and it is known when there is none."""

import pytest

from proxy.simulation.planning.search import HIGHEST, PRECISION, Bracket, most_runs, search


def searched(limit: float, guess: float, lowest: float = 0.05) -> tuple[Bracket, int]:
    runs: list[float] = []

    def meets(load: float) -> bool:
        runs.append(load)
        return load <= limit

    return search(meets, guess, lowest=lowest), len(runs)


@pytest.mark.parametrize("limit", [0.06, 0.3, 1.0, 1.04, 2.71, 40.0])
@pytest.mark.parametrize("guess", [0.1, 1.0, 3.0])
def test_a_limit_is_found_from_wherever_it_is_guessed(limit: float, guess: float) -> None:
    found, runs = searched(limit, guess)
    assert found.meets is not None
    assert found.misses is not None
    assert found.meets <= limit < found.misses
    assert found.misses / found.meets <= PRECISION * 1.01
    assert runs <= 20


@pytest.mark.parametrize("away", [0.7, 0.9, 1.0, 1.2, 1.49])
def test_a_good_guess_saves_runs(away: float) -> None:
    _, runs = searched(2.0 * away, 2.0)
    assert runs <= most_runs() == 5


def test_a_limit_that_nobody_meets_is_known_after_three_runs() -> None:
    assert searched(0.0, 1.0) == (Bracket(None, 0.05), 3)


def test_a_limit_that_everybody_meets_is_not_looked_for_for_ever() -> None:
    found, runs = searched(float("inf"), 1.0)
    assert found == Bracket(HIGHEST, None)
    assert runs < 20


def test_what_lies_outside_is_tried_at_the_end() -> None:
    assert searched(5.0, 0.001)[0].meets == pytest.approx(5.0, rel=0.06)
    assert searched(0.0, 0.001) == (Bracket(None, 0.05), 1)
