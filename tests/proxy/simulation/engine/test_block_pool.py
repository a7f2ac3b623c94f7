"""Blocks of the model engine are handed out, found again and evicted in the order in which vLLM does so."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.simulation.engine.block_pool import BlockPool, Name

A, B, C = b"a", b"b", b"c"


def test_block_0_is_never_handed_out() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [1, 2, 3]
    with pytest.raises(ValueError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


def test_a_released_block_is_a_hit_until_its_space_is_needed() -> None:
    removed: list[Name] = []
    pool = BlockPool(3, removed.extend)
    [block] = pool.allocate(1)
    pool.cache([block], [A])
    pool.release([block])
    assert pool.cached(A) == block
    assert pool.usage == 0.0
    pool.allocate(2)
    assert pool.cached(A) is None
    assert removed == [A]


def test_a_prompts_tail_is_evicted_before_its_beginning() -> None:
    removed: list[Name] = []
    pool = BlockPool(4, removed.extend)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (A, B, C), strict=True):
        pool.cache([block], [name])
    pool.release(blocks)
    pool.allocate(3)
    assert removed == [C, B, A]


def test_a_hit_saves_a_block_from_eviction() -> None:
    removed: list[Name] = []
    pool = BlockPool(3, removed.extend)
    first, second = pool.allocate(2)
    pool.cache([first], [A])
    pool.cache([second], [B])
    pool.release([first])
    pool.release([second])
    pool.touch([first])  # A would have been next
    pool.allocate(1)
    assert removed == [B]


def test_blocks_that_cache_nothing_are_reused_first() -> None:
    removed: list[Name] = []
    pool = BlockPool(4, removed.extend)
    cached, useless, other = pool.allocate(3)
    pool.cache([cached], [A])
    pool.release([cached])
    pool.release([useless, other])
    assert pool.allocate(2) == [other, useless]
    assert removed == []


def test_equal_blocks_are_copies_each_removed_by_itself() -> None:
    removed: list[Name] = []
    pool = BlockPool(3, removed.extend)
    first, second = pool.allocate(2)
    pool.cache([first], [A])
    pool.cache([second], [A])
    assert pool.cached(A) == first
    pool.release([first])
    pool.allocate(1)
    assert pool.cached(A) == second
    pool.release([second])
    pool.allocate(1)
    assert pool.cached(A) is None
    assert removed == [A, A]


def test_only_a_whole_prefix_is_a_hit() -> None:
    pool = BlockPool(4)
    one, two = pool.allocate(2)
    pool.cache([one], [A])
    pool.cache([two], [C])
    assert pool.prefix([A, B, C], 3) == [one]
    assert pool.prefix([A, C], 2) == [one, two]
    assert pool.prefix([A, C], 1) == [one]


def test_clear_waits_for_every_reference() -> None:
    pool = BlockPool(3)
    [block] = pool.allocate(1)
    pool.cache([block], [A])
    assert not pool.clear()
    assert pool.cached(A) == block
    pool.release([block])
    assert pool.clear()
    assert pool.cached(A) is None


def test_misuse_is_an_error() -> None:
    pool = BlockPool(3)
    [block] = pool.allocate(1)
    pool.cache([block], [A])
    with pytest.raises(ValueError, match="already cached"):
        pool.cache([block], [B])
    pool.release([block])
    with pytest.raises(ValueError, match="more often"):
        pool.release([block])
    with pytest.raises(ValueError, match="at least one more"):
        BlockPool(1)


class PoolMachine(RuleBasedStateMachine):
    """Requests come, hit, grow, fill blocks and go; a naive count of everything runs alongside."""

    @initialize(size=st.integers(2, 9))
    def begin(self, size: int) -> None:
        self.size = size
        self.stored: Counter[Name] = Counter()
        self.pool = BlockPool(size, self.removed)
        self.tables: list[list[int]] = []

    def removed(self, names: list[Name]) -> None:
        for name in names:
            assert self.stored[name] > 0
            self.stored[name] -= 1

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count <= self.pool.free_blocks:
            self.tables.append(self.pool.allocate(count))

    @rule(names=st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3))
    def hit(self, names: list[bytes]) -> None:
        if found := self.pool.prefix(names, len(names)):
            self.pool.touch(found)
            self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), name=st.sampled_from([A, B, C]))
    def fill(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from([b for table in self.tables for b in table]))
        if self.pool.hash_of(block) is None:
            self.pool.cache([block], [name])
            self.stored[name] += 1

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @rule()
    def clear(self) -> None:
        if self.pool.clear():
            assert not self.tables
            self.stored.clear()

    @invariant()
    def references_are_the_tables(self) -> None:
        used = Counter(block for table in self.tables for block in table)
        assert 0 not in used
        for block in range(1, self.size):
            assert self.pool.references(block) == used[block]

    @invariant()
    def no_block_is_lost(self) -> None:
        used = {block for table in self.tables for block in table}
        assert self.pool.free_blocks + len(used) == self.size - 1
        assert self.pool.usage == pytest.approx(len(used) / (self.size - 1))

    @invariant()
    def the_hash_map_is_what_was_stored_and_not_removed(self) -> None:
        held = Counter(name for block in range(1, self.size) if (name := self.pool.hash_of(block)))
        assert held == +self.stored
        for name in (A, B, C):
            block = self.pool.cached(name)
            assert (block is not None) == bool(held[name])
            assert block is None or self.pool.hash_of(block) == name


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
