"""What is planted in engines of the tests' own making is found again, from what a router sees of them."""

import json
import random
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.latency.model import MAX_PAIRS, LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.latency.service_times import Leg
from tests.proxy.latency.queueing import (
    Asked,
    Truth,
    as_leg,
    bursts,
    grid_error,
    merged,
    poisson,
    prompts,
    work,
)

SERIAL = Truth(chunk=None)
BATCHING = Truth()
NOISE = 0.1
"""Standard deviation of each step; one in a hundred takes 3 to 10 times as long beside that."""


def model_of(*instances: str, profile: str = UNKNOWN, role: str = "prefill") -> LatencyModel:
    model = LatencyModel(PROFILES[profile])
    for instance in instances:
        model.join(instance, role, "m")
    return model


def error(model: LatencyModel, truth: Truth, speed: float = 1.0, instance: str = "p") -> float:
    """The mean error over the grid; the worst may be four times as much."""
    mean, worst = grid_error(lambda u, n: model.prefill_ms(instance, u, n), truth, speed)
    return max(mean, worst / 4)


def worked(
    asked: Sequence[Asked], truth: Truth, seed: int, speed: Callable[[float], float] = lambda _: 1.0
) -> list[Asked]:
    return work(asked, truth, random.Random(seed), noise=NOISE, outliers=0.01, speed=speed)


# -- planted coefficients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True], ids=["departures", "engine's own"])
@pytest.mark.parametrize(
    ("profile", "truth"),
    [
        (UNKNOWN, SERIAL),
        (UNKNOWN, BATCHING),
        ("dynamo-replay", SERIAL),
        ("dynamo-replay", BATCHING),
        ("tiny-cpu", Truth(chunk=2048)),
    ],
    ids=["unknown, serial", "unknown, batching", "replay, serial", "replay, batching", "tiny, batching"],
)
@pytest.mark.parametrize("load", [0.2, 0.5, 0.7])
def test_planted_coefficients_are_recovered(load: float, profile: str, truth: Truth, told: bool) -> None:
    model = model_of("p", profile=profile)
    for each in worked(poisson(random.Random(1), truth, 1500, load), truth, 1):
        model.leg_ended("p", as_leg(each, told=told))
    assert error(model, truth) < 0.05


@pytest.mark.parametrize(
    "truth", [Truth(a=3, b=0.005, c=1e-8), Truth(a=80, b=0.5, c=0)], ids=["quick", "slow"]
)
def test_engines_of_any_speed_are_recovered(truth: Truth) -> None:
    model = model_of("p")
    for each in worked(poisson(random.Random(2), truth, 1500, 0.4), truth, 2):
        model.leg_ended("p", as_leg(each))
    assert error(model, truth) < 0.05


@pytest.mark.parametrize("chunk", [2048, 16384])
def test_steps_of_another_size_than_is_believed_do_little_harm(chunk: int) -> None:
    truth = Truth(chunk=chunk)
    model = model_of("p")
    for each in worked(poisson(random.Random(2), truth, 1500, 0.4), truth, 2):
        model.leg_ended("p", as_leg(each))
    assert error(model, truth) < 0.08


def test_a_long_prompt_pays_the_fixed_cost_in_each_step() -> None:
    model, profile = model_of("p", profile="dynamo-replay"), PROFILES["dynamo-replay"]
    for tokens, steps in ((0, 1), (1, 1), (8192, 1), (8193, 2), (81_920, 10)):
        rest = profile.b * tokens + profile.c * tokens * tokens / 2
        assert model.prefill_ms("p", tokens, tokens) == pytest.approx(steps * profile.a + rest)
        assert model.prefill_ms_of(["p"], [tokens], tokens) == pytest.approx([steps * profile.a + rest])


def test_the_overhead_is_taken_off_where_legs_waited_too() -> None:
    model = model_of("p")
    for each in worked(poisson(random.Random(3), SERIAL, 1500, 0.6), SERIAL, 3):
        model.leg_ended("p", as_leg(each))
    assert model.overhead_ms("p") == pytest.approx(SERIAL.overhead, abs=2)
    assert model.prefill_ms("p", 0, 0) == pytest.approx(SERIAL.a, abs=2)


