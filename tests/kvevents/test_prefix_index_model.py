"""The index against a model that keeps every physical copy in a list and works out all else anew each
time."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from typing import TypeVar
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvevents.block_keys import BlockHasher, Prompt
from kvevents.events import REPORT_SESSION, BlockRemoved, BlockStored
from kvevents.exported import ExportedOrphan, ExportedRank, at_once
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot

T = TypeVar("T")
ENGINES = (("a", 0), ("a", 1), ("b", 0))
SIZES = {("a", 0): 2, ("a", 1): 2, ("b", 0): 3}
TIERS = ("GPU", "CPU")


@dataclass(frozen=True)
class Block:
    """A node of the tree of all prefixes; its engine hash is its number."""

    engine_hash: int
    parent: int | None
    letter: int
    salt: str | None


# Few enough to meet again and again. 8 and 9 are other names of 1 and 3, as from another cache group or salt.
TREE = {
    block.engine_hash: block
    for block in (
        Block(1, None, 0, None),
        Block(2, None, 1, None),
        Block(3, 1, 0, None),
        Block(4, 1, 1, None),
        Block(5, 3, 0, None),
        Block(6, None, 0, "s"),
        Block(7, 6, 0, "s"),
        Block(8, None, 0, None),
        Block(9, 8, 0, None),
    )
}


def path(number: int) -> list[Block]:
    block = TREE[number]
    return [*(path(block.parent) if block.parent is not None else []), block]


def content(number: int) -> tuple[object, ...]:
    blocks = path(number)
    return (blocks[0].salt, *(block.letter for block in blocks))


@dataclass
class EngineModel:
    copies: list[tuple[str, int]] = field(default_factory=list)
    placed: set[int] = field(default_factory=set)
    tiers: set[str] = field(default_factory=set)

    def settle(self) -> None:
        held = {number for _, number in self.copies}
        self.placed &= held
        while True:
            more = {n for n in held - self.placed if TREE[n].parent is None or TREE[n].parent in self.placed}
            if not more:
                return
            self.placed |= more

    def contents(self, tier: str) -> set[tuple[object, ...]]:
        return {content(number) for t, number in self.copies if t == tier and number in self.placed}


class Model:
    def __init__(self, *, count_copies: bool) -> None:
        self.count_copies = count_copies
        self.engines: dict[tuple[str, int], EngineModel] = {}

    def store(self, at: tuple[str, int], tier: str, number: int) -> None:
        engine = self.engines.setdefault(at, EngineModel())
        engine.tiers.add(tier)
        if self.count_copies or (tier, number) not in engine.copies:
            engine.copies.append((tier, number))
        engine.settle()

    def report(self, at: tuple[str, int], tier: str, number: int) -> None:
        engine = self.engines.setdefault(at, EngineModel())
        engine.tiers.add(tier)
        if (tier, number) not in engine.copies:
            engine.copies.append((tier, number))
        engine.settle()

    def remove(self, at: tuple[str, int], tier: str, number: int) -> None:
        engine = self.engines.get(at)
        if engine is not None and (tier, number) in engine.copies:
            engine.copies.remove((tier, number))
            engine.settle()

    def clear(self, at: tuple[str, int]) -> None:
        if at in self.engines:
            self.engines[at] = EngineModel(tiers=self.engines[at].tiers)

    def slots(self) -> dict[Slot, set[tuple[object, ...]]]:
        return {
            Slot(*at, tier): engine.contents(tier)
            for at, engine in self.engines.items()
            for tier in engine.tiers
        }

    def match(self, letters: list[int], salt: str | None) -> dict[Slot, int]:
        cached = {}
        for slot, contents in self.slots().items():
            blocks = 0
            while blocks < len(letters) and (salt, *letters[: blocks + 1]) in contents:
                blocks += 1
            cached[slot] = blocks * SIZES[slot.instance, slot.rank]
        return cached


engines = st.sampled_from((*ENGINES[:1] * 4, *ENGINES))
tiers = st.sampled_from(TIERS)
numbers = st.sampled_from(sorted(TREE))
often = st.sampled_from(["store"] * 6 + ["report"] * 3 + ["remove"] * 6 + ["clear", "retire"])
operations = st.tuples(often, engines, tiers, numbers, st.integers(0, 3))
LETTERS = ([0, 0, 0], [0, 1, 0], [1, 0, 1])


def event(at: tuple[str, int], tier: str, run: list[Block], session_id: str | None = None) -> BlockStored:
    size = SIZES[at]
    return BlockStored(
        [block.engine_hash for block in run],
        run[0].parent,
        [block.letter for block in run for _ in range(size)],
        size,
        medium=tier,
        extra_keys=[[block.salt] if block.salt and block.parent is None else None for block in run],
        session_id=session_id,
    )


Operation = tuple[str, tuple[str, int], str, int, int]
History = list[Operation]
histories = st.lists(operations, max_size=6) | st.lists(operations, min_size=20, max_size=50)


def _play(
    history: History, *, count_copies: bool, index: PrefixIndex | None = None, model: Model | None = None
) -> tuple[PrefixIndex, Model]:
    index = index or PrefixIndex(BlockHasher(b"test"), count_copies=count_copies)
    model = model or Model(count_copies=count_copies)
    for operation, at, tier, number, extent in history:
        if operation == "store":
            run = path(number)[-max(extent, 1) :]
            index.store(*at, event(at, tier, run))
            for block in run:
                model.store(at, tier, block.engine_hash)
        elif operation == "report":
            run = path(number)[-max(extent, 1) :]
            index.store(*at, event(at, tier, run, REPORT_SESSION))
            for block in run:
                model.report(at, tier, block.engine_hash)
        elif operation == "remove":
            index.remove(*at, BlockRemoved([number], tier))
            model.remove(at, tier, number)
        elif operation == "clear":
            index.clear(*at)
            model.clear(at)
        else:
            index.retire(at[0], at[1] if extent else None)
            model.engines = {
                key: value
                for key, value in model.engines.items()
                if key != at and (extent or key[0] != at[0])
            }
        if extent == 2:
            index.sweep(1)
        _assert_nothing_is_left_over(index, swept=False)
        assert index.blocks() == {slot: len(contents) for slot, contents in model.slots().items()}
    _assert_matches(index, model)
    while index.sweep():
        pass
    _assert_nothing_is_left_over(index, swept=True)
    _assert_matches(index, model)
    assert index.blocks() == {slot: len(contents) for slot, contents in model.slots().items()}
    return index, model


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), histories)
def test_any_history_gives_what_the_model_gives(count_copies: bool, history: History) -> None:
    _play(history, count_copies=count_copies)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), histories)
def test_arrays_give_what_single_blocks_give(count_copies: bool, history: History) -> None:
    """Short runs are worked out in plain Python; here all of them go the way of long ones."""
    with (
        patch("kvevents.block_store.FEW_BLOCKS", 0),
        patch("kvevents.residency._FEW_KEYS", 1),
        patch("kvevents.block_keys._PYTHON_TOKENS", 0),
    ):
        _play(history, count_copies=count_copies)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), histories, histories)
def test_what_is_exported_goes_on_elsewhere(count_copies: bool, before: History, after: History) -> None:
    index, model = _play(before, count_copies=count_copies)
    other = PrefixIndex(BlockHasher(b"test"), count_copies=count_copies)
    other.store("b", 0, event(("b", 0), "GPU", path(5)))
    for at in ENGINES:
        exported = index.export(*at)
        assert (exported is None) is (at not in model.engines)
        other.retire(*at)
        if exported is not None:
            other.load(*at, exported)
            assert _in_order(other.export(*at)) == _in_order(exported)
    _play(after, count_copies=count_copies, index=other, model=model)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories, histories)
def test_other_ranks_may_change_between_the_slices(before: History, meanwhile: History) -> None:
    at = ENGINES[0]
    index, model = _play(before, count_copies=True)
    fresh = PrefixIndex(BlockHasher(b"test"))
    changes = iter([operation for operation in meanwhile if operation[1][0] != at[0]])
    with patch("kvevents.exported.SLICE_BLOCKS", 1):
        exported = _between(index.exporting(*at), index, changes)
        assert (exported is None) is (at not in model.engines)
        if exported is not None:
            _between(fresh.loading(*at, exported), fresh, changes)
            assert _in_order(fresh.export(*at)) == _in_order(exported) == _in_order(index.export(*at))
            _assert_nothing_is_left_over(fresh, swept=False)


def _between(steps: Generator[None, None, T], index: PrefixIndex, changes: Iterator[Operation]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        for operation, at, tier, number, _ in islice(changes, 2):
            if operation == "store":
                index.store(*at, event(at, tier, path(number)))
            else:
                index.remove(*at, BlockRemoved([number], tier))
        index.sweep(1)


def test_a_rank_that_is_forgotten_or_cleared_meanwhile_is_not_exported() -> None:
    at = ENGINES[0]
    for change in (PrefixIndex.retire, PrefixIndex.clear):
        index = PrefixIndex(BlockHasher(b"test"))
        index.store(*at, event(at, "GPU", path(5)))
        steps = index.exporting(*at)
        next(steps)
        change(index, *at)
        assert at_once(steps) is None


def test_a_rank_that_is_forgotten_or_cleared_while_it_is_loaded_stays_so() -> None:
    at = ENGINES[0]
    for change, pauses in product((PrefixIndex.retire, PrefixIndex.clear), range(1, 6)):
        index = PrefixIndex(BlockHasher(b"test"))
        index.store(*at, event(at, "GPU", path(5)))
        exported = index.export(*at)
        assert exported is not None
        with patch("kvevents.exported.SLICE_BLOCKS", 1):
            exported.orphans = [ExportedOrphan(n, 100, n, {"CPU": 1}) for n in (101, 102)]
            steps = index.loading(*at, exported)
            for _ in range(pauses):
                next(steps)
            change(index, *at)
            assert at_once(steps) is False
        assert not any(index.blocks().values())
        assert not index.orphans(*at)
        while index.sweep():
            pass
        _assert_nothing_is_left_over(index, swept=True)


def _in_order(exported: ExportedRank | None) -> object:
    assert exported is not None
    tiers = [
        (tier.name, sorted(zip(tier.hashes, tier.keys.tolist(), strict=True)), tier.copies)
        for tier in exported.tiers
    ]
    return exported.block_size, exported.group_idx, tiers, exported.orphans


def _assert_matches(index: PrefixIndex, model: Model) -> None:
    for salt in (None, "s"):
        for letters in LETTERS:
            expected = model.match(letters, salt)
            for size in (2, 3):
                tokens = [letter for letter in letters for _ in range(size)]
                found = index.match(Prompt(tokens, cache_salt=salt))
                assert {s: n for s, n in found.items() if SIZES[s.instance, s.rank] == size} == {
                    s: n for s, n in expected.items() if SIZES[s.instance, s.rank] == size
                }


def _assert_nothing_is_left_over(index: PrefixIndex, *, swept: bool) -> None:
    """The maps inside agree with each other, so that memory goes when blocks go."""
    held_by: dict[int, int] = {}
    for engine in index._engines.values():
        tiers = engine.tiers.values()
        held = {engine_hash for tier in tiers for shard in tier.shards for engine_hash in shard}
        assert held.isdisjoint(engine.orphans)
        assert {child for children in engine.children.values() for child in children} == set(engine.orphans)
        assert all(engine.children.values())
        for tier in tiers:
            keys = [key for shard in tier.shards for key in shard.values()]
            assert tier.hashes == len(keys)
            assert tier.blocks == len(set(keys)) == len(keys) - sum(tier.names.values())
            assert tier.further_copies == sum(tier.copies.values())
            assert all(count > 0 for count in (*tier.names.values(), *tier.copies.values()))
            assert all(engine_hash in tier.home(engine_hash) for engine_hash in tier.copies)
            for key in keys:
                held_by[key] = held_by.get(key, 0) | tier.bit
    for key, members in held_by.items():
        assert index._residency.of(key) & members == members
    if swept:
        assert len(index._residency) == len(held_by)
        assert index._residency.different == len(set(held_by.values()))
        live = sum(len(engine.tiers) for engine in index._engines.values())
        assert len(index._slots._free) == len(index._slots.by_bit) - live
