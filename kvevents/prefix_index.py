"""A slot's cached tokens are those of the longest prefix all of whose blocks lie in it now: no guesses.

Engine hashes are handles of one (instance, rank); blocks are known by their keys, which every instance shares.
A block whose parent is unknown waits, bounded in number, and counts once the parent has come.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kvevents.block_keys import BlockHasher, Prompt, UnkeyableRun, blocks_of_run
from kvevents.events import BlockRemoved, BlockStored, EngineHash, Reason

DEFAULT_TIER = "GPU"
"""The tier of an event that names none: vLLM had no `medium` while there was only one."""

WHOLE_PREFIX_KINDS = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
"""The kinds of cache group that keep every block of a prefix (vLLM's KVCacheSpecKind)."""

MAX_ORPHANS = 16_384
"""Blocks of one (instance, rank) that wait for a parent: two of the longest prompts in common use, 16-token blocks."""


class Slot(NamedTuple):
    """One place where blocks lie."""

    instance: str
    rank: int
    tier: str


class Change(NamedTuple):
    """What an event did to the index, in blocks."""

    applied: int
    """Blocks stored or removed, copies included."""
    orphans: int
    """Blocks of this event that now wait for a parent."""
    dropped: Mapping[Reason, int]
    """Blocks that changed nothing, or left the waiting room, and why."""


class _Tier:
    """What lies in one slot."""

    __slots__ = ("copies", "keys")

    def __init__(self) -> None:
        self.copies: dict[EngineHash, int] = {}
        self.keys: dict[
            int, int
        ] = {}  # how many engine hashes stand for the key: salts and groups can share one


class _Orphan:
    """A block whose parent's key is not known yet."""

    __slots__ = ("copies", "extra", "parent", "tokens")

    def __init__(self, parent: EngineHash, tokens: bytes, extra: bytes) -> None:
        self.parent = parent
        self.tokens = tokens
        self.extra = extra
        self.copies: dict[str, int] = {}


class _Engine:
    """All that is known of one (instance, rank)."""

    __slots__ = ("block_size", "children", "group_idx", "key_of", "orphans", "tiers")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.group_idx: int | None = None
        self.tiers: dict[str, _Tier] = {}
        self.key_of: dict[EngineHash, int] = {}
        self.orphans: dict[EngineHash, _Orphan] = {}
        self.children: dict[EngineHash, dict[EngineHash, None]] = {}

    def clear(self) -> int:
        blocks = sum(len(tier.keys) for tier in self.tiers.values())
        self.tiers = {name: _Tier() for name in self.tiers}
        self.key_of, self.orphans, self.children = {}, {}, {}
        return blocks


class PrefixIndex:
    """Which blocks lie in which slot. Synchronous; every call leaves it consistent; nothing an engine says raises."""

    def __init__(
        self, hasher: BlockHasher | None = None, *, count_copies: bool = True, max_orphans: int = MAX_ORPHANS
    ) -> None:
        """`count_copies`: each physical copy of a block is announced and removed by its own event (vLLM today);
        False: the first announcement and the first removal count. `max_orphans`: for each (instance, rank).
        """
        self._hasher = hasher if hasher is not None else BlockHasher()
        self._count_copies = count_copies
        self._max_orphans = max_orphans
        self._engines: dict[tuple[str, int], _Engine] = {}

    @property
    def hasher(self) -> BlockHasher:
        """The one maker of keys that match this index."""
        return self._hasher

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        """A run of blocks now lies in a tier. A run that cannot be keyed is dropped as a whole."""
        count = len(event.block_hashes)
        if event.block_size <= 0 or not event.token_ids:
            return Change(0, 0, {Reason.PLACEHOLDER: max(count, 1)})
        engine = self._engines.get((instance, rank))
        refusal = _refusal(engine, event)
        if refusal is not None:
            return Change(0, 0, {refusal: max(count, 1)})
        try:
            blocks = blocks_of_run(event)
        except UnkeyableRun as unkeyable:
            return Change(0, 0, {unkeyable.reason: max(count, 1)})
        if engine is None:
            engine = self._engines[instance, rank] = _Engine(event.block_size)
        engine.block_size = event.block_size
        if engine.group_idx is None:
            engine.group_idx = event.group_idx
        tier = event.medium or DEFAULT_TIER
        engine.tiers.setdefault(tier, _Tier())
        applied = orphans = 0
        parent = event.parent_block_hash
        for engine_hash, (tokens, extra) in zip(event.block_hashes, blocks, strict=True):
            if self._store_block(engine, tier, engine_hash, parent, tokens, extra):
                applied += 1
            else:
                orphans += 1
            parent = engine_hash
        evicted = self._evict_orphans(engine)
        return Change(applied, orphans, {Reason.ORPHAN_EVICTED: evicted} if evicted else {})

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """One copy of each named block has left a tier; one that waited for its parent no longer waits."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return Change(0, 0, {Reason.UNKNOWN_BLOCK: len(event.block_hashes)} if event.block_hashes else {})
        if not _is_counted_group(engine, event.group_idx):
            return Change(0, 0, {Reason.CACHE_GROUP: max(len(event.block_hashes), 1)})
        tier = event.medium or DEFAULT_TIER
        applied = sum(_remove_block(engine, tier, engine_hash) for engine_hash in event.block_hashes)
        unknown = len(event.block_hashes) - applied
        return Change(applied, 0, {Reason.UNKNOWN_BLOCK: unknown} if unknown else {})

    def clear(self, instance: str, rank: int) -> int:
        """Nothing is cached on that rank any more; its slots stay. Returns the blocks that went."""
        engine = self._engines.get((instance, rank))
        return engine.clear() if engine is not None else 0

    def retire(self, instance: str, rank: int | None = None) -> int:
        """Forget all about an instance, or one rank of it: slots, block size, waiting blocks. Returns the blocks."""
        gone = [at for at in self._engines if at[0] == instance and rank in {None, at[1]}]
        return sum(self._engines.pop(at).clear() for at in gone)

    def match(self, prompt: Prompt) -> dict[Slot, int]:
        """The tokens of the prompt's longest cached prefix, for every live slot (0 included).

        A whole multiple of the instance's block size; up to the full length of the prompt, although an engine
        computes at least the last token anew.
        """
        cached: dict[Slot, int] = {}
        by_size: dict[int, dict[Slot, _Tier]] = {}
        for slot, tier, block_size in self._slots():
            cached[slot] = 0
            by_size.setdefault(block_size, {})[slot] = tier
        for block_size, matching in by_size.items():
            for key in self._hasher.iter_prompt(prompt, block_size):
                matching = {slot: tier for slot, tier in matching.items() if key in tier.keys}  # noqa: PLW2901
                if not matching:
                    break
                for slot in matching:
                    cached[slot] += block_size
        return cached

    def blocks(self) -> dict[Slot, int]:
        """How many different blocks lie in each live slot (copies count once)."""
        return {slot: len(tier.keys) for slot, tier, _ in self._slots()}

    def orphans(self, instance: str, rank: int) -> int:
        """How many blocks of that rank wait for a parent."""
        engine = self._engines.get((instance, rank))
        return len(engine.orphans) if engine is not None else 0

    def block_size(self, instance: str, rank: int) -> int | None:
        """Tokens a block, learned from the events; None until the first."""
        engine = self._engines.get((instance, rank))
        return engine.block_size if engine is not None else None

    def _slots(self) -> Iterator[tuple[Slot, _Tier, int]]:
        for (instance, rank), engine in self._engines.items():
            for name, tier in engine.tiers.items():
                yield Slot(instance, rank, name), tier, engine.block_size

    def _store_block(
        self,
        engine: _Engine,
        tier: str,
        engine_hash: EngineHash,
        parent: EngineHash | None,
        tokens: bytes,
        extra: bytes,
    ) -> bool:
        """False: the block waits for its parent."""
        if engine_hash in engine.key_of:
            self._add_copies(engine, tier, engine_hash, 1)
            return True
        parent_key = engine.key_of.get(parent) if parent is not None else None
        if parent is not None and parent_key is None:
            orphan = engine.orphans.get(engine_hash)
            if orphan is None:
                orphan = engine.orphans[engine_hash] = _Orphan(parent, tokens, extra)
                engine.children.setdefault(parent, {})[engine_hash] = None
            orphan.copies[tier] = orphan.copies.get(tier, 0) + 1 if self._count_copies else 1
            return False
        self._place(engine, engine_hash, self._hasher.of_block(parent_key, tokens, extra))
        self._add_copies(engine, tier, engine_hash, 1)
        return True

    def _place(self, engine: _Engine, engine_hash: EngineHash, key: int) -> None:
        """Give a block its key, and every block that waited for it, and those that waited for them."""
        placed = [(engine_hash, key)]
        while placed:
            parent, parent_key = placed.pop()
            engine.key_of[parent] = parent_key
            orphan = _take_orphan(engine, parent)
            if orphan is not None:
                for tier, copies in orphan.copies.items():
                    self._add_copies(engine, tier, parent, copies)
            for child in engine.children.get(parent, ()):
                waiting = engine.orphans[child]
                placed.append((child, self._hasher.of_block(parent_key, waiting.tokens, waiting.extra)))

    def _add_copies(self, engine: _Engine, tier_name: str, engine_hash: EngineHash, copies: int) -> None:
        tier = engine.tiers[tier_name]
        held = tier.copies.get(engine_hash, 0)
        tier.copies[engine_hash] = held + copies if self._count_copies else 1
        if not held:
            key = engine.key_of[engine_hash]
            tier.keys[key] = tier.keys.get(key, 0) + 1

    def _evict_orphans(self, engine: _Engine) -> int:
        evicted = 0
        while len(engine.orphans) > self._max_orphans:
            _take_orphan(engine, next(iter(engine.orphans)))
            evicted += 1
        return evicted


def _refusal(engine: _Engine | None, event: BlockStored) -> Reason | None:
    if event.kv_cache_spec_kind is not None and event.kv_cache_spec_kind not in WHOLE_PREFIX_KINDS:
        return Reason.CACHE_GROUP
    if engine is None:
        return None
    if not _is_counted_group(engine, event.group_idx):
        return Reason.CACHE_GROUP
    if engine.block_size != event.block_size and (engine.key_of or engine.orphans):
        return Reason.BLOCK_SIZE
    return None


def _is_counted_group(engine: _Engine, group_idx: int | None) -> bool:
    # Groups of one engine share hashes. The first that holds whole prefixes speaks for the others like it.
    return group_idx is None or engine.group_idx is None or group_idx == engine.group_idx


def _remove_block(engine: _Engine, tier_name: str, engine_hash: EngineHash) -> bool:
    tier = engine.tiers.get(tier_name)
    if tier is not None and engine_hash in tier.copies:
        tier.copies[engine_hash] -= 1
        if not tier.copies[engine_hash]:
            del tier.copies[engine_hash]
            key = engine.key_of[engine_hash]
            tier.keys[key] -= 1
            if not tier.keys[key]:
                del tier.keys[key]
            if not any(engine_hash in other.copies for other in engine.tiers.values()):
                del engine.key_of[engine_hash]
        return True
    orphan = engine.orphans.get(engine_hash)
    if orphan is None or tier_name not in orphan.copies:
        return False
    orphan.copies[tier_name] -= 1
    if not orphan.copies[tier_name]:
        del orphan.copies[tier_name]
        if not orphan.copies:
            _take_orphan(engine, engine_hash)
    return True


def _take_orphan(engine: _Engine, engine_hash: EngineHash) -> _Orphan | None:
    orphan = engine.orphans.pop(engine_hash, None)
    if orphan is not None:
        siblings = engine.children[orphan.parent]
        del siblings[engine_hash]
        if not siblings:
            del engine.children[orphan.parent]
    return orphan
