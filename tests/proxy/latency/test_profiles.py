"""A profile is what is believed at first: of the stand-in, what the stand-in takes."""

import pytest

from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN, Profile
from proxy.simulation.engine import latency as stand_in


@pytest.mark.parametrize("name", PROFILES)
def test_each_has_a_source(name: str) -> None:
    assert len(PROFILES[name].source) > 40


def test_the_stand_in_is_predicted_as_it_is() -> None:
    model = LatencyModel(PROFILES["tiny-cpu"])
    truth = stand_in.PROFILES["tiny-cpu"]
    assert model.prefill_ms("a", 700, 2000) == pytest.approx(truth.step_s([(700, 2000)], 0, 0, 0) * 1000)
    assert model.step_ms("a", 7, 2000) == pytest.approx(truth.step_s([], 7, 2000, 0) * 1000)
    assert model.transfer_ms("a", "b", 500) == pytest.approx(truth.transfer_s(500, first=False) * 1000)
    assert model.handshake_ms("a", "b") == pytest.approx(
        (truth.transfer_s(500, first=True) - truth.transfer_s(500, first=False)) * 1000
    )


def test_the_replay_is_predicted_as_it_is() -> None:
    """Prefill to the digit, for prompts that have nothing cached; decode steps by a straight line."""
    model = LatencyModel(PROFILES["dynamo-replay"])
    truth = stand_in.PROFILES["dynamo-replay"]
    for tokens in (1, 512, 8192):
        assert model.prefill_ms("a", tokens, tokens) == pytest.approx(
            truth.step_s([(tokens, tokens)], 0, 0, 0) * 1000
        )
    for usage in (0.1, 0.3, 0.5, 0.7, 0.9):
        tokens = round(usage * 1048576)
        assert model.step_ms("a", 8, tokens) == pytest.approx(
            truth.step_s([], 8, tokens, usage) * 1000, rel=0.25
        )


def test_of_an_unknown_engine_waiting_tokens_and_cached_tokens_decide() -> None:
    """As least load with affinity: a token costs the same in whatever prompt, and no pair is shunned."""
    model = LatencyModel(PROFILES[UNKNOWN])
    fixed = model.prefill_ms("a", 0, 0)
    each = model.prefill_ms("a", 1, 1) - fixed
    for uncached, prompt in ((100, 100), (100, 90_000), (8000, 90_000)):
        assert model.prefill_ms("a", uncached, prompt) - fixed == pytest.approx(each * uncached)
    assert model.handshake_ms("a", "b") == 0
    assert model.transfer_ms("a", "b", 8000) < model.prefill_ms("a", 8000, 8000) / 10


@pytest.mark.parametrize(
    "figure", [{"b": 0.0}, {"s0": 0.0}, {"a": -1.0}, {"c": float("nan")}, {"chunk_tokens": 0}]
)
def test_a_profile_that_predicts_nothing_is_refused(figure: dict[str, float]) -> None:
    figures = {"a": 1.0, "b": 1.0, "c": 0.0, "transfer": 1.0, "transfer_per_token": 0.0, "handshake": 0.0}
    with pytest.raises(ValueError, match=r"coefficient|needs"):
        Profile(source="a test", s1=0.0, s2=0.0, **{"s0": 1.0} | figures | figure)  # type: ignore[arg-type]  # one is an int
