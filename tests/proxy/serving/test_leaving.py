"""Which instance a failed request leaves at no cost: one that fails while others of its phase do not."""

from typing import Any

import pytest

from proxy.config import parse_instance
from proxy.errors import LegBrokenError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.circuit import MAX_CHARGES, Breaker
from proxy.phases import Phase, Role
from proxy.serving.legs.leg import AttemptFailedError, Legs

NOW = 100.0
MODEL = "tiny"
NOBODY: Any = None  # nothing is sent here


def decode(fleet: Fleet, address: str) -> Instance:
    instance = Instance(parse_instance(address, Role.DECODE), Breaker(slow_start_s=10.0, joins=True))
    instance.came_up()
    instance.listed([ModelCard(MODEL)], 0.0)
    fleet.add(instance)
    return instance


def to_leave(fleet: Fleet, instance: Instance) -> str | None:
    cause = LegBrokenError(instance.address, "no answer")
    return Legs(fleet, NOBODY, NOBODY, lambda: NOW).to_leave(
        AttemptFailedError(Phase.DECODE, instance.address, cause=cause)
    )


def fail(instance: Instance) -> None:
    for _ in range(MAX_CHARGES):
        instance.breaker.leg_cut(NOW)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_failing_instance_is_left_for_one_that_starts_slowly(busy: bool) -> None:
    fleet = Fleet()
    failing, young, old = (decode(fleet, f"{name}:1") for name in ("failing", "young", "old"))
    young.breaker.answered(NOW)
    fail(failing)
    fail(old)
    if busy:
        young.load.count(Phase.DECODE, 0, 5, 5, 5, 0)
    assert ("young:1" in fleet.set_aside(Phase.DECODE, NOW)) is busy
    assert to_leave(fleet, failing) == "failing:1"


def test_where_all_fail_nobody_is_left_for_free() -> None:
    fleet = Fleet()
    instances = [decode(fleet, f"{name}:1") for name in ("one", "other")]
    for instance in instances:
        fail(instance)
    assert [to_leave(fleet, instance) for instance in instances] == [None, None]


def test_an_instance_that_is_not_answering_is_nobody_to_flee_to() -> None:
    fleet = Fleet()
    failing, silent = decode(fleet, "failing:1"), decode(fleet, "silent:1")
    silent.breaker.answered(NOW)
    silent.breaker.missed()
    fail(failing)
    assert to_leave(fleet, failing) is None


def test_a_single_failure_is_not_free() -> None:
    fleet = Fleet()
    failing, _ = decode(fleet, "failing:1"), decode(fleet, "well:1")
    failing.breaker.leg_cut(NOW)
    assert to_leave(fleet, failing) is None
