"""Hostile KV events do no harm; and what judges the index after them can tell right from wrong."""

import random

import pytest

from kvevents import BlockStored, Change, Message, NullObserver, PrefixIndex, Slot
from kvevents.applier import Applier
from tests.fuzz.events.good_engine import GoodEngine
from tests.fuzz.events.in_process import INPUTS, InProcess
from tests.fuzz.events.on_wire import INPUTS as WIRE_INPUTS
from tests.fuzz.events.on_wire import OnWire
from tests.fuzz.events.payloads import Payloads
from tests.fuzz.events.tally import HOLD_S, Tally
from tests.fuzz.events.watched_index import LostCountError, WatchedIndex


def never() -> bool:
    return False


def nothing() -> None:
    pass


def test_good_engines_are_followed_exactly_after_some_thousand_hostile_inputs() -> None:
    tally = Tally()
    InProcess(7, tally).run(5000, never, nothing)
    assert tally.findings == []
    assert tally.inputs >= 5000
    assert tally.stories == tally.inputs // INPUTS
    assert tally.applied > 1000
    assert len(tally.drops) >= 9


def test_a_subscriber_outlives_hostile_publishers() -> None:
    tally = Tally()
    OnWire(7, tally).run(2 * WIRE_INPUTS, 0, never, nothing)
    assert tally.findings == []
    assert tally.ends["garbage", "connections"]
    assert tally.applied > 100


def test_a_seed_and_a_number_name_a_payload_for_ever() -> None:
    one, two = ([Payloads().make(random.Random(f"1 {number}")) for number in range(300)] for _ in range(2))
    assert one == two
    assert len({kind for kind, _ in one}) >= 8


# ---- the judges --------------------------------------------------------------------------------------------


def followed(engine: GoodEngine, lost: int | None = None) -> PrefixIndex:
    index = PrefixIndex()
    applier = Applier("engine", 0, index, NullObserver())
    for number, payload in enumerate(engine.batches):
        if number != lost:
            for _ in applier.apply(Message(b"", number, payload)):
                pass
    return index


def test_an_index_that_missed_a_batch_is_noticed() -> None:
    engine = GoodEngine(random.Random(3))
    engine.work(20)
    slot = Slot("engine", 0, "GPU")
    assert engine.difference(followed(engine), slot) is None
    noticed = [lost for lost in range(20) if engine.difference(followed(engine, lost), slot) is not None]
    assert len(noticed) > 5


def test_a_block_nobody_counted_is_noticed() -> None:
    class Losing(PrefixIndex):
        def store(self, instance: str, rank: int, event: BlockStored) -> Change:
            return super().store(instance, rank, event)._replace(applied=0)

    with pytest.raises(LostCountError):
        WatchedIndex(Losing()).store("engine", 0, BlockStored([1], None, [1], 1))


def test_a_long_hold_and_growing_memory_are_findings() -> None:
    tally = Tally()
    tally.held(HOLD_S / 2, "short")
    tally.memory = [(n * 1000, 50.0 + n % 2) for n in range(100)]
    tally.judge_memory()
    assert tally.findings == []
    tally.held(HOLD_S * 2, "long")
    tally.memory = [(n * 1000, 50.0 + n) for n in range(100)]
    tally.judge_memory()
    assert len(tally.findings) == 2
