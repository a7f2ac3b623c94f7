"""What an engine tells of all that runs there, and how much of it must be others'."""

import pytest

from proxy.config import parse_instance
from proxy.fleet import Instance
from proxy.fleet.gauges import Gauges
from proxy.phases import Role


def told(running: int, waiting: int, own: int) -> Gauges:
    return Gauges(at=1.0, running=running, waiting=waiting, kv_use=0.5, own=own)


@pytest.mark.parametrize(
    ("running", "waiting", "own", "foreign"),
    [(0, 0, 0, 0), (3, 2, 5, 0), (3, 2, 1, 4), (1, 0, 4, 0)],
    ids=["nothing", "all ours", "some others'", "some of ours have ended"],
)
def test_what_exceeds_our_own_legs_is_others(running: int, waiting: int, own: int, foreign: int) -> None:
    assert told(running, waiting, own).foreign == foreign


def test_an_instance_keeps_what_its_engine_told_last() -> None:
    instance = Instance(parse_instance("a:1", Role.BOTH))
    assert instance.gauges is None
    instance.told_gauges(told(1, 0, 0))
    instance.told_gauges(last := told(2, 3, 1))
    assert instance.gauges is last
    assert last.requests == 5


def test_another_process_has_told_nothing() -> None:
    instance = Instance(parse_instance("a:1", Role.BOTH))
    instance.told_gauges(told(1, 0, 0))
    instance.fell_asleep()
    assert instance.gauges is not None
    instance.went_down("refused")
    assert instance.gauges is None
