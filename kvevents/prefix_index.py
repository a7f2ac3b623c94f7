"""A slot's cached tokens are those of the longest prefix all of whose blocks lie in it now: no guesses.

Engine hashes are handles of one (instance, rank); blocks are known by their keys, which every instance shares.
For each key one table holds the number of the set of slots it lies in, for each tier of an engine dictionaries lead
from hash to key. A block whose parent is unknown waits, bounded in number, and counts once the parent has come.

What is cleared or retired is gone at once: answers are made from the bits of live slots alone, and `sweep` gives
the memory back slice by slice. A bit is used again only when nothing is left of its last owner.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import contains, setitem
from typing import Any, NamedTuple

import numpy as np

from kvevents.block_keys import BlockHasher, Keys, Prompt, UnkeyableRun
from kvevents.events import BlockRemoved, BlockStored, EngineHash, Reason
from kvevents.exported import ExportedOrphan, ExportedRank, ExportedTier
from kvevents.key_table import KeyTable, Numbers
from kvevents.slot_sets import SlotSets, bits

DEFAULT_TIER = "GPU"
"""The tier of an event that names none: vLLM had no `medium` while there was only one."""

WHOLE_PREFIX_KINDS = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
"""The kinds of cache group that keep every block of a prefix (vLLM's KVCacheSpecKind)."""

MAX_ORPHANS = 16_384
"""Blocks of one (instance, rank) that wait for a parent: two of the longest prompts in common use, 16-token blocks."""

SWEEP_BLOCKS = 1_024
"""Blocks of one slice of sweeping: well below half a millisecond."""

_SHARDS = (
    32  # of a tier's hashes: a dictionary of 2 million would be rehashed for 0.1 s, each of these for 2 ms
)
_SHARD_MASK = _SHARDS - 1
_FIRST_LOOK = 16  # blocks of a prompt looked up before many more are
_FEW_KEYS = 12  # below so many, single updates are cheaper than numpy's calls


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

    __slots__ = ("again", "bit", "blocks", "copies", "hashes", "names", "shards")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.shards: list[dict[EngineHash, int]] = [{} for _ in range(_SHARDS)]  # hash -> key
        self.hashes = 0
        self.blocks = 0  # different keys
        self.copies: dict[EngineHash, int] = {}  # beyond the first
        self.again = 0  # their sum
        self.names: dict[int, int] = {}  # hashes of a key beyond the first: salts and groups can share one

    def homes(self, hashes: Iterable[EngineHash]) -> "list[dict[EngineHash, int]]":
        """The dictionary each hash belongs in."""
        shards = self.shards
        return [shards[hash(engine_hash) & _SHARD_MASK] for engine_hash in hashes]

    def key_of(self, engine_hash: EngineHash) -> int | None:
        return self.shards[hash(engine_hash) & _SHARD_MASK].get(engine_hash)


class _Orphan:
    """A block whose parent's key is not known yet."""

    __slots__ = ("copies", "digest", "parent")

    def __init__(self, parent: EngineHash, digest: int) -> None:
        self.parent = parent
        self.digest = digest
        self.copies: dict[str, int] = {}


class _Engine:
    """All that is known of one (instance, rank)."""

    __slots__ = ("block_size", "children", "group_idx", "orphans", "tiers")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.group_idx: int | None = None
        self.tiers: dict[str, _Tier] = {}
        self.orphans: OrderedDict[EngineHash, _Orphan] = OrderedDict()
        self.children: dict[EngineHash, dict[EngineHash, None]] = {}

    def key_of(self, engine_hash: EngineHash) -> int | None:
        for tier in self.tiers.values():
            key = tier.key_of(engine_hash)
            if key is not None:
                return key
        return None

    @property
    def is_empty(self) -> bool:
        return not self.orphans and not any(tier.hashes for tier in self.tiers.values())


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
        self._capacity: dict[tuple[str, int, str], int] = {}
        self._table = KeyTable()
        self._sets = SlotSets()
        self._slots: list[Slot] = []  # by bit number
        self._free: list[int] = []
        self._buried: list[_Tier] = []
        self._waste: list[dict[Any, Any]] = []
        self._known_slots: dict[Slot, int] | None = None
        self._known_sizes: list[tuple[int, int]] = []

    @property
    def hasher(self) -> BlockHasher:
        """The one maker of keys that match this index."""
        return self._hasher

    # ---- events -------------------------------------------------------------------------------------------

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
            digests = self._hasher.digests(event)
        except UnkeyableRun as unkeyable:
            return Change(0, 0, {unkeyable.reason: max(count, 1)})
        if self._buried or self._waste:
            self.sweep(2 * count)
        if engine is None:
            engine = self._engines[instance, rank] = _Engine(event.block_size)
            self._known_slots = None
        if engine.block_size != event.block_size:
            engine.block_size = event.block_size
            self._known_slots = None
        if engine.group_idx is None:
            engine.group_idx = event.group_idx
        name = event.medium or DEFAULT_TIER
        tier = engine.tiers.get(name)
        if tier is None:
            tier = engine.tiers[name] = self._new_tier(Slot(instance, rank, name))
        hashes, parent = event.block_hashes, event.parent_block_hash
        parent_key = engine.key_of(parent) if parent is not None else None
        if count >= _FEW_KEYS and (parent is None or parent_key is not None) and _are_new(engine, hashes):
            self._add_run(tier, hashes, self._hasher.of_digests(parent_key, digests))
            applied, orphans = count, 0
        else:
            applied = orphans = 0
            for engine_hash, digest in zip(hashes, digests.numbers(), strict=True):
                parent_key = self._store_block(engine, name, engine_hash, parent, parent_key, digest)
                if parent_key is not None:
                    applied += 1
                else:
                    orphans += 1
                parent = engine_hash
        if self._capacity:
            _trim(tier, self._capacity.get((instance, rank, name)))
        evicted = self._evict_orphans(engine)
        return Change(applied, orphans, {Reason.ORPHAN_EVICTED: evicted} if evicted else {})

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """One copy of each named block has left a tier; one that waited for its parent no longer waits."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return Change(0, 0, {Reason.UNKNOWN_BLOCK: len(event.block_hashes)} if event.block_hashes else {})
        if not _is_counted_group(engine, event.group_idx):
            return Change(0, 0, {Reason.CACHE_GROUP: max(len(event.block_hashes), 1)})
        name = event.medium or DEFAULT_TIER
        tier = engine.tiers.get(name)
        gone: list[int] = []
        applied = 0
        for engine_hash in event.block_hashes:
            if tier is not None and _remove_hash(tier, engine_hash, gone):
                applied += 1
            elif engine.orphans:
                applied += _remove_orphan(engine, name, engine_hash)
        if tier is not None and gone:
            tier.blocks -= len(gone)
            self._without(gone, tier.bit)
        unknown = len(event.block_hashes) - applied
        return Change(applied, 0, {Reason.UNKNOWN_BLOCK: unknown} if unknown else {})

    def clear(self, instance: str, rank: int) -> int:
        """Nothing is cached on that rank any more; its slots stay. Returns the blocks that went."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return 0
        blocks = 0
        for name, tier in engine.tiers.items():
            blocks += tier.blocks
            self._bury(tier)
            engine.tiers[name] = self._new_tier(Slot(instance, rank, name))
        self._waste += (engine.orphans, engine.children)
        engine.orphans, engine.children = OrderedDict(), {}
        return blocks

    def retire(self, instance: str, rank: int | None = None) -> int:
        """Forget all about an instance, or one rank of it: slots, block size, waiting blocks. Returns the blocks."""
        blocks = 0
        for at in [at for at in self._engines if at[0] == instance and rank in {None, at[1]}]:
            engine = self._engines.pop(at)
            for tier in engine.tiers.values():
                blocks += tier.blocks
                self._bury(tier)
            self._waste += (engine.orphans, engine.children)
        self._known_slots = None
        return blocks

    def sweep(self, blocks: int = SWEEP_BLOCKS) -> bool:
        """Give back the memory of up to so many blocks that were cleared or retired; False once none is left.

        Storing sweeps twice what it stores, so that memory stays bounded without this; an owner that wants it back
        soon calls it until it answers False, and lets others run in between.
        """
        while blocks > 0 and self._buried:
            tier = self._buried[-1]
            keys: list[int] = []
            while tier.shards and len(keys) < blocks:
                shard = tier.shards[-1]
                keys += [shard.popitem()[1] for _ in range(min(len(shard), blocks - len(keys)))]
                if not shard:
                    tier.shards.pop()
            blocks -= len(keys) + 1
            self._without(list(set(keys)) if tier.names else keys, tier.bit)
            if not tier.shards:
                self._buried.pop()
                self._free.append(tier.bit.bit_length() - 1)
        while blocks > 0 and self._waste:
            waste = self._waste[-1]
            for _ in range(min(len(waste), blocks)):
                waste.popitem()
            blocks -= len(waste) + 1
            if not waste:
                self._waste.pop()
        return bool(self._buried or self._waste) or self._table.move()

    def set_capacity(self, instance: str, rank: int, blocks: int | None, tier: str = DEFAULT_TIER) -> None:
        """How many physical blocks a tier has (the engine's num_gpu_blocks), None: not known.

        Copies counted beyond that were announced by "full" reports; the newest are forgotten first. Outlives a
        retirement.
        """
        if blocks is None:
            self._capacity.pop((instance, rank, tier), None)
        else:
            self._capacity[instance, rank, tier] = blocks

    # ---- questions ----------------------------------------------------------------------------------------

    def match(self, prompt: Prompt) -> dict[Slot, int]:
        """The tokens of the prompt's longest cached prefix, for every live slot (0 included).

        A whole multiple of the instance's block size; up to the full length of the prompt, although an engine
        computes at least the last token anew.
        """
        cached = self._live_slots().copy()
        slots = self._slots
        for block_size, among in self._known_sizes:
            for slots_bits, blocks in self._longest(self._hasher.prompt_keys(prompt, block_size), among):
                tokens = blocks * block_size
                for bit in bits(slots_bits):
                    cached[slots[bit]] = tokens
        return cached

    def blocks(self) -> dict[Slot, int]:
        """How many different blocks lie in each live slot (copies count once)."""
        return {slot: tier.blocks for slot, tier in self._tiers()}

    def orphans(self, instance: str, rank: int) -> int:
        """How many blocks of that rank wait for a parent."""
        engine = self._engines.get((instance, rank))
        return len(engine.orphans) if engine is not None else 0

    def block_size(self, instance: str, rank: int) -> int | None:
        """Tokens a block, learned from the events; None until the first."""
        engine = self._engines.get((instance, rank))
        return engine.block_size if engine is not None else None

    # ---- going from one process to the next ---------------------------------------------------------------

    def export(self, instance: str, rank: int) -> ExportedRank | None:
        """All that is known of one rank, copied in one go; None if nothing is. Its keys belong to the secret."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return None
        tiers = []
        for name, tier in engine.tiers.items():
            hashes = [engine_hash for shard in tier.shards for engine_hash in shard]
            keys = np.fromiter(
                (key for shard in tier.shards for key in shard.values()), np.uint64, tier.hashes
            )
            tiers.append(ExportedTier(name, hashes, keys, dict(tier.copies)))
        orphans = [
            ExportedOrphan(engine_hash, orphan.parent, orphan.digest, dict(orphan.copies))
            for engine_hash, orphan in engine.orphans.items()
        ]
        return ExportedRank(engine.block_size, engine.group_idx, tiers, orphans)

    def load(self, instance: str, rank: int, exported: ExportedRank) -> None:
        """Forget what is known of a rank, and know what was exported with the same secret."""
        self.retire(instance, rank)
        engine = self._engines[instance, rank] = _Engine(exported.block_size)
        engine.group_idx = exported.group_idx
        for told in exported.tiers:
            tier = engine.tiers[told.name] = self._new_tier(Slot(instance, rank, told.name))
            keys = told.keys.tolist()
            first = dict(zip(reversed(keys), reversed(told.hashes), strict=True))
            self._add_run(tier, list(first.values()), list(first))
            for engine_hash, key in zip(told.hashes, keys, strict=True):
                if first[key] != engine_hash:
                    self._hold(tier, engine_hash, key, 1)
            tier.copies = dict(told.copies)
            tier.again = sum(told.copies.values())
        for waiting in exported.orphans:
            orphan = engine.orphans[waiting.engine_hash] = _Orphan(waiting.parent, waiting.digest)
            orphan.copies = dict(waiting.copies)
            engine.children.setdefault(waiting.parent, {})[waiting.engine_hash] = None

    # ---- slots --------------------------------------------------------------------------------------------

    def _new_tier(self, slot: Slot) -> _Tier:
        if self._free:
            number = self._free.pop()
            self._slots[number] = slot
        else:
            number = len(self._slots)
            self._slots.append(slot)
        self._known_slots = None
        return _Tier(1 << number)

    def _bury(self, tier: _Tier) -> None:
        self._known_slots = None
        self._buried.append(tier)
        self._waste += (tier.copies, tier.names)

    def _tiers(self) -> Iterator[tuple[Slot, _Tier]]:
        for (instance, rank), engine in self._engines.items():
            for name, tier in engine.tiers.items():
                yield Slot(instance, rank, name), tier

    def _live_slots(self) -> dict[Slot, int]:
        """0 for every live slot; and `_known_sizes`: each block size with the slots that have it."""
        if self._known_slots is None:
            self._known_slots = {slot: 0 for slot, _ in self._tiers()}
            sizes: dict[int, int] = {}
            for engine in self._engines.values():
                for tier in engine.tiers.values():
                    sizes[engine.block_size] = sizes.get(engine.block_size, 0) | tier.bit
            self._known_sizes = list(sizes.items())
        return self._known_slots

    # ---- keys ---------------------------------------------------------------------------------------------

    def _longest(self, keys: Keys, among: int) -> Iterator[tuple[int, int]]:
        """Sets of slots with the number of leading blocks that lie in each of them; none that have no block."""
        total = len(keys)
        if not total:
            return
        members = self._sets.members
        there = members[self._table.get(keys.item(0))] & among
        done, length = 0, _FIRST_LOOK
        while there and done < total:
            sets = self._table.get_many(keys[done : done + length])
            changes = np.flatnonzero(sets[1:] != sets[:-1])
            for at in (-1, *changes.tolist()):
                still = there & members[sets.item(at + 1)]
                if still != there:
                    if done + at + 1:
                        yield there ^ still, done + at + 1
                    there = still
                    if not there:
                        return
            done += length
            length *= 16
        if there:
            yield there, total

    def _with(self, keys: Sequence[int], bit: int) -> list[int]:
        """Put different blocks into a slot; those of them that lay in it already."""
        sets = self._sets
        if not keys:
            return []
        array = np.array(keys, np.uint64)
        same = None

        def change(numbers: Numbers) -> Numbers:
            nonlocal same
            after, same = sets.changed(numbers, bit, into=True)
            return after

        self._table.update_many(array, change)
        return [] if same is None else array[same].tolist()

    def _without(self, keys: Sequence[int], bit: int) -> None:
        """Take different blocks out of a slot; those that are not in it stay as they are."""
        table, sets = self._table, self._sets
        if len(keys) < _FEW_KEYS:
            for key in keys:
                before = table.get(key)
                if sets.members[before] & bit:
                    table.set(key, sets.toggled(before, bit, 1))
            return
        array = np.array(keys, np.uint64)
        table.update_many(array, lambda numbers: sets.changed(numbers, bit, into=False)[0], adds=False)

    # ---- blocks -------------------------------------------------------------------------------------------

    def _add_run(self, tier: _Tier, hashes: Sequence[EngineHash], keys: Sequence[int]) -> None:
        """Put blocks with new hashes and different keys into a tier."""
        deque(map(setitem, tier.homes(hashes), hashes, keys), 0)  # a loop in C
        already = self._with(keys, tier.bit)
        tier.hashes += len(keys)
        tier.blocks += len(keys) - len(already)
        for key in already:
            tier.names[key] = tier.names.get(key, 0) + 1

    def _store_block(
        self,
        engine: _Engine,
        tier: str,
        engine_hash: EngineHash,
        parent: EngineHash | None,
        parent_key: int | None,
        digest: int,
    ) -> int | None:
        """The block's key; None: it waits for its parent."""
        key = engine.key_of(engine_hash)
        if key is not None:
            self._hold(engine.tiers[tier], engine_hash, key, 1)
            return key
        if parent is not None and parent_key is None:
            orphan = engine.orphans.get(engine_hash)
            if orphan is None:
                orphan = engine.orphans[engine_hash] = _Orphan(parent, digest)
                engine.children.setdefault(parent, {})[engine_hash] = None
            orphan.copies[tier] = orphan.copies.get(tier, 0) + 1 if self._count_copies else 1
            return None
        key = self._hasher.of_block(parent_key, digest)
        if engine.orphans:
            self._place(engine, tier, engine_hash, key)
        else:
            self._hold(engine.tiers[tier], engine_hash, key, 1)
        return key

    def _place(self, engine: _Engine, tier: str, engine_hash: EngineHash, key: int) -> None:
        """Store a block, and every block that waited for it, and those that waited for them."""
        placed = [(engine_hash, key)]
        self._hold(engine.tiers[tier], engine_hash, key, 1)
        while placed:
            parent, parent_key = placed.pop()
            orphan = _take_orphan(engine, parent)
            if orphan is not None:
                for name, copies in orphan.copies.items():
                    self._hold(engine.tiers[name], parent, parent_key, copies)
            placed += [
                (child, self._hasher.of_block(parent_key, engine.orphans[child].digest))
                for child in engine.children.get(parent, ())
            ]

    def _hold(self, tier: _Tier, engine_hash: EngineHash, key: int, copies: int) -> None:
        shard = tier.shards[hash(engine_hash) & _SHARD_MASK]
        if engine_hash not in shard:
            shard[engine_hash] = key
            tier.hashes += 1
            before = self._table.get(key)
            if self._sets.members[before] & tier.bit:
                tier.names[key] = tier.names.get(key, 0) + 1
            else:
                self._table.set(key, self._sets.toggled(before, tier.bit, 1))
                tier.blocks += 1
            copies -= 1
        if copies and self._count_copies:
            tier.copies[engine_hash] = tier.copies.get(engine_hash, 0) + copies
            tier.again += copies

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
    if engine.block_size != event.block_size and not engine.is_empty:
        return Reason.BLOCK_SIZE
    return None


def _is_counted_group(engine: _Engine, group_idx: int | None) -> bool:
    # Groups of one engine share hashes. The first that holds whole prefixes speaks for the others like it.
    return group_idx is None or engine.group_idx is None or group_idx == engine.group_idx


def _are_new(engine: _Engine, hashes: list[EngineHash]) -> bool:
    """No tier has one of them, none waits or is waited for, and none comes twice."""
    if len(set(hashes)) != len(hashes):
        return False
    if engine.orphans and not (
        engine.orphans.keys().isdisjoint(hashes) and engine.children.keys().isdisjoint(hashes)
    ):
        return False
    return not any(
        tier.hashes and any(map(contains, tier.homes(hashes), hashes)) for tier in engine.tiers.values()
    )


def _remove_hash(tier: _Tier, engine_hash: EngineHash, gone: list[int]) -> bool:
    """Take one copy away; a key that nothing stands for any more is added to `gone`. False: it is not there."""
    shard = tier.shards[hash(engine_hash) & _SHARD_MASK]
    key = shard.get(engine_hash)
    if key is None:
        return False
    if tier.copies and _count_down(tier.copies, engine_hash):
        tier.again -= 1
        return True
    del shard[engine_hash]
    tier.hashes -= 1
    if not (tier.names and _count_down(tier.names, key)):
        gone.append(key)
    return True


def _count_down(counts: dict[Any, int], of: EngineHash) -> bool:
    """False if there was nothing left to count."""
    left = counts.pop(of, 0) - 1
    if left > 0:
        counts[of] = left
    return left >= 0


def _trim(tier: _Tier, capacity: int | None) -> None:
    if capacity is None:
        return
    while tier.copies and tier.hashes + tier.again > capacity:
        engine_hash, copies = tier.copies.popitem()
        left = max(0, copies - (tier.hashes + tier.again - capacity))
        tier.again -= copies - left
        if left:
            tier.copies[engine_hash] = left


def _remove_orphan(engine: _Engine, tier: str, engine_hash: EngineHash) -> bool:
    orphan = engine.orphans.get(engine_hash)
    if orphan is None or tier not in orphan.copies:
        return False
    if orphan.copies[tier] > 1:
        orphan.copies[tier] -= 1
        return True
    del orphan.copies[tier]
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
