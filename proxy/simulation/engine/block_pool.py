"""Invariant: every block but block 0 is either referenced or in the free queue, never both, never neither.

A free block keeps its hash, so "free" and "cached" overlap: the free queue *is* the eviction order. A hit
takes a block out of the middle of the queue, an allocation takes the head and forgets what it cached.
Nothing is shared after the fact: two requests that fill equal blocks keep two copies under one hash, each
announced when it is stored and when it is removed.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

Name: TypeAlias = bytes | int
"""What a block is cached under: the same for the same content after the same blocks."""


class BlockPool:
    """The physical KV blocks of one rank: reference counts, the hash map, and the order of eviction.

    `on_removed(hashes)` is called with the hashes of the cached copies that an allocation evicts, in order.
    """

    def __init__(self, size: int, on_removed: Callable[[list[Name]], object] = lambda _: None) -> None:
        if size < 2:
            raise ValueError(f"a pool needs block 0 and at least one more, got {size} blocks")
        self.size = size
        self._on_removed = on_removed
        self._references = [0] * size
        self._hash_of: list[Name | None] = [None] * size
        # Block 0 is the engine's placeholder; it is never handed out.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, size))
        self._first: dict[Name, int] = {}
        """The copy of a block that was cached first, by its hash."""
        self._others: dict[Name, dict[int, None]] = {}
        """Its other copies, in the order in which they were cached."""

    @property
    def free_blocks(self) -> int:
        """The number of blocks that an allocation may take, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """The share of blocks that are referenced, 0 to 1: cached but free blocks count as free."""
        return 1.0 - len(self._free) / (self.size - 1)

    @property
    def cached_blocks(self) -> int:
        """The number of different blocks that can be hit; copies count once."""
        return len(self._first)

    def references(self, block: int) -> int:
        """The number of requests and holds that use a block."""
        return self._references[block]

    def hash_of(self, block: int) -> Name | None:
        """The hash under which a block is cached; None if it is not full or not cached."""
        return self._hash_of[block]

    def cached(self, block_hash: Name) -> int | None:
        """The copy of a block that a hit would use: the one cached first."""
        return self._first.get(block_hash)

    def prefix(self, block_hashes: Iterable[Name], limit: int) -> list[int]:
        """The longest cached run from the first block on, at most `limit` blocks."""
        found: list[int] = []
        first = self._first
        for block_hash in itertools.islice(block_hashes, limit):
            block = first.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """The number of these blocks that `touch` would take out of the free queue."""
        return sum(1 for block in blocks if not self._references[block])

    def touch(self, blocks: Iterable[int]) -> None:
        """Reference cached blocks once more: they are no longer candidates for eviction."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take blocks from the head of the free queue; what they cached is evicted. Raises ValueError if
        there are too few.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        pop, references, hash_of = self._free.popitem, self._references, self._hash_of
        taken = [pop(last=False)[0] for _ in range(count)]
        gone: list[Name] = []
        for block in taken:
            references[block] = 1
            if (block_hash := hash_of[block]) is not None:
                hash_of[block] = None
                self._forget(block, block_hash)
                gone.append(block_hash)
        if gone:
            self._on_removed(gone)
        return taken

    def cache(self, blocks: Sequence[int], block_hashes: Sequence[Name]) -> None:
        """Referenced blocks are full: from now on they can be hit, each under its hash."""
        hash_of, first = self._hash_of, self._first
        for block, block_hash in zip(blocks, block_hashes, strict=True):
            if hash_of[block] is not None or not self._references[block]:
                raise ValueError(f"block {block} is already cached or not in use")
            hash_of[block] = block_hash
            if first.setdefault(block_hash, block) != block:
                self._others.setdefault(block_hash, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a request, given from the prompt's beginning to its end.

        The tail is freed first, so that a long prefix is eaten from its end. Blocks that cache nothing
        go to the head of the queue: reusing them costs nobody a hit.
        """
        free, references, hash_of = self._free, self._references, self._hash_of
        useless: list[int] = []
        for block in reversed(blocks):
            left = references[block] - 1
            if left < 0:
                raise ValueError(f"block {block} is released more often than it was taken")
            references[block] = left
            if not left:
                free[block] = None
                if hash_of[block] is None:
                    useless.append(block)
        for block in reversed(useless):
            free.move_to_end(block, last=False)

    def clear(self) -> bool:
        """Forget every hash. Returns False, and does nothing, while any block is referenced (a hold
        counts).
        """
        if len(self._free) != self.size - 1:
            return False
        self._first.clear()
        self._others.clear()
        self._hash_of = [None] * self.size
        return True

    def _forget(self, block: int, block_hash: Name) -> None:
        others = self._others.get(block_hash)
        if others is None:
            del self._first[block_hash]
            return
        if self._first[block_hash] == block:
            self._first[block_hash] = block = next(iter(others))
        del others[block]
        if not others:
            del self._others[block_hash]
