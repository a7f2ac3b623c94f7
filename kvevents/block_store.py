"""A tier ends up the same whether blocks go into it one by one, as a run, or as many single ones at once.

Many blocks go in together, by numpy, if all of them are new, their parents are known and no orphan waits for
them. In every other case they go in one by one.
"""

from collections.abc import Sequence
from typing import Any

from kvevents.block_keys import BlockHasher, Digests, Keys
from kvevents.engine_cache import EngineCache, Tier, places
from kvevents.events import BlockStored, EngineHash
from kvevents.residency import Residency

_NO_EXTRA_KEYS: tuple[list[Any] | None, ...] = (None, [None], [[]], [])

FEW_BLOCKS = 12
"""Runs of fewer blocks are stored one by one, which costs less than numpy's calls."""


class BlockStore:
    """Puts blocks into tiers, and their keys into the slots' residency."""

    def __init__(self, hasher: BlockHasher, residency: Residency, *, count_copies: bool) -> None:
        self._hasher = hasher
        self._residency = residency
        self._count_copies = count_copies

    def store(
        self, engine: EngineCache, tier: str, event: BlockStored, digests: Digests, *, counts: bool
    ) -> tuple[int, int]:
        """Put a run into a tier of `engine`. Returns how many of its blocks lie there now, and how many wait
        for a parent.

        `counts`: whether a block that is known already has one more copy now.
        """
        hashes, parent = event.block_hashes, event.parent_block_hash
        if not counts and (known := engine.tiers[tier].leading(hashes)):
            parent, hashes, digests = hashes[known - 1], hashes[known:], digests.after(known)
        parent_key = engine.key_of(parent) if parent is not None else None
        if len(hashes) >= FEW_BLOCKS and (parent is None or parent_key is not None):
            at = places(hashes)
            if engine.are_new(hashes, at):
                self.add(engine.tiers[tier], hashes, at, self._hasher.of_digests(parent_key, digests))
                return len(hashes), 0
        applied = orphans = 0
        for engine_hash, digest in zip(hashes, digests.numbers(), strict=True):
            parent_key = self._store_one(engine, tier, engine_hash, parent, parent_key, digest, counts=counts)
            if parent_key is not None:
                applied += 1
            else:
                orphans += 1
            parent = engine_hash
        return applied, orphans

    def store_singles(
        self, engine: EngineCache, tier: str, events: Sequence[BlockStored], words: Keys
    ) -> bool:
        """Put runs of one block each into a tier of `engine`, if each follows a known block. Returns False if
        it does nothing.

        `words`: as in `Digests`.
        """
        hashes = [event.block_hashes[0] for event in events]
        at = places(hashes)
        if not engine.are_new(hashes, at):
            return False
        parents = [event.parent_block_hash for event in events]
        parent_keys = [engine.key_of(parent) if parent is not None else None for parent in parents]
        if any(key is None and parent is not None for key, parent in zip(parent_keys, parents, strict=True)):
            return False
        keys = self._hasher.of_singles(parent_keys, words)
        if len(set(keys.tolist())) != len(hashes):
            return False  # two hashes have the same key
        self.add(engine.tiers[tier], hashes, at, keys)
        return True

    def add(self, tier: Tier, hashes: Sequence[EngineHash], at: Sequence[int], keys: Keys) -> None:
        """Put blocks into a tier. No hash is known, and no two keys are equal; `at`: the `places` of the
        hashes.
        """
        tier.fill(hashes, at, keys.tolist())
        already = self._residency.put(keys, tier.bit)
        tier.blocks += len(keys) - len(already)
        for key in already:
            tier.add_name(key)

    def load(self, tier: Tier, hashes: Sequence[EngineHash], keys: Keys) -> None:
        """Put blocks into a tier. No hash is known; keys may be equal."""
        listed = keys.tolist()
        if len(set(listed)) == len(listed):
            self.add(tier, hashes, places(hashes), keys)
            return
        for engine_hash, key in zip(hashes, listed, strict=True):
            self._hold(tier, engine_hash, key, 1)

    def _store_one(
        self,
        engine: EngineCache,
        tier: str,
        engine_hash: EngineHash,
        parent: EngineHash | None,
        parent_key: int | None,
        digest: int,
        *,
        counts: bool,
    ) -> int | None:
        """Store one block. Returns its key, or None if the block waits for its parent."""
        key = engine.key_of(engine_hash)
        if key is not None:
            if counts or engine_hash not in engine.tiers[tier].home(engine_hash):
                self._hold(engine.tiers[tier], engine_hash, key, 1)
            return key
        if parent is not None and parent_key is None:
            orphan = engine.orphans.get(engine_hash)
            if orphan is None:
                engine.add_orphan(engine_hash, parent, digest, {tier: 1})
            else:
                orphan.copies[tier] = orphan.copies.get(tier, 0) + 1 if counts else orphan.copies.get(tier, 1)
            return None
        key = self._hasher.of_block(parent_key, digest)
        if engine.orphans:
            self._place(engine, tier, engine_hash, key)
        else:
            self._hold(engine.tiers[tier], engine_hash, key, 1)
        return key

    def _place(self, engine: EngineCache, tier: str, engine_hash: EngineHash, key: int) -> None:
        """Store a block, the blocks that waited for it, those that waited for these, and so on."""
        placed = [(engine_hash, key)]
        self._hold(engine.tiers[tier], engine_hash, key, 1)
        while placed:
            parent, parent_key = placed.pop()
            orphan = engine.take_orphan(parent)
            if orphan is not None:
                for name, copies in orphan.copies.items():
                    self._hold(engine.tiers[name], parent, parent_key, copies)
            placed += [
                (child, self._hasher.of_block(parent_key, engine.orphans[child].digest))
                for child in engine.children.get(parent, ())
            ]

    def _hold(self, tier: Tier, engine_hash: EngineHash, key: int, copies: int) -> None:
        home = tier.home(engine_hash)
        if engine_hash not in home:
            home[engine_hash] = key
            tier.hashes += 1
            if self._residency.put_one(key, tier.bit):
                tier.blocks += 1
            else:
                tier.add_name(key)
            copies -= 1
        if copies and self._count_copies:
            tier.add_copies(engine_hash, copies)


def is_single(event: BlockStored, like: BlockStored) -> bool:
    """Whether an event is one whole block with no extra keys, and has the block size, tier and adapter of
    another.
    """
    return (
        len(event.block_hashes) == 1
        and (event.lookahead_token_ids is like.lookahead_token_ids or _same_lookahead(event, like))
        and len(event.token_ids) == event.block_size == like.block_size
        and event.medium == like.medium
        and event.lora_name == like.lora_name
        and event.lora_id == like.lora_id
        and event.group_idx == like.group_idx
        and event.kv_cache_spec_kind == like.kv_cache_spec_kind
        and event.extra_keys in _NO_EXTRA_KEYS
        and not event.is_report
    )


def _same_lookahead(event: BlockStored, like: BlockStored) -> bool:
    ahead = event.lookahead_token_ids
    return ahead is not None and len(ahead) == 1 and len(ahead[0]) == like.lookahead
