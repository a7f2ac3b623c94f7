"""Events that were put together change the index as they would have one by one."""

import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockHasher, BlockRemoved, BlockStored, Message, NullObserver, PrefixIndex, Reason
from kvevents.applier import Applier
from kvevents.events import AllBlocksCleared, Event
from kvevents.together import MAX_EVENTS, together
from tests.fuzz.events.good_engine import GoodEngine

SECRET = b"one secret for all"
SIZE = 2


def stored(name: int, parent: int | None = None, **fields: Any) -> BlockStored:
    return BlockStored([name], parent, [name, name + 1], SIZE, **fields)


def removed(*names: int, **fields: Any) -> BlockRemoved:
    return BlockRemoved(list(names), **fields)


@pytest.mark.parametrize(
    ("events", "pieces"),
    [
        ([], []),
        ([stored(1)], [stored(1)]),
        ([removed(1)], [removed(1)]),
        ([stored(1), stored(2)], [[stored(1), stored(2)]]),
        ([removed(8), stored(1), removed(9), stored(2)], [removed(8, 9), [stored(1), stored(2)]]),
        # A block, or the parent of one, that was stored before it is removed.
        ([stored(1), removed(1)], [stored(1), removed(1)]),
        ([stored(2, 1), removed(1)], [stored(2, 1), removed(1)]),
        ([removed(1), stored(1)], [removed(1), stored(1)]),
        # Different tiers and groups, and what is no single block.
        ([stored(1), stored(2, medium="CPU")], [stored(1), stored(2, medium="CPU")]),
        ([removed(1), removed(2, medium="CPU")], [removed(1), removed(2, medium="CPU")]),
        ([removed(1), removed(2, group_idx=1)], [removed(1), removed(2, group_idx=1)]),
        ([removed(1), removed(2, 3), removed(4)], [removed(1), removed(2, 3), removed(4)]),
        (
            [stored(1), stored(2), AllBlocksCleared(), stored(3)],
            [[stored(1), stored(2)], AllBlocksCleared(), stored(3)],
        ),
        ([stored(1), Reason.BROKEN_EVENT, stored(2)], [stored(1), Reason.BROKEN_EVENT, stored(2)]),
        ([BlockStored([1], None, [0] * 5000, 5000)] * 2, [BlockStored([1], None, [0] * 5000, 5000)] * 2),
    ],
)
def test_what_has_nothing_to_do_with_each_other_is_put_together(
    events: list[Event | Reason], pieces: list[Any]
) -> None:
    assert list(together(events)) == pieces


def test_nothing_is_moved_while_a_block_waits_for_its_parent() -> None:
    events: list[Event] = [removed(8), stored(1), removed(9), stored(2)]
    assert list(together(events, lambda: True)) == [removed(8), stored(1), removed(9), stored(2)]


def test_a_removal_of_what_waited_comes_after_its_parent() -> None:
    encode = msgspec.msgpack.encode
    waiting = encode([0.0, [stored(3, 2), stored(2, 1)], 0])
    grouped, one_by_one = both_ways([waiting, encode([0.0, [stored(1), removed(2)], 0])])
    assert grouped == one_by_one
    assert one_by_one[0][3] == {("e", 0, "GPU"): 2}


