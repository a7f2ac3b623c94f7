"""What an operator is told when nothing else tells of it: readiness, indexes, and engines nobody hears."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from kvevents import Reason
from proxy.config import Admission, WhenNoPrefill, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Fleet, Instance
from proxy.phases import Role
from proxy.simulation.live.faults import Fault
from proxy.tuning import Tuning
from proxy.watching.changes import SILENT_S, Changes
from tests.helpers.service import engines, fleet, kvproxy, wait_until

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


async def test_a_wrong_event_port_is_told_in_the_log_and_in_the_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soon = Tuning(silent_s=0.3)
    async with engines(prefill=1, decode=1) as made:
        wrong = "tcp://127.0.0.1:1"
        told = parse_instance(f"{made.prefill[0].address}?events={wrong}", Role.PREFILL)
        config = made.config()
        config = made.config(instances=(told, config.instances[1]))
        async with kvproxy(config, ready=False, tuning=soon) as service:
            await wait_until(lambda: "no KV events come from" in caplog.text, "the warning")
            (rank,) = (await service.ask("/status")).json["instances"][0]["ranks"]
            assert rank["why"] == f"no KV events come from {wrong}"
            assert (await service.complete("hello")).status == 200
            assert made.decode[0].address not in caplog.text


async def test_lost_readiness_is_seen_everywhere_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bool] = []
    look = Changes.look

    def looks(self: Changes) -> None:
        look(self)
        seen.append(self._fleet.ready)

    monkeypatch.setattr(Changes, "look", looks)
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        await wait_until(lambda: True in seen, "a look at a fleet that is ready")
        shown = (await pair.service.ask("/status")).json
        assert (shown["ready"], shown["not_ready_because"]) == (True, None)
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[0].address})
        words = "no usable prefill instance (1 of 1 draining)"
        await wait_until(lambda: f"not ready: {words}" in caplog.text, "the warning")
        assert (await pair.service.ask("/ready")).json["error"]["message"] == f"not ready: {words}"
        shown = (await pair.service.ask("/status")).json
        assert (shown["ready"], shown["not_ready_because"]) == (False, words)
        assert (shown["instances"][0]["share"], shown["instances"][1]["share"]) == (0, 1)


async def test_a_decode_engine_alone_is_ready_where_it_may_do_all() -> None:
    async with engines(prefill=1, decode=1) as made:
        await made.prefill[0].refuse()
        admission = Admission(when_no_prefill=WhenNoPrefill.DECODE)
        config = made.config(admission=admission, kv_events=False, startup_timeout_s=1.0)
        async with kvproxy(config, ready=False) as service:
            await wait_until(lambda: service.fleet.ready, "readiness")
            assert (await service.ask("/ready")).status == 200
            assert (await service.ask("/status")).json["ready"] is True
            assert (await service.complete("hello")).status == 200
            fatal = service.app[SERVICE].watch.fatal
            with pytest.raises(TimeoutError):  # the time for starting up passes
                async with asyncio.timeout(1.5):
                    await asyncio.shield(fatal)
            assert not fatal.done()


async def test_an_engine_that_does_not_answer_says_so_before_it_is_down() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        instance = pair.service.fleet.get(pair.engines.decode[0].address)
        assert instance is not None
        pair.engines.decode[0].faults.add(Fault(kind="hang", path="/health"))
        await wait_until(lambda: instance.breaker.doubtful, "a missed check")
        shown = (await pair.service.ask("/status")).json["instances"][1]
        assert (shown["state"], shown["why"]) == ("up", "its last check was not answered")
