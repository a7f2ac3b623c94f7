"""The time that a step of the model engine takes, by tables."""

import pytest

from proxy.simulation.engine.latency import PROFILES, DynamoReplay, Linear, Profile


@pytest.mark.parametrize(
    ("uncached", "context", "expected"),
    [(10, 10, 1 + 20 + 3 * 10 * 10 / 2), (10, 110, 1 + 20 + 3 * 10 * 210 / 2), (1, 1, 1 + 2 + 1.5)],
)
def test_prefill_pays_for_tokens_and_for_what_they_attend_to(
    uncached: int, context: int, expected: float
) -> None:
    assert Linear(a=1, b=2, c=3).prefill_s(uncached, context) == pytest.approx(expected)


def test_two_halves_cost_one_whole_and_one_more_fixed_part() -> None:
    profile = Linear(a=1, b=2, c=3)
    halves = profile.prefill_s(50, 50) + profile.prefill_s(50, 100)
    assert halves == pytest.approx(profile.prefill_s(100, 100) + profile.a)


def test_a_steps_fixed_cost_is_paid_once() -> None:
    profile = Linear(a=1, b=2)
    assert profile.step_s([(1, 1), (2, 2)], 0, 0, 0.0) == pytest.approx(1 + 6)


def test_decodes_pay_for_sequences_and_context() -> None:
    assert Linear(s0=1, s1=2, s2=3).step_s([], 4, 100, 0.0) == pytest.approx(1 + 8 + 300)


def test_the_first_transfer_pays_the_handshake() -> None:
    profile = Linear(transfer_per_token=0.5, handshake=7)
    assert profile.transfer_s(10, first=True) == 12
    assert profile.transfer_s(10, first=False) == 5


def test_the_published_polynomials() -> None:
    profile = DynamoReplay()
    assert profile.step_s([(1000, 5000)], 0, 0, 0.0) == pytest.approx(0.0321059, rel=1e-4)
    assert profile.step_s([], 1, 0, 0.5) == pytest.approx(0.02631, rel=1e-4)
    assert profile.step_s([], 1, 0, 0.0) == pytest.approx(0.00574)


def test_zero_is_the_default_and_costs_nothing() -> None:
    assert PROFILES["zero"].step_s([(100, 100)], 5, 500, 1.0) == 0.0


@pytest.mark.parametrize(
    "profile", [Linear(s0=0.01, s1=0.002, s2=1e-5), PROFILES["dynamo-replay"], PROFILES["tiny-cpu"]]
)
@pytest.mark.parametrize(("steps", "sequences", "context"), [(1, 1, 1), (7, 3, 100), (62, 256, 9000)])
def test_steps_taken_at_once_take_what_each_takes(
    profile: Profile, steps: int, sequences: int, context: int
) -> None:
    each = [profile.step_s([], sequences, context + sequences * step, 0.3) for step in range(steps)]
    assert profile.decode_s(steps, sequences, context, 0.3) == pytest.approx(sum(each))


def test_a_transfer_of_the_offline_replay_has_a_fixed_part() -> None:
    profile = PROFILES["dynamo-replay"]
    assert profile.transfer_s(10_000, first=True) == pytest.approx(0.005 + 0.01)
    assert profile.transfer_s(0, first=True) == 0.0