def test_its_error_is_told() -> None:
    """Half of normal deviates of a tenth are below .067, nine tenths below .165."""
    model = model_of("p")
    for each in worked(poisson(random.Random(4), SERIAL, 1500, 0.5), SERIAL, 4):
        model.leg_ended("p", as_leg(each))
    (fitted,) = model.fitted()
    assert (fitted.kind, fitted.role, fitted.model) == ("prefill", "prefill", "m")
    assert fitted.observations > 500
    assert fitted.error_p50 == pytest.approx(0.067, abs=0.02)
    assert fitted.error_p90 == pytest.approx(0.165, abs=0.04)
    assert set(fitted.coefficients) == {"a", "b", "c", "overhead"}


# -- changes and differences of speed ---------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True], ids=["departures", "engine's own"])
@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
@pytest.mark.parametrize("speed", [0.5, 2.0, 4.0])
def test_a_change_of_speed_is_followed_in_200_requests(speed: float, truth: Truth, told: bool) -> None:
    asked = poisson(random.Random(5), truth, 1000, 0.5 / max(speed, 1))
    change = asked[700].at
    done = worked(asked, truth, 5, lambda now: speed if now >= change else 1.0)
    model, since = model_of("p"), 0
    for each in done:
        model.leg_ended("p", as_leg(each, told=told))
        since += each.at >= change
        if since == 1:
            assert error(model, truth) < 0.06
        if since == 200:
            break
    assert error(model, truth, speed) < 0.09


@pytest.mark.parametrize("told", [False, True], ids=["departures", "engine's own"])
def test_a_slow_instance_gets_its_factor_and_spoils_no_other(told: bool) -> None:
    names = ["p0", "p1", "p2", "slow"]
    model = model_of(*names)
    engines = []
    for index, name in enumerate(names):
        asked = poisson(random.Random(index), BATCHING, 500, 0.3)
        engines.append((name, worked(asked, BATCHING, index, lambda _, n=name: 2.5 if n == "slow" else 1.0)))  # type: ignore[misc]  # bound
    for name, each in merged(*engines):
        model.leg_ended(name, as_leg(each, told=told))
    assert error(model, BATCHING, 1.0, "p0") < 0.05
    assert error(model, BATCHING, 2.5, "slow") < 0.08
    (fitted,) = model.fitted()
    assert fitted.factors["slow"] == pytest.approx(2.5, rel=0.08)


# -- what must not fool it --------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True], ids=["departures", "engine's own"])
@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
def test_a_burst_does_not_fool_it(truth: Truth, told: bool) -> None:
    rng = random.Random(6)
    usual = poisson(rng, truth, 1000, 0.4)
    burst = [Asked(usual[900].at, *each) for each in prompts(rng, 150)]
    model = model_of("p")
    for each in worked([*usual, *burst], truth, 6):
        model.leg_ended("p", as_leg(each, told=told))
    assert error(model, truth) < 0.06


def test_prompts_that_come_ten_at_once_are_learned_from() -> None:
    model = model_of("p")
    for each in worked(bursts(random.Random(7), SERIAL, 1500, 10, 0.5), SERIAL, 7):
        model.leg_ended("p", as_leg(each))
    assert error(model, SERIAL) < 0.05


def test_prompts_that_come_ten_at_once_to_an_engine_that_sums_them_are_predicted_as_they_come() -> None:
    """All times are sums there, which tell little of a short prompt alone."""
    model = model_of("p")
    for each in worked(bursts(random.Random(7), BATCHING, 1500, 10, 0.5), BATCHING, 7):
        model.leg_ended("p", as_leg(each, told=True))
    for prompt in (8000, 30_000, 100_000):
        assert model.prefill_ms("p", prompt, prompt) == pytest.approx(
            BATCHING.alone_ms(prompt, prompt), rel=0.1
        )


