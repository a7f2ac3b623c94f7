"""An instance's circuit, by transcripts and against a plain model: opens on proof, closes on proof, tries in
between."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import Health
from proxy.fleet.circuit import (
    JITTER,
    MAX_CHARGES,
    MAX_EJECTED_S,
    MAX_MISSED,
    MAX_PROBE_S,
    PATIENT_CHECKS,
    PROBE_FIRST_S,
    TURNS,
    At,
    Breaker,
    Circuit,
    Proof,
)

CLOSED, OPEN, HALF_OPEN = Circuit.CLOSED, Circuit.OPEN, Circuit.HALF_OPEN


class Scene:
    """A breaker with a clock and the legs that run on it."""

    def __init__(self, *, slow_start_s: float = 10.0, joins: bool = False, seed: int = 1) -> None:
        self.now = 100.0
        self.breaker = Breaker(slow_start_s=slow_start_s, joins=joins, rng=random.Random(seed))
        self.legs: list[int] = []

    def play(self, transcript: str) -> "Scene":
        """`answered lost missed busy began served leg_cut others_served`, `leg` and `end`, `+S` seconds;
        `3*missed` for three.
        """
        for word in transcript.split():
            times, _, step = word.rpartition("*")
            for _ in range(int(times or 1)):
                self._step(step)
        return self

    def _step(self, step: str) -> None:
        breaker = self.breaker
        if step.startswith("+"):
            self.now += float(step[1:])
        elif step == "leg":
            self.legs.append(breaker.begin_leg())
        elif step == "end":
            if self.legs:
                breaker.end_leg(self.legs.pop(0))
        elif step in {"lost", "missed", "busy"}:
            getattr(breaker, step)()
        else:
            getattr(breaker, step)(self.now)


@pytest.mark.parametrize(
    ("transcript", "state"),
    [
        # Before an engine was ever seen, its absence is only a start that takes long.
        ("", CLOSED),
        ("lost", OPEN),
        ("missed", OPEN),
        ("lost lost answered", CLOSED),
        ("3*others_served served answered", HALF_OPEN),
        # What proves that nobody is there.
        ("answered lost", OPEN),
        ("answered 2*missed", CLOSED),
        ("answered 3*missed", OPEN),
        ("answered 2*missed answered 2*missed", CLOSED),
        ("answered 2*missed busy 2*missed", CLOSED),
        ("answered 2*missed busy 3*missed", OPEN),
        # Back: one leg decides.
        ("answered lost answered", HALF_OPEN),
        ("answered lost answered served", CLOSED),
        ("answered lost answered began", CLOSED),
        ("answered lost answered leg leg_cut", OPEN),
        ("answered lost answered leg others_served", OPEN),
        ("answered lost answered leg end", HALF_OPEN),
        ("answered lost served", OPEN),
        ("answered lost leg_cut answered", HALF_OPEN),
        ("answered lost answered lost answered", HALF_OPEN),
        ("answered lost answered 3*missed", OPEN),
        # A trial leg that goes on and on does not fail.
        ("answered lost answered 9*answered", HALF_OPEN),
        ("answered lost answered leg 4*answered", HALF_OPEN),
        ("answered lost answered leg 5*answered", CLOSED),
        ("answered lost answered leg 4*answered end leg 4*answered", HALF_OPEN),
        # Failed legs that others made good.
        ("answered 2*others_served", CLOSED),
        ("answered 3*others_served", OPEN),
        ("answered 2*others_served served 2*others_served", CLOSED),
        ("answered 9*leg_cut", CLOSED),
        ("answered 3*others_served answered", OPEN),
        ("answered 3*others_served +1.3 answered", HALF_OPEN),
        ("answered 3*others_served served", HALF_OPEN),
        ("answered 3*others_served missed answered", OPEN),
        ("answered 3*others_served lost answered", HALF_OPEN),
        # Failing on trial makes the pause longer.
        ("answered 3*others_served +1.3 answered others_served +1.3 answered", OPEN),
        ("answered 3*others_served +1.3 answered others_served +2.5 answered", HALF_OPEN),
        ("answered 3*others_served +1.3 answered served 3*others_served +1.3 answered", OPEN),
        ("answered 3*others_served +1.3 answered served +31 3*others_served +1.3 answered", HALF_OPEN),
    ],
)
def test_a_transcript_of_events_ends_in_its_state(transcript: str, state: Circuit) -> None:
    assert Scene().play(transcript).breaker.state is state


def test_every_state_is_reached_and_left_by_proofs_that_are_named() -> None:
    assert TURNS.keys() == set(At)
    assert {after for turns in TURNS.values() for after in turns.values()} == set(At)
    assert {proof for turns in TURNS.values() for proof in turns} == set(Proof)
    assert all(turns[Proof.GONE] is At.DEAD for turns in TURNS.values()), (
        "who is not there is dead, whatever was"
    )
    assert not [at for at in (At.DEAD, At.EJECTED) if Proof.FAILS in TURNS[at]], (
        "nothing fails where nothing is sent"
    )


def test_only_one_leg_is_a_trial() -> None:
    scene = Scene().play("answered lost answered")
    assert not scene.breaker.on_trial
    assert scene.play("leg").breaker.on_trial
    assert not scene.play("end").breaker.on_trial


def test_a_leg_of_an_earlier_trial_does_not_end_a_later_one() -> None:
    scene = Scene().play("answered lost answered leg lost answered leg")
    assert scene.play("end").breaker.on_trial  # the first leg ended, the second one still runs
    assert not scene.play("end").breaker.on_trial


def test_a_leg_from_before_is_no_trial() -> None:
    scene = Scene().play("answered leg lost answered end")
    assert not scene.breaker.on_trial
    assert scene.play("leg").breaker.on_trial


@pytest.mark.parametrize(
    ("slow_start_s", "transcript", "shares"),
    [
        (10.0, "answered", [1.0, 1.0, 1.0]),  # there from the start
        (10.0, "lost answered", [1.0, 1.0, 1.0]),  # up late, but never failed
        (10.0, "answered lost answered served", [0.1, 0.5, 1.0]),
        (0.0, "answered lost answered served", [1.0, 1.0, 1.0]),
    ],
)
def test_the_share_of_legs_grows_after_a_return(
    slow_start_s: float, transcript: str, shares: list[float]
) -> None:
    scene = Scene(slow_start_s=slow_start_s).play(transcript)
    assert [scene.breaker.share(scene.now + s) for s in (0, 5, 10)] == pytest.approx(shares)


def test_an_instance_that_joins_others_at_work_starts_slowly() -> None:
    scene = Scene(joins=True).play("answered +5")
    assert scene.breaker.state is CLOSED
    assert scene.breaker.share(scene.now) == pytest.approx(0.5)


def test_a_dead_engine_is_asked_soon_and_then_ever_later() -> None:
    scene = Scene().play("answered lost")
    pauses = []
    for _ in range(8):
        pauses.append(scene.breaker.pause_s(scene.now, 2.0))
        scene.play("lost")
    assert pauses[0] < 2 * PROBE_FIRST_S
    assert max(pauses) <= MAX_PROBE_S * (1 + JITTER)
    assert min(pauses[4:]) >= MAX_PROBE_S * (1 - JITTER)
    assert len(set(pauses)) == len(pauses)  # no two routers ask in step


def test_checks_come_at_their_interval_and_at_once_after_one_without_answer() -> None:
    scene = Scene().play("answered")
    pauses = [scene.breaker.pause_s(scene.now, 2.0) for _ in range(50)]
    assert min(pauses) >= 1.6
    assert max(pauses) <= 2.4
    assert max(pauses) - min(pauses) > 0.4
    for word in ("missed", "busy"):
        assert scene.play(word).breaker.pause_s(scene.now, 2.0) == 0
    assert scene.play("answered").breaker.pause_s(scene.now, 2.0) > 1


@given(
    seed=st.integers(),
    frozen_after_s=st.floats(0, 20),
    takes_s=st.floats(0, 2.3),
    heard_before_s=st.floats(0, 3),
)
def test_an_engine_that_freezes_is_found_within_10_seconds(
    seed: int, frozen_after_s: float, takes_s: float, heard_before_s: float
) -> None:
    """As the watch asks, with the default settings: whenever it freezes, and whenever it was last heard
    before."""
    health = Health()
    scene = Scene(seed=seed).play("answered")
    frozen_at = scene.now + frozen_after_s
    begun_at = scene.now
    silence_s = 0.0
    while not scene.breaker.dead:
        if begun_at + takes_s < frozen_at:
            over_at = begun_at + takes_s
            scene.play("answered")
        else:
            over_at = begun_at + health.timeout_s
            silent = begun_at >= frozen_at - heard_before_s
            silence_s = silence_s + health.timeout_s if silent else 0
            scene.play("missed" if silent else "busy")
        assert over_at <= frozen_at + 10
        begun_at = max(
            over_at,
            begun_at + max(PROBE_FIRST_S, scene.breaker.pause_s(over_at, health.interval_s)),
        )
    assert silence_s == pytest.approx(MAX_MISSED * health.timeout_s)


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "answered",
                "lost",
                "missed",
                "busy",
                "began",
                "served",
                "leg_cut",
                "others_served",
                "leg",
                "end",
            ]
        ),
        st.floats(0.01, 40).map("+{:.2f}".format),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(events=EVENTS, seed=st.integers(), slow_start_s=st.sampled_from([0.0, 10.0]), joins=st.booleans())
def test_whatever_happens_the_rules_hold(
    events: list[str], seed: int, slow_start_s: float, joins: bool
) -> None:
    scene = Scene(seed=seed, slow_start_s=slow_start_s, joins=joins)
    breaker = scene.breaker
    seen = False
    missed = charges = 0  # in a row
    answered_on_trial = 0
    opened_at = 0.0
    trials: list[bool] = []  # of the running legs: whether they began in the present half-open
    for event in events:
        before, was_dead, share_before, at = breaker.state, breaker.dead, breaker.share(scene.now), scene.now
        first = event == "answered" and not seen
        on_trial = breaker.on_trial
        scene.play(event)
        after = breaker.state

        missed = missed + 1 if event == "missed" else missed if event not in {"answered", "busy"} else 0
        charges = charges + 1 if event == "others_served" and before is not OPEN else charges
        answered_on_trial = answered_on_trial + 1 if event == "answered" and on_trial else answered_on_trial
        seen = seen or event == "answered"

        if event == "leg":
            trials.append(after is HALF_OPEN)
        elif event == "end" and trials:
            trials.pop(0)
        if after is HALF_OPEN and before is not HALF_OPEN:
            trials = [False] * len(trials)
        assert breaker.on_trial is (after is HALF_OPEN and any(trials))

        match before, after:
            case (Circuit.OPEN, Circuit.CLOSED):
                assert first  # else only by way of half-open
            case (Circuit.CLOSED, Circuit.HALF_OPEN):
                raise AssertionError("nothing failed")
            case (Circuit.CLOSED | Circuit.HALF_OPEN, Circuit.OPEN):
                assert event in {"lost", "missed", "others_served", "leg_cut"}
                if event == "missed":
                    assert missed >= MAX_MISSED or not seen
                if event == "others_served" and before is CLOSED:
                    assert charges >= MAX_CHARGES
                assert event != "leg_cut" or before is HALF_OPEN
                assert breaker.dead is (event in {"lost", "missed"})
                opened_at = scene.now
            case (Circuit.OPEN, Circuit.HALF_OPEN):
                assert event == "answered" or (event in {"began", "served"} and not was_dead)
            case (Circuit.HALF_OPEN, Circuit.CLOSED):
                assert event in {"began", "served"} or answered_on_trial >= PATIENT_CHECKS
            case (Circuit.OPEN, Circuit.OPEN) if event == "answered":
                assert not was_dead
                assert scene.now - opened_at <= MAX_EJECTED_S * (1 + JITTER)
            case _:
                pass
        if event in {"began", "served"} or after is not before:
            charges = 0
        if after is not before or event == "end":
            answered_on_trial = 0 if not breaker.on_trial else answered_on_trial

        assert breaker.dead <= (after is OPEN)
        assert 0 < breaker.share(scene.now) <= 1
        if slow_start_s == 0:
            assert breaker.share(scene.now) == 1
        if event.startswith("+"):
            assert breaker.share(scene.now) >= share_before
            assert scene.now > at
        assert 0 <= breaker.pause_s(scene.now, 2.0) <= 2.0 * (1 + JITTER)

        now = scene.now
        apart = after is not CLOSED or breaker.doubtful or breaker.failing(now) or breaker.share(now) < 1
        assert (breaker.restless_until > now) is apart or abs(breaker.restless_until - now) < 1e-6


@pytest.mark.parametrize(
    ("transcript", "failing"),
    [
        ("answered", False),
        ("answered 2*engine_failed", False),
        ("answered 3*engine_failed", True),
        ("answered engine_failed leg_cut engine_failed", True),
        ("answered 2*engine_failed served 2*engine_failed", False),
        ("answered 3*engine_failed +1.9", True),
        ("answered 3*engine_failed +2.1", False),
        ("answered 3*engine_failed +2.1 engine_failed", True),
        ("answered 3*engine_failed served", False),
        ("answered began leg_cut began leg_cut began leg_cut", True),
        ("answered began leg_cut began leg_cut served leg_cut", False),
    ],
)
def test_legs_that_fail_in_a_row_keep_others_away_for_a_moment(transcript: str, failing: bool) -> None:
    scene = Scene().play(transcript)
    assert scene.breaker.failing(scene.now) is failing
    assert scene.breaker.state is CLOSED