def test_groups_are_bounded() -> None:
    events: list[Event] = [stored(n) for n in range(3 * MAX_EVENTS)]
    assert [len(piece) for piece in together(events) if isinstance(piece, list)] == [MAX_EVENTS] * 3
    turns: list[Event] = list(itertools.chain.from_iterable((removed(n), stored(-n)) for n in range(1, 500)))
    sizes = [
        len(piece) if isinstance(piece, list) else len(piece.block_hashes)
        for piece in together(turns)
        if isinstance(piece, list | BlockRemoved)
    ]
    assert sum(sizes) == len(turns)
    assert set(sizes[:-2]) == {MAX_EVENTS // 2}
    large = [BlockStored([n], None, [0] * 1000, 1000) for n in range(20)]
    assert [len(piece) for piece in together(large) if isinstance(piece, list)] == [8, 8, 4]


class Each:
    """An index that hears each event."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self.store, self.remove, self.clear = index.store, index.remove, index.clear
        self.retire, self.sweep = index.retire, index.sweep


class Counts(NullObserver):
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        self.counts[event_type] = self.counts.get(event_type, 0) + count

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count


def both_ways(payloads: list[bytes]) -> list[tuple[Any, dict[str, int]]]:
    """What is known in the end, and what was counted: put together, and one by one."""
    ends = []
    for alone in (False, True):
        index, counts = PrefixIndex(BlockHasher(SECRET)), Counts()
        applier = Applier("e", 0, Each(index) if alone else index, counts)
        for number, payload in enumerate(payloads):
            for _ in applier.apply(Message(b"", number, payload)):
                pass
        exported = index.export("e", 0)
        known = exported and (
            {t.name: dict(zip(t.hashes, t.keys.tolist(), strict=True)) for t in exported.tiers},
            {t.name: dict(t.copies) for t in exported.tiers},
            {o.engine_hash: (o.parent, o.digest, o.copies) for o in exported.orphans},
            index.blocks(),
        )
        ends.append((known, counts.counts))
    return ends


NAMES = st.integers(1, 12)
PLAIN = st.builds(
    lambda name, parent, fields: msgspec.structs.replace(stored(name, parent), **fields),
    NAMES,
    st.none() | NAMES,
    st.sampled_from(
        [{}] * 6
        + [
            {"medium": "CPU"},
            {"lora_name": "a", "extra_keys": [["a"]]},
            {"extra_keys": [None]},
            {"token_ids": [5]},
            {"token_ids": [5, -1]},
            {"kv_cache_spec_kind": "mamba"},
            {"group_idx": 1},
            {"session_id": "kvproxy-cache-report"},
        ]
    ),
)
MANY = st.lists(NAMES, min_size=12, max_size=12, unique=True).map(
    lambda names: [stored(100 * n + 7, None if n % 2 else n) for n in names]
)
GONE = st.builds(removed, NAMES, medium=st.sampled_from([None, "GPU", "CPU"]))
EVENTS = st.lists(
    PLAIN.map(lambda e: [e]) | GONE.map(lambda e: [e]) | MANY | st.just([AllBlocksCleared()]), max_size=12
).map(lambda lists: list(itertools.chain.from_iterable(lists)))


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=4))
def test_events_of_one_block_size_mean_the_same_together(batches: list[list[Event]]) -> None:
    grouped, one_by_one = both_ways([msgspec.msgpack.encode([0.0, events, 0]) for events in batches])
    assert grouped == one_by_one


@pytest.mark.parametrize("seed", range(5))
def test_an_engine_that_evicts_while_it_decodes(seed: int) -> None:
    engine = GoodEngine(random.Random(seed))
    engine.work(300)
    grouped, one_by_one = both_ways(engine.batches)
    assert grouped == one_by_one


def test_many_sequences_are_stored_in_one_go() -> None:
    """Each behind a parent of its own, at every place of a band of keys, and equal to a run's."""
    rng = random.Random(1)
    chains: list[list[int | bytes]] = [[rng.getrandbits(63) for _ in range(300)] for _ in range(20)]
    tokens = [[rng.randrange(1 << 32) for _ in range(300 * SIZE)] for _ in chains]
    whole = [BlockStored(names, None, words, SIZE) for names, words in zip(chains, tokens, strict=True)]
    steps = [
        [
            BlockStored([names[n]], names[n - 1] if n else None, words[n * SIZE : (n + 1) * SIZE], SIZE)
            for names, words in zip(chains, tokens, strict=True)
        ]
        for n in range(300)
    ]
    encode = msgspec.msgpack.encode
    in_steps, one_by_one = both_ways([encode([0.0, events, 0]) for events in steps])
    at_once, _ = both_ways([encode([0.0, whole, 0])])
    assert in_steps == one_by_one == at_once