@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
def test_legs_that_fail_do_not_fool_it(truth: Truth) -> None:
    """A fifth of them, at any moment of their course; the engine works on for those behind."""
    rng = random.Random(8)
    model = model_of("p")
    for each in worked(poisson(rng, truth, 1500, 0.5), truth, 8):
        if rng.random() < 0.2:
            gone = each.at + (each.ended_at - each.at) * rng.random()
            model.leg_ended("p", Leg(each.at, gone, each.uncached, each.prompt, served=False))
        else:
            model.leg_ended("p", as_leg(each))
    assert error(model, truth) < 0.05


@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown tokens", "first token known"])
def test_a_bypass_does_not_fool_it(known: bool, truth: Truth) -> None:
    """The instance generates as well. A leg whose first token nobody saw is over much later than its prefill;
    one whose first token was seen teaches as a prefill leg does."""
    rng = random.Random(9)
    model = model_of("p", role="both")
    for each in worked(poisson(rng, truth, 1500, 0.5), truth, 9):
        if rng.random() < 0.8 or known:
            model.leg_ended("p", as_leg(each))
        else:
            model.unknown_work("p", each.at, each.ended_at)
    assert error(model, truth) < 0.06


@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
def test_the_load_of_other_routers_does_not_fool_it(truth: Truth) -> None:
    """Two fifths of what runs there is theirs, which the gauges say every second."""
    rng = random.Random(10)
    done = worked(poisson(rng, truth, 2000, 0.5), truth, 10)
    for each in done:
        each.foreign = rng.random() < 0.4
    model, asked_at = model_of("p"), 0.0
    for each in done:
        while asked_at < each.ended_at:
            there = [other for other in done if other.at <= asked_at < other.ended_at]
            own = sum(not other.foreign for other in there)
            model.gauges("p", asked_at, requests=len(there), own=own)
            asked_at += 1.0
        if not each.foreign:
            model.leg_ended("p", as_leg(each))
    assert error(model, truth) < 0.06
    assert model.fitted()[0].observations > 200


@pytest.mark.parametrize("truth", [SERIAL, BATCHING], ids=["serial", "batching"])
def test_an_instance_where_others_are_always_there_is_learned_all_the_same(truth: Truth) -> None:
    """A seventh of the prompts are theirs, and they have answers generated there at any time."""
    rng = random.Random(11)
    model = model_of("p")
    for each in worked(poisson(rng, truth, 3000, 0.5), truth, 11):
        model.gauges("p", each.ended_at, requests=9, own=1)
        if rng.random() < 0.85:
            model.leg_ended("p", as_leg(each))
    assert error(model, truth) < 0.15


def test_what_an_engine_decodes_beside_is_not_prefill() -> None:
    """Each step of an instance that does both takes 20 ms longer for the streams there, and a prompt waits
    for the end of the step that is under way as it comes."""
    model = model_of("p", role="both")
    rng = random.Random(11)
    for _ in range(300):
        sequences, context = rng.randint(1, 30), rng.randint(1000, 40_000)
        ms = 12 + 0.1 * sequences + 1e-4 * context
        model.stepped("p", sequences, context, ms * rng.uniform(0.95, 1.05))
    beside_ms = model.step_ms("p", 20, 50_000)
    slower = Truth(a=SERIAL.a + beside_ms, b=SERIAL.b, c=SERIAL.c, chunk=8192)
    for each in worked(poisson(rng, slower, 1200, 0.4), slower, 11):
        leg = as_leg(each)
        came_at = leg.began_at - rng.random() * beside_ms / 1000
        leg = msgspec.structs.replace(leg, began_at=came_at, beside_ms=beside_ms)
        model.leg_ended("p", leg)
    assert error(model, BATCHING) < 0.06


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.floats(-1, 1e5),
            st.one_of(st.none(), st.integers(-5, 1_000_000)),
            st.integers(-5, 1_000_000),
            st.booleans(),
            st.one_of(st.none(), st.floats()),
        ),
        max_size=40,
    )
)
def test_whatever_legs_say_predictions_are_finite(
    legs: list[tuple[float, float, int | None, int, bool, float | None]],
) -> None:
    model = model_of("p")
    for began_at, took, uncached, prompt, served, first in legs:
        model.leg_ended("p", Leg(began_at, began_at + took, uncached, prompt, served, first_token_ms=first))
        assert 0 < model.prefill_ms("p", 1000, 2000) < 1e18


