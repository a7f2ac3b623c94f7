from typing import Any

import msgspec
import pytest

from kvevents.applier import Applier
from kvevents.decoder import Message
from kvevents.events import Reason
from kvevents.observer import NullObserver
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot
from kvevents.source_events import Damage

BLOCK: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [1],
    "parent_block_hash": None,
    "token_ids": [1, 2],
    "block_size": 2,
}


class Log(NullObserver):
    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        self.lines.append((instance, rank, event_type, count))

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self.lines.append((instance, rank, reason, count))

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        self.lines.append((number, ts_s, events))


def run(index: PrefixIndex, log: Log, payload: bytes) -> tuple[int, Damage]:
    """The pauses, and what was not understood."""
    steps = Applier("e", 3, index, log).apply(Message(b"", 7, payload))
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return pauses, done.value
        pauses += 1


@pytest.mark.parametrize(
    ("events", "pauses", "lines"),
    [
        ([], 0, []),
        ([BLOCK, BLOCK], 1, [("e", 3, "BlockStored", 2)]),
        ([{"type": "AllBlocksCleared"}], 1, [("e", 3, "AllBlocksCleared", 1)]),
        (
            [BLOCK, {"type": "BlockRemoved", "block_hashes": [1, 2]}],
            2,
            [
                ("e", 3, "BlockStored", 1),
                ("e", 3, "BlockRemoved", 1),
                ("e", 3, Reason.UNKNOWN_BLOCK, 1),
            ],
        ),
        ([{**BLOCK, "block_size": 3}], 1, [("e", 3, Reason.MISALIGNED, 1)]),
        ([{**BLOCK, "parent_block_hash": 9}], 1, []),
    ],
)
def test_events_are_applied_in_order_and_counted(
    events: list[dict[str, Any]], pauses: int, lines: list[tuple[Any, ...]]
) -> None:
    log = Log()
    assert run(PrefixIndex(), log, msgspec.msgpack.encode([1.5, events, 0])) == (pauses, Damage.NONE)
    assert log.lines == [(7, 1.5, len(events)), *lines]


@pytest.mark.parametrize(
    ("event", "damage", "reason"),
    [
        ({"type": "BlockMoved"}, Damage.NONE, Reason.UNKNOWN_TYPE),
        ({"type": "BlockStored"}, Damage.MISSING, Reason.BROKEN_EVENT),
        ({"type": "BlockRemoved"}, Damage.STALE, Reason.BROKEN_REMOVAL),
        ({"type": "TierBlocksCleared"}, Damage.STALE, Reason.BROKEN_REMOVAL),
    ],
)
def test_what_is_skipped_matters_only_if_it_might_have_been_meant_for_us(
    event: dict[str, Any], damage: Damage, reason: Reason
) -> None:
    log, index = Log(), PrefixIndex()
    assert run(index, log, msgspec.msgpack.encode([1.5, [event, BLOCK]])) == (2, damage)
    assert log.lines[1] == ("e", 3, reason, 1)
    assert index.blocks() == {Slot("e", 3, "GPU"): 1}


def test_the_worst_of_a_batch_counts() -> None:
    events = [{"type": "BlockRemoved"}, {"type": "BlockStored"}, BLOCK]
    assert run(PrefixIndex(), Log(), msgspec.msgpack.encode([1.5, events])) == (3, Damage.STALE)


def test_an_unreadable_batch_changes_nothing() -> None:
    log, index = Log(), PrefixIndex()
    assert run(index, log, b"\xc1") == (0, Damage.STALE)
    assert log.lines == [("e", 3, Reason.UNREADABLE, 1)]
    assert index.blocks() == {}
