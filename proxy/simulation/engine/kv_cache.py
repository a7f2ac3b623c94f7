"""Invariant: a block is announced as stored when a request's computed tokens fill it, once per physical copy.

This is the part of the engine that a router sees. The hash of a block is known as soon as its tokens are,
but the block is cached when the step that fills it is *scheduled*: a request of the same step can already
hit it. Only whole blocks are cached and hit, and never the block of the last token, because at least one
token must be computed to have something to sample from.

With a draft model that looks ahead a block's hash covers the tokens behind it, too: it is cached once these
exist, and found again only before the same.
"""

from collections.abc import Sequence

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event
from proxy.simulation.engine.block_hashes import ExtraKey, block_hash, extra_keys, root_hash
from proxy.simulation.engine.block_pool import BlockPool
from proxy.simulation.engine.request import Request

MEDIUM = "GPU"
_GROUP = 0
_KIND = "full_attention"


def blocks_for(tokens: int, block_size: int) -> int:
    """The number of blocks in which that many tokens lie."""
    return -(-tokens // block_size)


class KvCache:
    """Block tables of one rank's requests, and the events their changes cause (with 32-byte hashes)."""

    def __init__(
        self,
        blocks: int,
        block_size: int,
        hash_seed: str = "",
        *,
        prefix_caching: bool = True,
        lookahead: int = 0,
    ) -> None:
        """Without `prefix_caching` nothing is kept, found or announced. `lookahead`: the tokens behind a
        block that its hash covers.
        """
        self.block_size = block_size
        self._lookahead = lookahead
        self._prefix_caching = prefix_caching
        self.pool = BlockPool(blocks, self._removed)
        self._root = root_hash(hash_seed)
        self._events: list[Event] = []

    def lookup(self, request: Request) -> list[int]:
        """The cached blocks of a request's longest known prefix, without its last token."""
        if not (request.reads_cache and self._prefix_caching):
            return []
        self._hash_full_blocks(request)
        hits = self.pool.prefix(request.hashes, (len(request.tokens) - 1) // self.block_size)
        if hits and request.full_report:
            self._announce(request, 0, len(hits))
        return hits

    def missing(self, request: Request, tokens: int, hits: Sequence[int] = ()) -> int:
        """The number of free blocks that `request` needs for `tokens` tokens, hits included."""
        known = len(request.table) + len(hits)
        return max(blocks_for(tokens, self.block_size) - known, 0) + self.pool.free_among(hits)

    def admit(self, request: Request, hits: Sequence[int]) -> None:
        """Begin a block table with cached blocks."""
        self.pool.touch(hits)
        request.table.extend(hits)
        request.announced = len(hits)

    def grow(self, request: Request, tokens: int) -> bool:
        """Give a request room for its first `tokens` tokens. Returns False, and does nothing, if there are
        too few blocks.
        """
        count = max(blocks_for(tokens, self.block_size) - len(request.table), 0)
        if count > self.pool.free_blocks:
            return False
        if count:
            request.table.extend(self.pool.allocate(count))
        return True

    def cache(self, request: Request, tokens: int) -> None:
        """The first `tokens` tokens have KV or will have when this step ends: cache the blocks they fill."""
        if not self._prefix_caching:
            return
        self._hash_full_blocks(request)
        first, last = request.announced, min(tokens // self.block_size, len(request.hashes))
        if last <= first:
            return
        for index in range(first, last):
            self.pool.cache(request.table[index], request.hashes[index])
        request.announced = last
        self._announce(request, first, last)

    def free(self, request: Request) -> None:
        """Give a request's blocks back; what they cache stays until they are needed."""
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

    def _hash_full_blocks(self, request: Request) -> None:
        size, hashes = self.block_size, request.hashes
        for index in range(len(hashes), max(0, len(request.tokens) - self._lookahead) // size):
            tokens = request.tokens[index * size : (index + 1) * size + self._lookahead]
            extra = self._extra_keys(request, index)
            hashes.append(block_hash(hashes[-1] if hashes else self._root, tokens, extra))

    def _extra_keys(self, request: Request, block: int) -> list[ExtraKey] | None:
        images = [(image.identifier, image.start, image.start + image.tokens) for image in request.images]
        return extra_keys(block, request.lora, request.cache_salt, images, self.block_size)

    def _announce(self, request: Request, first: int, last: int) -> None:
        size = self.block_size
        self._events.append(
            BlockStored(
                block_hashes=list(request.hashes[first:last]),
                parent_block_hash=request.hashes[first - 1] if first else None,
                token_ids=request.tokens[first * size : last * size],
                block_size=size,
                lora_id=request.lora_id,
                medium=MEDIUM,
                lora_name=request.lora,
                extra_keys=[self._extra_keys(request, i) for i in range(first, last)],
                group_idx=_GROUP,
                kv_cache_spec_kind=_KIND,
                session_id=request.session_id,
                lookahead_token_ids=[
                    request.tokens[end : end + self._lookahead]
                    for end in range((first + 1) * size, (last + 1) * size, size)
                ]
                if self._lookahead
                else None,
            )
        )

    def _removed(self, removed: bytes) -> None:
        self._events.append(BlockRemoved(block_hashes=[removed], medium=MEDIUM, group_idx=_GROUP))
