from typing import Any

import msgspec
import pytest

from kvevents.applier import Applier
from kvevents.decoder import Message
from kvevents.events import Reason
from kvevents.observer import NullObserver
from kvevents.prefix_index import PrefixIndex, Slot

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


def run(index: PrefixIndex, log: Log, payload: bytes) -> tuple[int, bool]:
    """The pauses, and whether all was understood."""
    steps = Applier("e", 3, index, log).apply(Message(b"", 7, payload))
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return pauses, done.value
        pauses += 1


@pytest.mark.parametrize(
    ("events", "understood", "lines"),
    [
        ([], True, []),
        ([BLOCK, BLOCK], True, [("e", 3, "BlockStored", 1)] * 2),
        ([{"type": "AllBlocksCleared"}], True, [("e", 3, "AllBlocksCleared", 1)]),
        (
            [BLOCK, {"type": "BlockRemoved", "block_hashes": [1, 2]}],
            True,
            [
                ("e", 3, "BlockStored", 1),
                ("e", 3, "BlockRemoved", 1),
                ("e", 3, Reason.UNKNOWN_BLOCK, 1),
            ],
        ),
        ([{**BLOCK, "block_size": 3}], True, [("e", 3, Reason.MISALIGNED, 1)]),
        ([{**BLOCK, "parent_block_hash": 9}], True, []),
    ],
)
def test_events_are_applied_one_by_one_and_counted(
    events: list[dict[str, Any]], understood: bool, lines: list[tuple[Any, ...]]
) -> None:
    log = Log()
    assert run(PrefixIndex(), log, msgspec.msgpack.encode([1.5, events, 0])) == (len(events), understood)
    assert log.lines == [(7, 1.5, len(events)), *lines]


@pytest.mark.parametrize(
    ("event", "understood", "reason"),
    [
        ({"type": "BlockMoved"}, True, Reason.UNKNOWN_TYPE),
        ({"type": "BlockRemoved"}, False, Reason.BROKEN_EVENT),
    ],
)
def test_what_is_skipped_matters_only_if_it_might_have_been_meant_for_us(
    event: dict[str, Any], understood: bool, reason: Reason
) -> None:
    log, index = Log(), PrefixIndex()
    assert run(index, log, msgspec.msgpack.encode([1.5, [event, BLOCK]])) == (2, understood)
    assert log.lines[1] == ("e", 3, reason, 1)
    assert index.blocks() == {Slot("e", 3, "GPU"): 1}


def test_an_unreadable_batch_changes_nothing() -> None:
    log, index = Log(), PrefixIndex()
    assert run(index, log, b"\xc1") == (0, False)
    assert log.lines == [("e", 3, Reason.UNREADABLE, 1)]
    assert index.blocks() == {}