# -- decode steps -----------------------------------------------------------------------------------------


def test_decode_steps_are_learned() -> None:
    model = model_of("d0", "d1", role="decode")
    rng = random.Random(12)
    for _ in range(600):
        sequences = rng.randint(1, 128)
        context = int(sequences * rng.uniform(200, 8000))
        for name, speed in (("d0", 1.0), ("d1", 1.5)):
            ms = speed * (6 + 0.05 * sequences + 2e-5 * context) * rng.lognormvariate(0, NOISE)
            assert model.stepped(name, sequences, context, ms)
    for sequences, context in ((1, 500), (16, 16_000), (64, 400_000), (128, 30_000)):
        truth = 6 + 0.05 * sequences + 2e-5 * context
        assert model.step_ms("d0", sequences, context) == pytest.approx(truth, rel=0.05)
        assert model.step_ms("d1", sequences, context) == pytest.approx(1.5 * truth, rel=0.05)
    assert model.price_ms("d0", 20, 100_000, 50_000) == pytest.approx(0.05 + 2e-5 * 50_000, rel=0.08)


# -- transfers --------------------------------------------------------------------------------------------


def test_transfers_are_learned_of_each_pair_and_of_all() -> None:
    model = model_of("p0", "p1")
    for name in ("d0", "d1", "d2"):
        model.join(name, "decode", "m")
    rng = random.Random(13)
    pairs = [(p, d) for p in ("p0", "p1") for d in ("d0", "d1")]
    for _ in range(200):
        for pair in pairs:
            tokens = rng.randint(50, 20_000)
            ms = (5 + 0.002 * tokens) * rng.lognormvariate(0, NOISE) * (3 if pair == ("p1", "d1") else 1)
            assert model.transferred(*pair, tokens, ms)
    for tokens in (100, 5000, 20_000):
        truth = 5 + 0.002 * tokens
        assert model.transfer_ms("p0", "d0", tokens) == pytest.approx(truth, rel=0.06)
        assert model.transfer_ms("p1", "d1", tokens) == pytest.approx(3 * truth, rel=0.08)
        assert model.transfer_ms("p0", "d2", tokens) == pytest.approx(truth, rel=0.06), "as most pairs"


def test_hands_are_shaken_once_and_again_after_a_restart() -> None:
    model = model_of("p0", "p1", profile="tiny-cpu")
    for index in range(8):
        model.join(f"d{index}", "decode", "m")
        assert model.handshake_ms("p0", f"d{index}") > 0
        assert model.transferred("p0", f"d{index}", 100, 2 + (6000 if index == 3 else 120))
        assert model.handshake_ms("p0", f"d{index}") == 0
    assert model.handshake_ms("p1", "d0") == pytest.approx(120, rel=0.05)
    model.restarted("d0")
    assert model.handshake_ms("p0", "d0") == pytest.approx(120, rel=0.05)
    assert model.handshake_ms("p0", "d1") == 0
    model.restarted("p0")
    assert model.handshake_ms("p0", "d1") == pytest.approx(120, rel=0.05)


def test_a_handshake_is_no_transfer() -> None:
    model = model_of("p0")
    model.join("d0", "decode", "m")
    before = model.transfer_ms("p0", "d0", 1000)
    model.transferred("p0", "d0", 1000, 300)
    assert model.transfer_ms("p0", "d0", 1000) == before


