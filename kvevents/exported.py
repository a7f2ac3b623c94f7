"""What one rank of an instance holds, as plain values that can be written down and loaded by another process.

The keys and digests mean something only together with the secret of the hasher that made them.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from kvevents.block_keys import Keys
from kvevents.engine_cache import EngineCache, Tier
from kvevents.events import EngineHash, Reason

SLICE_BLOCKS = 1024
"""Blocks that are copied or loaded between two pauses, in less than a millisecond."""

T = TypeVar("T")


@dataclass(slots=True)
class ExportedTier:
    """The blocks of one tier, as columns of equal length. A key is also all that is needed to continue behind
    it.
    """

    name: str
    hashes: list[EngineHash]
    keys: Keys
    copies: dict[EngineHash, int] = field(default_factory=dict)
    """The number of copies without the first; a hash with one copy is left out."""


@dataclass(slots=True)
class ExportedOrphan:
    """A block that waits for its parent, with the number of its copies by tier."""

    engine_hash: EngineHash
    parent: EngineHash
    digest: int
    copies: dict[str, int]


@dataclass(slots=True)
class ExportedRank:
    """All that is known of one rank of an instance."""

    block_size: int
    group_idx: int | None
    tiers: list[ExportedTier]
    orphans: list[ExportedOrphan]
    """The longest waiting first."""
    uncounted: dict[str, Reason] = field(default_factory=dict)
    """The cache groups whose blocks are not counted, and why."""
    lookahead: int = 0
    """The number of tokens behind a block that its engine's hash covers."""

    @property
    def hashes(self) -> int:
        """The number of blocks, without those that wait; a block counts once for each tier that it lies
        in.
        """
        return sum(len(tier.hashes) for tier in self.tiers)


def copy_slices(engine: EngineCache) -> Generator[None, None, ExportedRank | None]:
    """Copy a rank in slices. It MUST NOT change meanwhile; returns None if it was forgotten or cleared all
    the same.
    """
    live, clears = dict(engine.tiers), engine.clears
    tiers = []
    for name, tier in live.items():
        hashes: list[EngineHash] = []
        columns = []
        for shard in tier.shards:
            hashes += shard
            columns.append(np.fromiter(shard.values(), np.uint64, len(shard)))
            if len(shard):
                yield
        tiers.append(ExportedTier(name, hashes, np.concatenate(columns), dict(tier.copies)))
        yield
    orphans: list[ExportedOrphan] = []
    waiting = iter(list(engine.orphans.items()))
    while some := list(islice(waiting, SLICE_BLOCKS)):
        orphans += [ExportedOrphan(name, one.parent, one.digest, dict(one.copies)) for name, one in some]
        yield
    whole = (
        engine.clears == clears
        and engine.tiers.keys() == live.keys()
        and all(live[copy.name].hashes == len(copy.keys) for copy in tiers)
    )
    if not whole:
        return None
    return ExportedRank(engine.block_size, engine.group_idx, tiers, orphans, lookahead=engine.lookahead)


def load_slices(
    exported: ExportedRank,
    engine: EngineCache,
    *,
    new_tier: Callable[[str], Tier],
    put: Callable[[Tier, Sequence[EngineHash], Keys], None],
    is_current: Callable[[], bool],
) -> Generator[None, None, bool]:
    """Fill an empty rank in slices. Returns False if it was retired (`is_current` says so) or cleared
    meanwhile.
    """
    engine.group_idx = exported.group_idx
    for loaded in exported.tiers:
        tier = engine.tiers[loaded.name] = new_tier(loaded.name)
        for start in range(0, len(loaded.hashes), SLICE_BLOCKS):
            piece = slice(start, start + SLICE_BLOCKS)
            put(tier, loaded.hashes[piece], loaded.keys[piece])
            yield
            if engine.clears or not is_current():
                return False
        tier.copies = dict(loaded.copies)
        tier.further_copies = sum(loaded.copies.values())
    for number, orphan in enumerate(exported.orphans):
        for name in orphan.copies.keys() - engine.tiers.keys():
            engine.tiers[name] = new_tier(name)
        engine.add_orphan(orphan.engine_hash, orphan.parent, orphan.digest, dict(orphan.copies))
        if number % SLICE_BLOCKS == SLICE_BLOCKS - 1:
            yield
            if engine.clears or not is_current():
                return False
    return True


def at_once(steps: Generator[None, None, T]) -> T:
    """Run a generator without its pauses, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
