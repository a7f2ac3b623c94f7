"""Retries stay a share of the running requests, and a single failure always has budget."""

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.serving.retry_budget import BACKOFF_BASE_S, MAX_BACKOFF_S, MIN_RETRIES, RetryBudget, backoff_s


def test_a_single_failure_always_has_budget() -> None:
    budget = RetryBudget(lambda: 0.0)
    budget.begin()
    assert budget.take()


def test_a_few_retries_may_run_and_then_a_share() -> None:
    budget = RetryBudget(lambda: 0.2)
    assert [budget.take() for _ in range(MIN_RETRIES + 1)] == [True] * MIN_RETRIES + [False]
    for _ in range(25):
        budget.begin()
    assert [budget.take() for _ in range(3)] == [True, True, False]  # five of twenty-five
    for _ in range(25):
        budget.end()
    assert not budget.take()


def test_budget_that_is_given_back_may_be_taken_again() -> None:
    budget = RetryBudget(lambda: 0.0)
    for _ in range(100):
        assert budget.take()
        budget.give_back()


STEPS = st.lists(st.sampled_from(["begin", "end", "take", "give back"]), max_size=200)


@given(STEPS, st.floats(0, 1))
def test_no_retry_is_granted_beyond_the_budget(steps: list[str], share: float) -> None:
    budget = RetryBudget(lambda: share)
    running = retries = 0
    for step in steps:
        if step == "begin":
            budget.begin()
            running += 1
        elif step == "end" and running:
            budget.end()
            running -= 1
        elif step == "take":
            room = retries < max(3, int(share * running))
            assert budget.take() is room
            retries += room
        elif step == "give back" and retries:
            budget.give_back()
            retries -= 1
        assert (budget.requests, budget.retries) == (running, retries)


@given(st.integers(0, 10_000), st.integers())
def test_pauses_are_jittered_and_bounded(pauses: int, seed: int) -> None:
    pause_s = backoff_s(pauses, random.Random(seed))
    assert 0 <= pause_s <= min(MAX_BACKOFF_S, BACKOFF_BASE_S * 2 ** min(pauses, 10))


def test_pauses_grow() -> None:
    rng = random.Random(1)
    means = [sum(backoff_s(n, rng) for _ in range(500)) / 500 for n in range(5)]
    assert means == sorted(means)
