"""The log tells operators of changes that nothing else tells: readiness, indexes, and engines whose events
are not heard.
"""

import logging
from collections.abc import Callable

import pytest

from kvevents import Reason
from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance
from proxy.phases import Role
from proxy.watching.changes import SILENT_S, Changes

PREFILL, DECODE = "127.0.0.1:1", "127.0.0.1:2"


class Source:
    state = "unknown"
    epoch = 0


class Feeds:
    """Those named are silent."""

    def __init__(self) -> None:
        self.silent: dict[str, dict[int, str]] = {}
        self.groups: dict[str, dict[str, Reason]] = {}

    def uncounted(self, instance: Instance) -> dict[str, Reason]:
        return self.groups.get(instance.address, {})

    def silences(self, instance: Instance) -> dict[int, str]:
        return self.silent.get(instance.address, {})


class Told:
    """A fleet of a pair whose changes are looked for by hand."""

    def __init__(self, *, decode_alone: bool = False) -> None:
        self.now = 100.0
        self.fleet = Fleet(decode_alone=decode_alone)
        self.prefill = Instance(parse_instance(PREFILL, Role.PREFILL))
        self.decode = Instance(parse_instance(DECODE, Role.DECODE))
        for instance in (self.prefill, self.decode):
            self.fleet.add(instance)
        self.feeds = Feeds()
        self.changes = Changes(self.fleet, self.feeds, lambda: self.now)

    def up(self) -> None:
        self.prefill.came_up()
        self.decode.came_up()
        self.changes.look()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO, Changes.__module__)
    return Told()


def test_lost_readiness_is_told_once_and_so_is_its_return(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.changes.look()
    told.up()
    assert caplog.messages == []  # the start says this itself
    told.prefill.went_down("gone")
    for _ in range(3):
        told.changes.look()
    told.decode.drain()
    told.changes.look()
    assert told.fleet.ready is False
    told.decode.undrain()
    told.up()
    assert caplog.messages == [
        "not ready: no usable prefill instance (1 of 1 down)",
        "not ready: no usable prefill instance (1 of 1 down) and no usable decode instance (1 of 1 draining)",
        "ready again",
    ]


def test_groups_that_are_not_counted_are_told_once_for_each_instance(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.up()
    told.feeds.groups[PREFILL] = {"group 1: mamba": Reason.CACHE_GROUP}
    told.changes.look()
    told.changes.look()
    bound = (
        "serves a hybrid model: what is predicted for it is an upper bound (not counted: 'group 1: mamba')"
    )
    assert caplog.messages == [f"prefill {PREFILL} {bound}"]
    told.feeds.groups[PREFILL] = {"group 1: mamba": Reason.CACHE_GROUP, "group 2: odd": Reason.CACHE_KIND}
    told.changes.look()
    told.changes.look()
    (record,) = caplog.records[1:]
    assert record.levelno == logging.WARNING
    assert "groups of a kind kvproxy does not know ('group 2: odd')" in record.getMessage()
    told.fleet.remove(PREFILL)
    told.changes.look()
    told.fleet.add(told.prefill)
    told.changes.look()
    assert sum(bound in line for line in caplog.messages) == 2  # it was added again


def test_where_decode_may_do_all_a_decode_instance_is_enough() -> None:
    told = Told(decode_alone=True)
    assert told.fleet.not_ready_because == "no usable decode instance (1 of 1 starting)"
    told.decode.came_up()
    assert told.fleet.not_ready_because is None


def test_an_index_that_becomes_exact_or_stops_being_so_is_told(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    told.prefill.is_followed({0: source})
    for state in ("unknown", "partial", "exact", "exact", "partial", "unknown", "exact"):
        source.state = state
        told.changes.look()
    assert caplog.messages == [
        f"prefill {PREFILL} rank 0: index exact",
        f"prefill {PREFILL} rank 0: index partial, not exact any more",
        f"prefill {PREFILL} rank 0: index exact",
    ]


def test_an_index_that_sleep_has_emptied_is_told_as_that(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    told.prefill.is_followed({0: source})
    source.state = "exact"
    told.changes.look()
    source.state = "partial"
    told.prefill.fell_asleep()
    told.changes.look()
    assert (
        caplog.messages[-1] == f"prefill {PREFILL} rank 0: index partial, not exact any more (it is asleep)"
    )


def test_readiness_that_stays_lost_is_not_told_again_as_instances_change(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.up()
    changes: list[Callable[[], None]] = [
        lambda: told.prefill.went_down("gone"),
        lambda: told.prefill.was_refused("another model"),
        told.prefill.fell_asleep,
    ]
    for change in changes:
        change()
        told.changes.look()
    assert caplog.messages == ["not ready: no usable prefill instance (1 of 1 down)"]
    assert told.fleet.not_ready_because == "no usable prefill instance (1 of 1 asleep)"
    told.fleet.add(Instance(parse_instance("127.0.0.1:8199", Role.PREFILL)))
    assert told.fleet.not_ready_because == "no usable prefill instance (1 of 2 asleep, 1 of 2 starting)"
    told.fleet.remove(PREFILL)
    told.fleet.remove("127.0.0.1:8199")
    assert told.fleet.not_ready_because == "no usable prefill instance"


def test_an_engine_that_is_up_and_unheard_is_told_once_until_it_is_heard(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.feeds.silent = {PREFILL: {0: "no KV events come from tcp://h:1"}}
    told.changes.look()
    told.now += SILENT_S + 1  # but it is not up yet
    told.up()
    assert told.prefill.why_unheard(0) is None
    for _ in range(3):
        told.now += SILENT_S
        told.changes.look()
    (line,) = caplog.messages
    assert f"prefill {PREFILL} rank 0: no KV events come from tcp://h:1" in line
    assert told.prefill.why_unheard(0) == "no KV events come from tcp://h:1"
    told.feeds.silent = {}
    told.changes.look()
    assert told.prefill.why_unheard(0) is None