def test_pairs_are_bounded() -> None:
    model = model_of("p")
    side = int(MAX_PAIRS**0.5) + 5
    for index in range(side):
        model.join(f"p{index}", "prefill", "m")
        model.join(f"d{index}", "decode", "m")
    for first in range(side):
        for second in range(side):
            model.transferred(f"p{first}", f"d{second}", 100, 3.0)
    for first in range(side):
        for second in range(side):
            model.transferred(f"p{first}", f"d{second}", 100, 3.0)
    (fitted,) = model.fitted()
    assert len(fitted.factors) <= MAX_PAIRS


# -- who comes and goes -----------------------------------------------------------------------------------


def test_who_did_not_join_is_predicted_by_the_profile_and_teaches_nothing() -> None:
    model, profile = model_of(), PROFILES[UNKNOWN]
    before = model.state()
    assert not model.prefilled("x", 100, 100, 50.0)
    assert not model.stepped("x", 1, 100, 50.0)
    assert not model.transferred("x", "y", 100, 50.0)
    model.leg_ended("x", Leg(0, 1, 100, 100))
    model.gauges("x", 1.0, requests=1, own=0)
    model.unknown_work("x", 0, 1)
    model.forget("x")
    assert model.state() == before
    assert model.prefill_ms("x", 100, 100) == profile.a + 100 * profile.b
    assert model.step_ms("x", 2, 100) == pytest.approx(profile.s0 + 2 * profile.s1 + 100 * profile.s2)
    assert model.overhead_ms("x") == profile.overhead


def test_a_removed_instance_is_forgotten_but_not_what_it_taught_of_its_pool() -> None:
    model = model_of("p")
    for _ in range(50):
        model.prefilled("p", 1000, 1000, 500.0)
    model.forget("p")
    for _ in range(50):
        assert not model.prefilled("p", 1000, 1000, 1.0), "legs that end there later"
    model.join("q", "prefill", "m")
    assert model.prefill_ms("q", 1000, 1000) == pytest.approx(500, rel=0.05)
    assert model.fitted()[0].factors == {}


def test_a_decode_engine_that_never_prefilled_is_as_the_prefill_engines_of_its_model() -> None:
    model = model_of("p")
    model.join("d", "decode", "m")
    model.join("other", "decode", "another model")
    before = model.prefill_ms("other", 1000, 1000)
    for _ in range(50):
        model.prefilled("p", 1000, 1000, 500.0)
    model.join("later", "both", "m")
    assert model.prefill_ms("d", 1000, 1000) == pytest.approx(500, rel=0.05)
    assert model.prefill_ms("later", 1000, 1000) == pytest.approx(500, rel=0.05)
    assert model.prefill_ms("other", 1000, 1000) == before
    for _ in range(50):
        model.prefilled("d", 1000, 1000, 900.0)
    assert model.prefill_ms("d", 1000, 1000) == pytest.approx(900, rel=0.05)
    assert model.prefill_ms("p", 1000, 1000) == pytest.approx(500, rel=0.05)


def test_another_role_or_model_begins_anew() -> None:
    model = model_of("p", "q")
    for _ in range(50):
        model.prefilled("p", 1000, 1000, 5000.0)
        model.prefilled("q", 1000, 1000, 500.0)
    model.join("p", "prefill", "m")
    assert model.prefill_ms("p", 1000, 1000) == pytest.approx(5000, rel=0.1)
    model.join("p", "prefill", "another")
    assert model.prefill_ms("p", 1000, 1000) < 100


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_not_believed(ms: float) -> None:
    model = model_of("p")
    model.join("d", "decode", "m")
    before = model.state()
    assert not model.prefilled("p", 100, 100, ms)
    assert not model.stepped("p", 1, 100, ms)
    assert not model.transferred("p", "d", 100, ms)
    assert model.state() == before


