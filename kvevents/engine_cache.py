"""What one engine process is known to hold, by its own hashes: keys, copies, names, and blocks that wait for
a parent.

This is the engine's side of the bookkeeping. The slots that a key lies in are kept by `kvevents.residency`;
the methods here return what has to change there.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from operator import contains, setitem
from typing import Any

from kvevents.events import BlockStored, EngineHash, Reason

DEFAULT_TIER = "GPU"
"""The tier of an event that names none: vLLM had no `medium` while there was only one."""

WHOLE_PREFIX_KINDS = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
"""The kinds of cache group that keep every block of a prefix (vLLM's KVCacheSpecKind)."""

PART_OF_PREFIX_KINDS = frozenset(
    {
        "sliding_window",
        "sliding_window_mla",
        "mamba",
        "chunked_local_attention",
        "encoder_only_attention",
        "cross_attention",
    }
)
"""The kinds of cache group that keep only a part of a prefix: all others of vLLM's KVCacheSpecKind, except
the one that vLLM itself calls unknown."""

# The most cache groups of one rank whose names are remembered; engines have two or three.
_MAX_NOTED_GROUPS = 8
_MAX_KIND_CHARS = 40

# A tier has this many dictionaries for its hashes. One dictionary of 2 million is rehashed in 0.1 s, in which
# nothing else runs; each of these in 2 ms.
_SHARDS = 32
_SHARD_MASK = _SHARDS - 1


def places(hashes: Iterable[EngineHash]) -> list[int]:
    """For each hash, the number of the tier's dictionary that it belongs in."""
    return [hash(engine_hash) & _SHARD_MASK for engine_hash in hashes]


class Tier:
    """The blocks that lie in one slot."""

    __slots__ = ("bit", "blocks", "copies", "further_copies", "hashes", "names", "shards")

    def __init__(self, bit: int) -> None:
        """`bit`: the slot's own bit in sets of slots."""
        self.bit = bit
        self.shards: list[dict[EngineHash, int]] = [{} for _ in range(_SHARDS)]  # hash -> key
        self.hashes = 0
        self.blocks = 0  # the number of different keys
        self.copies: dict[EngineHash, int] = {}  # of a hash, without the first
        self.further_copies = 0  # the sum of `copies`
        self.names: dict[int, int] = {}  # hashes of a key, without the first: salts and groups can share one

    def home(self, engine_hash: EngineHash) -> dict[EngineHash, int]:
        """The dictionary a hash belongs in."""
        return self.shards[hash(engine_hash) & _SHARD_MASK]

    def fill(self, hashes: Sequence[EngineHash], at: Sequence[int], keys: Sequence[int]) -> None:
        """Put in blocks whose hashes are new; `at`: the `places` of the hashes."""
        deque(map(setitem, map(self.shards.__getitem__, at), hashes, keys), 0)  # a loop in C
        self.hashes += len(hashes)

    def has_any(self, hashes: Sequence[EngineHash], at: Sequence[int]) -> bool:
        """Whether the tier has one of the hashes; `at`: their `places`."""
        return self.hashes > 0 and any(map(contains, map(self.shards.__getitem__, at), hashes))

    def leading(self, hashes: Sequence[EngineHash]) -> int:
        """The number of hashes before the first one that the tier does not have."""
        return len(list(takewhile(bool, map(contains, map(self.home, hashes), hashes))))

    def add_name(self, key: int) -> None:
        """One more hash has a key that is here."""
        self.names[key] = self.names.get(key, 0) + 1

    def add_copies(self, engine_hash: EngineHash, copies: int) -> None:
        """A block that is here has so many more copies."""
        self.copies[engine_hash] = self.copies.get(engine_hash, 0) + copies
        self.further_copies += copies

    def remove(self, engine_hash: EngineHash, gone: list[int]) -> bool:
        """Take one copy away. Returns False if the block is not here.

        A key that no hash has any more is appended to `gone`.
        """
        home = self.shards[hash(engine_hash) & _SHARD_MASK]
        key = home.get(engine_hash)
        if key is None:
            return False
        if self.copies and _count_down(self.copies, engine_hash):
            self.further_copies -= 1
            return True
        del home[engine_hash]
        self.hashes -= 1
        if not (self.names and _count_down(self.names, key)):
            gone.append(key)
        return True

    def forget_copies_above(self, capacity: int) -> None:
        """Drop further copies, the newest first, until all copies together are at most `capacity`, or none is
        left to drop.
        """
        while self.copies and self.hashes + self.further_copies > capacity:
            engine_hash, copies = self.copies.popitem()
            left = max(0, copies - (self.hashes + self.further_copies - capacity))
            self.further_copies -= copies - left
            if left:
                self.copies[engine_hash] = left


def why_uncounted(kind: str | None) -> Reason | None:
    """Why blocks of a cache group of that kind are not counted; None if they are.

    Older engines name no kind; all of their groups held whole prefixes.
    """
    if kind is None or kind in WHOLE_PREFIX_KINDS:
        return None
    return Reason.CACHE_GROUP if kind in PART_OF_PREFIX_KINDS else Reason.CACHE_KIND


def note_uncounted(noted: dict[str, Reason], event: BlockStored, reason: Reason) -> None:
    """Remember in `noted` that a cache group is not counted, and why. The key is its number and kind in
    words.
    """
    if len(noted) < _MAX_NOTED_GROUPS:
        kind = event.kv_cache_spec_kind or "of no kind"
        noted.setdefault(f"group {event.group_idx}: {kind[:_MAX_KIND_CHARS]}", reason)


class Orphan:
    """A block whose parent's key is not known yet."""

    __slots__ = ("copies", "digest", "parent")

    def __init__(self, parent: EngineHash, digest: int, copies: dict[str, int]) -> None:
        self.parent = parent
        self.digest = digest
        self.copies = copies  # the number of copies, by tier


class EngineCache:
    """All that is known of one rank of an instance."""

    __slots__ = ("block_size", "children", "clears", "group_idx", "lookahead", "orphans", "tiers")

    def __init__(self, block_size: int, lookahead: int = 0) -> None:
        """`lookahead`: the number of tokens behind a block that its engine's hash covers."""
        self.block_size = block_size
        self.lookahead = lookahead
        self.clears = 0
        self.group_idx: int | None = None
        self.tiers: dict[str, Tier] = {}
        self.orphans: OrderedDict[EngineHash, Orphan] = OrderedDict()
        self.children: dict[
            EngineHash, dict[EngineHash, None]
        ] = {}  # of a parent that is not known: the orphans that wait for it

    def held(self, *, main: bool) -> int:
        """The number of hashes in the engine's own tier (`main`), or in all others."""
        held = 0
        for name, tier in self.tiers.items():
            if (name == DEFAULT_TIER) is main:
                held += tier.hashes
        return held

    def key_of(self, engine_hash: EngineHash) -> int | None:
        """The key of a block that lies in any tier; None if it lies in none."""
        for tier in self.tiers.values():
            key = tier.shards[hash(engine_hash) & _SHARD_MASK].get(engine_hash)
            if key is not None:
                return key
        return None

    def counts_group(self, group_idx: int | None) -> bool:
        """Whether blocks of that cache group are counted.

        Groups of one engine share hashes. The first group that holds whole prefixes is counted, and no other
        like it.
        """
        return group_idx is None or self.group_idx is None or group_idx == self.group_idx

    def refusal(self, event: BlockStored) -> Reason | None:
        """Why a run cannot be stored here; None if it can."""
        if not self.counts_group(event.group_idx):
            return Reason.CACHE_GROUP
        if (self.block_size != event.block_size or self.lookahead != event.lookahead) and (
            self.orphans or any(tier.hashes for tier in self.tiers.values())
        ):
            return Reason.BLOCK_SIZE if self.block_size != event.block_size else Reason.LOOKAHEAD
        return None

    def are_new(self, hashes: Sequence[EngineHash], at: Sequence[int]) -> bool:
        """Whether no tier has one of the hashes, none waits or is waited for, and none comes twice; `at`:
        their `places`.
        """
        if len(set(hashes)) != len(hashes):
            return False
        if self.orphans and not (
            self.orphans.keys().isdisjoint(hashes) and self.children.keys().isdisjoint(hashes)
        ):
            return False
        return not any(tier.has_any(hashes, at) for tier in self.tiers.values())

    def add_orphan(
        self, engine_hash: EngineHash, parent: EngineHash, digest: int, copies: dict[str, int]
    ) -> None:
        """Let a block wait for its parent; `copies`: by tier."""
        self.orphans[engine_hash] = Orphan(parent, digest, copies)
        self.children.setdefault(parent, {})[engine_hash] = None

    def take_orphan(self, engine_hash: EngineHash) -> Orphan | None:
        """Let a block wait no longer. Returns it, or None if it did not wait."""
        orphan = self.orphans.pop(engine_hash, None)
        if orphan is not None:
            siblings = self.children[orphan.parent]
            del siblings[engine_hash]
            if not siblings:
                del self.children[orphan.parent]
        return orphan

    def remove_orphan(self, tier: str, engine_hash: EngineHash) -> bool:
        """Take away one copy of a block that waits. Returns False if there is no such copy."""
        orphan = self.orphans.get(engine_hash)
        if orphan is None or tier not in orphan.copies:
            return False
        orphan.copies[tier] -= 1
        if not orphan.copies[tier]:
            del orphan.copies[tier]
            if not orphan.copies:
                self.take_orphan(engine_hash)
        return True

    def evict_orphans(self, most: int) -> int:
        """Drop blocks that wait, the longest waiting first, until `most` are left. Returns how many were
        dropped.
        """
        evicted = 0
        while len(self.orphans) > most:
            self.take_orphan(next(iter(self.orphans)))
            evicted += 1
        return evicted


def _count_down(counts: dict[Any, int], of: int | bytes) -> bool:
    """Count one less of `of`. Returns False if none was counted; the first is not."""
    left = counts.pop(of, 0) - 1
    if left > 0:
        counts[of] = left
    return left >= 0
