"""Invariant: a block is announced as stored when a request's computed tokens fill it, once per physical copy.

This is the part of the engine that a router sees. The hash of a block is known as soon as its tokens are,
but the block is cached when the step that fills it is *scheduled*: a request of the same step can already
hit it. Only whole blocks are cached and hit, and never the block of the last token, because at least one
token must be computed to have something to sample from.

What a block's hash is, and how events tell of it, is decided by `Contents`.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from kvevents import AllBlocksCleared, Event
from proxy.simulation.engine.block_pool import BlockPool, Name
from proxy.simulation.engine.request import Work

W_contra = TypeVar("W_contra", bound=Work, contravariant=True)
W = TypeVar("W", bound=Work)


def blocks_for(tokens: int, block_size: int) -> int:
    """The number of blocks in which that many tokens lie."""
    return -(-tokens // block_size)


class Contents(Protocol[W_contra]):
    """Gives blocks the names under which they are cached, and tells of them in events."""

    def name_blocks(self, work: W_contra) -> None:
        """Complete `work.hashes`: one name for each block that its tokens fill."""
        ...

    def stored(self, work: W_contra, first: int, last: int, events: list[Event]) -> None:
        """Add to `events` that its blocks from `first` to before `last` are cached now."""
        ...

    def removed(self, names: list[Name], events: list[Event]) -> None:
        """Add to `events` that a copy of each of these blocks is not cached any more."""
        ...


class KvCache(Generic[W]):
    """Block tables of one rank's requests, and the events their changes cause."""

    def __init__(
        self, blocks: int, block_size: int, contents: Contents[W], *, prefix_caching: bool = True
    ) -> None:
        """Without `prefix_caching` nothing is kept, found or announced."""
        self.block_size = block_size
        self._contents = contents
        self._prefix_caching = prefix_caching
        self._events: list[Event] = []
        self.pool = BlockPool(blocks, lambda names: contents.removed(names, self._events))
        self.frees = 0
        """How often blocks were given back."""

    def lookup(self, request: W) -> list[int]:
        """The cached blocks of a request's longest known prefix, without its last token."""
        if not (request.reads_cache and self._prefix_caching):
            return []
        self._contents.name_blocks(request)
        hits = self.pool.prefix(request.hashes, (request.length - 1) // self.block_size)
        if hits and request.full_report:
            self._contents.stored(request, 0, len(hits), self._events)
        return hits

    def missing(self, request: W, tokens: int, hits: Sequence[int] = ()) -> int:
        """The number of free blocks that `request` needs for `tokens` tokens, hits included."""
        known = len(request.table) + len(hits)
        return max(blocks_for(tokens, self.block_size) - known, 0) + self.pool.free_among(hits)

    def admit(self, request: W, hits: Sequence[int]) -> None:
        """Begin a block table with cached blocks."""
        self.pool.touch(hits)
        request.table.extend(hits)
        request.announced = len(hits)

    def grow(self, request: W, tokens: int) -> bool:
        """Give a request room for its first `tokens` tokens. Returns False, and does nothing, if there are
        too few blocks.
        """
        count = blocks_for(tokens, self.block_size) - len(request.table)
        if count <= 0:
            return True
        if count > self.pool.free_blocks:
            return False
        request.table.extend(self.pool.allocate(count))
        return True

    def cache(self, request: W, tokens: int) -> None:
        """The first `tokens` tokens have KV or will have when this step ends: cache the blocks they fill."""
        if not self._prefix_caching or tokens // self.block_size <= request.announced:
            return
        self._contents.name_blocks(request)
        first, last = request.announced, min(tokens // self.block_size, len(request.hashes))
        if last <= first:
            return
        self.pool.cache(request.table[first:last], request.hashes[first:last])
        request.announced = last
        self._contents.stored(request, first, last, self._events)

    def free(self, request: W) -> None:
        """Give a request's blocks back; what they cache stays until they are needed."""
        self.frees += 1
        table, request.table, request.announced = request.table, [], 0
        self.pool.release(table)

    def clear(self) -> bool:
        """Reset the prefix cache. Returns False while any block is in use. It is announced with the next
        step's events.
        """
        if not self.pool.clear():
            return False
        self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[Event]:
        """The changes since the last call, in order."""
        events, self._events = self._events, []
        return events
