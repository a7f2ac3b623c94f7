"""An engine that goes on stepping is as fast as its profile, however late its machine wakes it."""

import pytest

from proxy.simulation.live.pace import CAUGHT_UP_S, Pace


def test_what_a_step_was_late_the_next_one_is_shorter() -> None:
    pace = Pace()
    now_s, ends = 10.0, []
    for late_s in (0.004, 0.0, 0.009, 0.015):
        ends.append(pace.ends_s(now_s, 0.05))
        now_s = ends[-1] + late_s
    assert ends == pytest.approx([10.05, 10.10, 10.15, 10.20])


def test_a_machine_that_stood_still_has_lost_that_time() -> None:
    pace = Pace()
    pace.ends_s(10.0, 0.05)
    assert pace.ends_s(11.0, 0.05) == pytest.approx(11.05 - CAUGHT_UP_S)


def test_an_engine_that_rested_begins_when_it_begins() -> None:
    pace = Pace()
    pace.ends_s(10.0, 0.05)
    pace.rests()
    assert pace.ends_s(10.06, 0.05) == pytest.approx(10.11)