# -- many candidates at once ------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["p0", "p1", "p2", "stranger"]), st.integers(0, 50_000)), max_size=12)
)
def test_many_at_once_are_predicted_as_each_alone(asked: list[tuple[str, int]]) -> None:
    model = model_of("p0", "p1", "p2", profile="dynamo-replay")
    names = [name for name, _ in asked]
    for speed in (1.0, 3.0):
        for _ in range(20):
            model.prefilled("p1", 1000, 2000, speed * 40)
        together = model.prefill_ms_of(names, [uncached for _, uncached in asked], 60_000)
        alone = [model.prefill_ms(name, uncached, 60_000) for name, uncached in asked]
        assert together == pytest.approx(np.array(alone))


def test_many_at_once_know_who_came_and_went() -> None:
    model = model_of("p0")
    for _ in range(30):
        model.prefilled("p0", 1000, 1000, 500.0)
    assert model.prefill_ms_of(["p0", "p1"], [1000, 1000], 1000) == pytest.approx([500, 60], rel=0.05)
    model.join("p1", "prefill", "m")
    assert model.prefill_ms_of(["p0", "p1"], [1000, 1000], 1000) == pytest.approx([500, 500], rel=0.05)


# -- state ------------------------------------------------------------------------------------------------


def learned() -> LatencyModel:
    model = model_of("p0", "p1")
    model.join("d", "decode", "m")
    rng = random.Random(14)
    for _ in range(100):
        for name, speed in (("p0", 1.0), ("p1", 2.0)):
            uncached = rng.randint(1, 9000)
            model.prefilled(name, uncached, 9000, speed * (20 + 0.03 * uncached))
        model.stepped("d", rng.randint(1, 9), rng.randint(1, 9000), rng.uniform(8, 9))
        for name, speed in (("p0", 1.0), ("p1", 3.0)):
            tokens = rng.randint(1, 9000)
            model.transferred(name, "d", tokens, speed * (2 + 0.001 * tokens))
    return model


def test_what_was_learned_goes_through_plain_values() -> None:
    model = learned()
    state = json.loads(json.dumps(model.state()))
    again = LatencyModel(PROFILES[UNKNOWN])
    again.restore(state)
    for name, role in (("p0", "prefill"), ("p1", "prefill"), ("d", "decode")):
        again.join(name, role, "m")
    for name in ("p0", "p1", "d"):
        # A pool that observed nothing believes another, at times.
        assert again.prefill_ms(name, 700, 5000) == pytest.approx(model.prefill_ms(name, 700, 5000), rel=0.01)
        assert again.step_ms(name, 7, 5000) == pytest.approx(model.step_ms(name, 7, 5000), rel=0.01)
    assert again.transfer_ms("p0", "d", 900) == pytest.approx(model.transfer_ms("p0", "d", 900))
    assert again.transfer_ms("p1", "d", 900) == pytest.approx(model.transfer_ms("p1", "d", 900))
    assert again.handshake_ms("p0", "d") == 0
    assert again.handshake_ms("p2", "d") == pytest.approx(model.handshake_ms("p2", "d"))


def test_what_was_learned_is_kept_though_nobody_joined_between_two_processes() -> None:
    model = learned()
    again = LatencyModel(PROFILES[UNKNOWN])
    again.restore(model.state())
    third = LatencyModel(PROFILES[UNKNOWN])
    third.restore(again.state())
    third.join("p1", "prefill", "m")
    assert third.prefill_ms("p1", 700, 5000) == pytest.approx(model.prefill_ms("p1", 700, 5000))


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: None,
        lambda state: {},
        lambda state: state | {"version": 99},
        lambda state: state | {"handshakes": [-1]},
        lambda state: state | {"prefill": {"pools": [], "factors": [["p0", "", 1e9]]}},
        lambda state: state | {"step": state["prefill"]},
        lambda state: (
            state | {"prefill": json.loads(json.dumps(state["prefill"]).replace('"seen": [', '"seen": [-'))}
        ),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(
    broken: Callable[[dict[str, object]], object],
) -> None:
    model = LatencyModel(PROFILES[UNKNOWN])
    before = model.state()
    with pytest.raises(ValueError, match=r"."):
        model.restore(broken(learned().state()))
    assert model.state() == before
