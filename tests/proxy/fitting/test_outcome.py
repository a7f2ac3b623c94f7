"""What engines took is found again, and the error that is told is the error."""

import random

import pytest

from proxy.fitting import sizes
from proxy.fitting.outcome import Outcome, outcome_of
from proxy.fitting.seen import HandedOver, Prompted, Seen, Stepped
from proxy.fitting.shown import source_of, words_of
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import EngineSize, Profile
from proxy.phases import Role

LARGE = Profile(
    source="large", a=20.0, b=0.06, c=3e-6, overhead=3.0, transfer=8.0, transfer_per_token=0.004,
    handshake=250.0, s0=18.0, s1=0.4, s2=0.00005,
)  # fmt: skip
SMALL = Profile(
    source="small", a=8.0, b=0.004, c=1e-7, overhead=3.0, transfer=1.0, transfer_per_token=0.0005,
    handshake=100.0, s0=4.0, s1=0.05, s2=0.000004,
)  # fmt: skip
ROOM = sizes.Room(16384, 1_000_000, caches=True)


def seen_of(profile: Profile, noise: float, *, factor: float = 1.0, pairs: bool = True) -> Seen:
    """What the probes would take on `p`, `q` (which takes `factor` times as long) and `d`."""
    truth, dice, seen = LatencyModel(profile), random.Random(5), Seen()

    def off(ms: float) -> float:
        return ms * dice.lognormvariate(0.0, noise)

    for instance, times in (("p", 1.0), ("q", factor)):
        for probe in sizes.alone(ROOM):
            uncached = probe.prompt - probe.cached
            ms = off(times * truth.prefill_ms("x", uncached, probe.prompt) + profile.overhead)
            seen.prompted.append(
                Prompted(instance, 7.0, 7.0 + ms / 1000, uncached, probe.prompt, probe.held_out)
            )
    for streams in sizes.together(ROOM):
        context = streams.sequences * (streams.context + 16.0)
        ms = off(truth.step_ms("x", streams.sequences, context))
        seen.stepped.append(Stepped("d", streams.sequences, context, ms, streams.held_out))
    for number, handed in enumerate(sizes.handed(ROOM) if pairs else []):
        ms = truth.transfer_ms("x", "y", handed.prompt) + truth.step_ms("x", 1, handed.prompt)
        ms = off(ms + profile.overhead + (0.0 if number else profile.handshake))
        seen.handed.append(HandedOver("p", "d", handed.prompt, ms, handed.held_out))
    return seen


def fitted(seen: Seen) -> Outcome:
    roles = {"p": Role.PREFILL, "q": Role.PREFILL, "d": Role.DECODE}
    return outcome_of(seen, roles, source="a test", chunk_tokens=8192, engine=EngineSize())


def furthest(found: Profile, truth: Profile) -> float:
    """The largest error over a grid of legs as they are seen, as a share."""
    one, other = LatencyModel(found), LatencyModel(truth)
    pairs = [
        (
            one.prefill_ms("x", uncached, prompt) + found.overhead,
            other.prefill_ms("x", uncached, prompt) + truth.overhead,
        )
        for prompt in (100, 1000, 4000, 16000)
        for uncached in (prompt // 8, prompt // 2, prompt)
    ]
    pairs += [
        (one.step_ms("x", count, count * context), other.step_ms("x", count, count * context))
        for count in (1, 4, 12)
        for context in (100, 3000)
    ]
    pairs += [
        (
            one.transfer_ms("x", "y", tokens) + one.step_ms("x", 1, tokens) + found.overhead,
            other.transfer_ms("x", "y", tokens) + other.step_ms("x", 1, tokens) + truth.overhead,
        )
        for tokens in (500, 2000, 16000)
    ]
    return max(abs(a / b - 1) for a, b in pairs)


@pytest.mark.parametrize("truth", [LARGE, SMALL], ids=["large", "small"])
def test_what_was_planted_is_predicted(truth: Profile) -> None:
    outcome = fitted(seen_of(truth, 0.0))
    assert furthest(outcome.profile, truth) < 0.05
    assert outcome.profile.handshake == pytest.approx(truth.handshake, rel=0.1)
    assert not outcome.unknown
    assert not outcome.factors
    assert all(error.p90 < 0.05 for error in outcome.errors)


@pytest.mark.parametrize("truth", [LARGE, SMALL], ids=["large", "small"])
def test_noise_is_averaged_and_told(truth: Profile) -> None:
    outcome = fitted(seen_of(truth, 0.05))
    assert furthest(outcome.profile, truth) < 0.1
    errors = {error.kind: error for error in outcome.errors}
    assert set(errors) == {"prefill", "step", "transfer"}
    assert 0.01 < errors["prefill"].p50 < 0.08
    assert errors["prefill"].p50 <= errors["prefill"].p90
    assert errors["prefill"].probes == 2 * sizes.HELD_OUT


def test_a_slower_engine_is_told_apart() -> None:
    outcome = fitted(seen_of(LARGE, 0.01, factor=2.0))
    ratio = outcome.factors.get("q", 1.0) / outcome.factors.get("p", 1.0)
    assert ratio == pytest.approx(2.0, rel=0.1)
    assert "times as long as most" in words_of(outcome, Seen())


def test_what_was_not_probed_is_said_to_be_unknown() -> None:
    seen = seen_of(LARGE, 0.0, pairs=False)
    seen.left_out = ["a", "b", "a"]
    outcome = fitted(seen)
    assert outcome.unknown == ["transfer"]
    assert outcome.profile.handshake == 0
    words = words_of(outcome, seen)
    assert "transfers: not measured, as of any engine" in words
    assert "left out: a (2 times)" in words
    nothing = fitted(Seen())
    assert nothing.unknown == ["prefill", "step", "transfer"]
    assert not nothing.errors


def test_a_source_says_when_what_and_whom() -> None:
    versions = {"a": "0.32.0", "b": "0.33.0", "c": "0.32.0"}
    assert source_of("2026-12-01", "llama", versions) == (
        "kvproxy fit on 2026-12-01, by probing 3 engines (vLLM 0.32.0, 0.33.0) that serve llama"
    )
    assert source_of("2026-12-01", "llama", {"a": "0.32.0"}, ["step", "transfer"]).endswith(
        "; not measured, as of any engine: decode steps (s0, s1, s2),"
        " transfers (transfer, transfer_per_token, handshake)"
    )
