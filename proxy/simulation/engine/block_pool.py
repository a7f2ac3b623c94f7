"""Invariant: every block but block 0 is either referenced or in the free queue, never both, never neither.

A free block keeps its hash, so "free" and "cached" overlap: the free queue *is* the eviction order. A hit
takes a block out of the middle of the queue, an allocation takes the head and forgets what it cached.
Nothing is shared after the fact: two requests that fill equal blocks keep two copies under one hash, each
announced when it is stored and when it is removed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """The physical KV blocks of one rank: reference counts, the hash map, and the order of eviction.

    `on_removed(hash)` is called for every cached copy that an allocation evicts.
    """

    def __init__(self, size: int, on_removed: Callable[[bytes], None] = lambda _: None) -> None:
        if size < 2:
            raise ValueError(f"a pool needs block 0 and at least one more, got {size} blocks")
        self.size = size
        self._on_removed = on_removed
        self._references = [0] * size
        self._hash_of: list[bytes | None] = [None] * size
        # Block 0 is the engine's placeholder; it is never handed out.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, size))
        self._copies: dict[bytes, dict[int, None]] = {}

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
        return len(self._copies)

    def references(self, block: int) -> int:
        """The number of requests and holds that use a block."""
        return self._references[block]

    def hash_of(self, block: int) -> bytes | None:
        """The hash under which a block is cached; None if it is not full or not cached."""
        return self._hash_of[block]

    def cached(self, block_hash: bytes) -> int | None:
        """The copy of a block that a hit would use: the one cached first."""
        copies = self._copies.get(block_hash)
        return next(iter(copies)) if copies else None

    def prefix(self, block_hashes: Iterable[bytes], limit: int) -> list[int]:
        """The longest cached run from the first block on, at most `limit` blocks."""
        found: list[int] = []
        for block_hash in block_hashes:
            if len(found) == limit:
                break
            block = self.cached(block_hash)
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
        taken: list[int] = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def cache(self, block: int, block_hash: bytes) -> None:
        """A referenced block is full: from now on it can be hit under this hash."""
        if self._hash_of[block] is not None or not self._references[block]:
            raise ValueError(f"block {block} is already cached or not in use")
        self._hash_of[block] = block_hash
        self._copies.setdefault(block_hash, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a request, given from the prompt's beginning to its end.

        The tail is freed first, so that a long prefix is eaten from its end. Blocks that cache nothing
        go to the head of the queue: reusing them costs nobody a hit.
        """
        useless: list[int] = []
        for block in reversed(blocks):
            if not self._references[block]:
                raise ValueError(f"block {block} is released more often than it was taken")
            self._references[block] -= 1
            if self._references[block]:
                continue
            self._free[block] = None
            if self._hash_of[block] is None:
                useless.append(block)
        for block in reversed(useless):
            self._free.move_to_end(block, last=False)

    def clear(self) -> bool:
        """Forget every hash. Returns False, and does nothing, while any block is referenced (a hold
        counts).
        """
        if len(self._free) != self.size - 1:
            return False
        self._copies.clear()
        self._hash_of = [None] * self.size
        return True

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is None:
            return
        self._hash_of[block] = None
        copies = self._copies[block_hash]
        del copies[block]
        if not copies:
            del self._copies[block_hash]
        self._on_removed(block_hash)
