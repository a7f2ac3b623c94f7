"""The life of a hold, by transcripts: fetched at most once, never late, always ended."""

from collections.abc import Callable

import pytest

from proxy.connectors import Handoff
from proxy.custody import Hold, HoldState

STEPS: dict[str, Callable[[Hold], None]] = {
    "spend": Hold.spend,
    "unspend": Hold.unspend,
    "pulled": Hold.pulled,
    "released": Hold.released,
    "stranded": Hold.stranded,
}


def held() -> Hold:
    return Hold("p:1", Handoff(None, None, None, None), received_at=100.0, lease_s=30.0)


def after(transcript: str) -> Hold:
    hold = held()
    for step in transcript.split():
        STEPS[step](hold)
    return hold


@pytest.mark.parametrize(
    ("transcript", "state", "ended", "may_be_offered"),
    [
        ("", HoldState.HELD, False, True),
        ("spend", HoldState.SPENT, False, False),
        ("spend unspend", HoldState.HELD, False, True),
        ("spend unspend spend pulled", HoldState.PULLED, True, False),
        ("spend pulled", HoldState.PULLED, True, False),
        ("released", HoldState.RELEASED, True, False),
        ("stranded", HoldState.STRANDED, True, False),
        ("spend released", HoldState.RELEASED, True, False),
        ("spend stranded", HoldState.STRANDED, True, False),
    ],
)
def test_transcripts(transcript: str, state: HoldState, ended: bool, may_be_offered: bool) -> None:
    hold = after(transcript)
    assert (hold.state, hold.ended, hold.may_be_offered(101.0)) == (state, ended, may_be_offered)


@pytest.mark.parametrize(
    ("transcript", "step"),
    [
        ("spend", "spend"),
        ("", "unspend"),
        ("", "pulled"),
        *[(f"spend {end}", step) for end in ("pulled", "released", "stranded") for step in STEPS],
    ],
)
def test_impossible_steps_are_errors(transcript: str, step: str) -> None:
    hold = after(transcript)
    with pytest.raises(RuntimeError):
        STEPS[step](hold)


def test_a_hold_is_not_offered_within_ten_seconds_of_its_leases_end() -> None:
    hold = held()
    assert hold.may_be_offered(119.9)
    assert not hold.may_be_offered(120.0)
    assert hold.lease_left_s(120.0) == 10.0
    assert hold.lease_left_s(200.0) == 0.0
