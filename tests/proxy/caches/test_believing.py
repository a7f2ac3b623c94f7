"""A kvproxy whose event loop is late itself does not count that against an index."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from kvevents import BlockRemoved, BlockStored, PrefixIndex
from proxy.caches.accuracy import Accuracy
from proxy.caches.believing import LOOK_EVERY_S, Believing
from proxy.caches.tallies import Cause
from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance
from proxy.phases import Role

ENGINE = "engine:8000"


class Exact:
    state = "exact"
    epoch = 0


class Scene:
    """One engine of which two blocks of a prompt are known; a fake clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.index = PrefixIndex()
        self.accuracy = Accuracy(self.index.holds)
        self.index.listen(self.accuracy.removed)
        self.index.store(ENGINE, 0, BlockStored([1, 2], None, [7, 8, 9, 10], 2))
        fleet = Fleet()
        instance = Instance(parse_instance(ENGINE, Role.PREFILL))
        instance.is_followed({0: Exact()})
        fleet.add(instance)
        self.believing = Believing(fleet, self.accuracy, Never(), lambda: self.now)
        self.keys: Sequence[int] = self.index.hasher.of_run(None, BlockStored([1, 2], None, [7, 8, 9, 10], 2))

    def miss(self) -> None:
        """A leg finds nothing of what was promised."""
        leg = self.accuracy.begin(ENGINE, 0, index="exact", predicted_tokens=4, block_size=2, keys=self.keys)
        leg.answered(0, self.now)

    def causes(self) -> dict[Cause, int]:
        misses: dict[str, int] = msgspec.structs.asdict(self.accuracy.status(ENGINE, 0).misses)
        return {Cause(cause): count for cause, count in misses.items() if count}

    def looks(self, seconds: float, late_s: Callable[[], float] = lambda: 0.0) -> None:
        for _ in range(round(seconds / LOOK_EVERY_S)):
            late = late_s()
            self.now += LOOK_EVERY_S + late
            self.believing.look(late)


class Never:
    def rebuild(self, *_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be built anew")


@pytest.mark.parametrize("heard_after_s", [1.0, 4.0, 8.0])
def test_an_eviction_that_is_heard_late_is_a_race_while_the_event_loop_is_late(heard_after_s: float) -> None:
    scene = Scene()
    scene.looks(1, lambda: 1.0)
    scene.miss()
    until = scene.now + heard_after_s
    while scene.now < until:
        scene.looks(LOOK_EVERY_S, lambda: 1.0)
    assert scene.causes() == {}
    scene.index.remove(ENGINE, 0, BlockRemoved([1, 2]))
    scene.looks(30)
    assert scene.causes() == {Cause.RACE: 1}


def test_one_that_is_never_heard_is_the_index_s_however_late_the_loop_was() -> None:
    scene = Scene()
    scene.miss()
    scene.looks(2, lambda: 1.0)
    scene.looks(30)
    assert scene.causes() == {Cause.INDEX: 1}


def test_while_the_loop_is_in_time_a_miss_is_judged_once_events_have_settled() -> None:
    scene = Scene()
    scene.miss()
    scene.looks(2.5)
    assert scene.causes() == {Cause.INDEX: 1}
