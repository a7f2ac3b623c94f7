"""A slot's cached tokens are those of the longest prefix all of whose blocks lie in it now: no guesses.

Engine hashes are handles of one (instance, rank); blocks are known by their keys, which every instance shares.
For each key one table holds the number of the set of slots it lies in, for each tier of an engine dictionaries lead
from hash to key. A block whose parent is unknown waits, bounded in number, and counts once the parent has come.

What is cleared or retired is gone at once: answers are made from the bits of live slots alone, and `sweep` gives
the memory back slice by slice. A bit is used again only when nothing is left of its last owner.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kvevents import slower_tiers
from kvevents.block_keys import BlockHasher, Keys, Prompt
from kvevents.block_store import FEW_BLOCKS, BlockStore
from kvevents.contents import UnkeyableRun
from kvevents.engine_cache import DEFAULT_TIER, EngineCache, Tier, note_uncounted, why_uncounted
from kvevents.events import BlockRemoved, BlockStored, Reason
from kvevents.exported import SLICE_BLOCKS, ExportedRank, at_once, copied
from kvevents.residency import Residency
from kvevents.slot_sets import bits
from kvevents.slots import Slot, Slots

MAX_ORPHANS = 16_384
"""Blocks of one (instance, rank) that wait for a parent: two of the longest prompts in common use, 16-token blocks."""

MAX_BLOCKS = 2_000_000
"""Blocks of one (instance, rank) in the engine's own tier, by its own hashes: 32 million tokens in 16-token blocks, 300
to 400 MB here; all other tiers together have half of that. What comes beyond is dropped, so that a source that never
removes cannot fill the memory."""

MAX_TIERS = 8
"""Tiers of one (instance, rank); vLLM knows a GPU, a CPU and one or two kinds of storage."""

SWEEP_BLOCKS = 512
"""Blocks of one slice of sweeping: well below half a millisecond."""

_NO_EXTRA_KEYS: tuple[list[Any] | None, ...] = (None, [None], [[]], [])

Removals = Callable[[str, int, Sequence[int] | None], None]
"""Hears of an instance, a rank, and the keys that left one of its tiers; None for all of them."""


class Change(NamedTuple):
    """What an event did to the index, in blocks."""

    applied: int
    """Blocks stored or removed, copies included."""
    orphans: int
    """Blocks of this event that now wait for a parent."""
    dropped: Mapping[Reason, int]
    """Blocks that changed nothing, or left the waiting room, and why."""


class PrefixIndex:
    """Which blocks lie in which slot. Synchronous; every call leaves it consistent; nothing an engine says raises."""

    def __init__(
        self,
        hasher: BlockHasher | None = None,
        *,
        count_copies: bool = True,
        max_orphans: int = MAX_ORPHANS,
        max_blocks: int = MAX_BLOCKS,
    ) -> None:
        """`count_copies`: each physical copy of a block is announced and removed by its own event, as all vLLM do;
        False: the first announcement and the first removal count. That is for other engines: one that announces
        only first copies and last removals is right with counting, too, so kvproxy has no flag for it.
        `max_orphans`, `max_blocks`: for each (instance, rank).
        """
        self._hasher = hasher if hasher is not None else BlockHasher()
        self._count_copies = count_copies
        self._residency = Residency()
        self._blocks = BlockStore(self._hasher, self._residency, count_copies=count_copies)
        self._max_orphans = max_orphans
        self._max_blocks = max_blocks
        self._engines: dict[tuple[str, int], EngineCache] = {}
        self._capacity: dict[tuple[str, int, str], int] = {}
        self._uncounted: dict[tuple[str, int], dict[str, Reason]] = {}
        self._reports: dict[tuple[str, int], bool] = {}  # asked for; True: the engine marks them
        self._slots = Slots(self._residency)
        self._known_slots: dict[Slot, int] | None = None
        self._known_shapes: list[tuple[int, int, int]] = []
        self._on_removed: Removals | None = None

    def listen(self, on_removed: Removals) -> None:
        """Tell `on_removed` of the keys that left a tier, with None when a rank was cleared or retired.

        It is called in the middle of that change, so it must be quick and must not raise.
        """
        self._on_removed = on_removed

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
        refusal = why_uncounted(event.kv_cache_spec_kind)
        if refusal is None and engine is not None:
            refusal = engine.refusal(event)
        if refusal is not None:
            if refusal not in {Reason.BLOCK_SIZE, Reason.LOOKAHEAD}:
                note_uncounted(self._uncounted.setdefault((instance, rank), {}), event, refusal)
            return Change(0, 0, {refusal: max(count, 1)})
        name = event.medium or DEFAULT_TIER
        if engine is not None and name not in engine.tiers and len(engine.tiers) >= MAX_TIERS:
            return Change(0, 0, {Reason.TIERS: max(count, 1)})
        if engine is not None and not self._has_room(engine, name, count):
            return Change(0, 0, {Reason.FULL: count})
        try:
            digests = self._hasher.digests(event)
        except UnkeyableRun as unkeyable:
            return Change(0, 0, {unkeyable.reason: max(count, 1)})
        if self._slots.to_sweep:
            self.sweep(2 * count)
        if engine is None:
            engine = self._engines[instance, rank] = EngineCache(event.block_size, event.lookahead)
            self._known_slots = None
        if engine.block_size != event.block_size or engine.lookahead != event.lookahead:
            engine.block_size, engine.lookahead = event.block_size, event.lookahead
            self._known_slots = None
        if engine.group_idx is None:
            engine.group_idx = event.group_idx
        tier = engine.tiers.get(name)
        if tier is None:
            tier = engine.tiers[name] = self._new_tier(Slot(instance, rank, name))
        counts = self._counts_copies(instance, rank, event)
        applied, orphans = self._blocks.store(engine, name, event, digests, counts=counts)
        self._forget_copies(instance, rank, name, tier)
        evicted = engine.evict_orphans(self._max_orphans)
        return Change(applied, orphans, {Reason.ORPHAN_EVICTED: evicted} if evicted else {})

    def store_all(self, instance: str, rank: int, events: Sequence[BlockStored]) -> Change:
        """As `store` of each in order. Many blocks of sequences that are being decoded, one each, cost half as much so."""
        if len(events) >= FEW_BLOCKS and self._store_singles(instance, rank, events):
            return Change(len(events), 0, {})
        return total([self.store(instance, rank, event) for event in events])

    def _store_singles(self, instance: str, rank: int, events: Sequence[BlockStored]) -> bool:
        """Store single blocks of one kind, if there is nothing else to think of. False: nothing was done."""
        engine, first = self._engines.get((instance, rank)), events[0]
        if (
            engine is None
            or first.block_size != engine.block_size
            or why_uncounted(first.kv_cache_spec_kind) is not None
            or engine.refusal(first) is not None
            or not all(_is_single(event, first) for event in events)
        ):
            return False
        name = first.medium or DEFAULT_TIER
        tier = engine.tiers.get(name)
        if tier is None or not self._has_room(engine, name, len(events)):
            return False
        try:
            words = self._hasher.words_of_singles(events)
        except UnkeyableRun:
            return False
        if self._slots.to_sweep:
            self.sweep(2 * len(events))
        if not self._blocks.store_singles(engine, name, events, words):
            return False
        if engine.group_idx is None:
            engine.group_idx = first.group_idx
        self._forget_copies(instance, rank, name, tier)
        return True

    def _has_room(self, engine: EngineCache, tier: str, blocks: int) -> bool:
        # Some connectors never tell what leaves their tier: it must not take the place of the engine's own blocks.
        main = tier == DEFAULT_TIER
        return engine.held(main=main) + blocks <= (self._max_blocks if main else self._max_blocks // 2)

    def _forget_copies(self, instance: str, rank: int, name: str, tier: Tier) -> None:
        if self._capacity:
            tier.forget_copies_beyond(self._capacity.get((instance, rank, name), sys.maxsize))

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """One copy of each named block has left a tier; one that waited for its parent no longer waits."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return Change(0, 0, {Reason.UNKNOWN_BLOCK: len(event.block_hashes)} if event.block_hashes else {})
        if not engine.counts_group(event.group_idx):
            return Change(0, 0, {Reason.CACHE_GROUP: max(len(event.block_hashes), 1)})
        name = event.medium or DEFAULT_TIER
        tier = engine.tiers.get(name)
        gone: list[int] = []
        applied = 0
        for engine_hash in event.block_hashes:
            if tier is not None and tier.remove(engine_hash, gone):
                applied += 1
            elif engine.orphans:
                applied += engine.remove_orphan(name, engine_hash)
        if tier is not None and gone:
            tier.blocks -= len(gone)
            self._residency.take(gone, tier.bit)
            if self._on_removed is not None:
                self._on_removed(instance, rank, gone)
        unknown = len(event.block_hashes) - applied
        return Change(applied, 0, {Reason.UNKNOWN_BLOCK: unknown} if unknown else {})

    def clear(self, instance: str, rank: int) -> int:
        """Nothing is cached on that rank any more; its slots stay. Returns the blocks that went."""
        engine = self._engines.get((instance, rank))
        if not self._reports.get((instance, rank), True):
            del self._reports[instance, rank]  # what could be told again is gone
        if engine is None:
            return 0
        blocks = 0
        engine.clears += 1
        for name, tier in engine.tiers.items():
            if not tier.hashes:
                continue  # nothing to sweep: resets may come by the thousand
            blocks += tier.blocks
            self._bury(tier)
            engine.tiers[name] = self._new_tier(Slot(instance, rank, name))
        if engine.orphans:
            self._slots.throw_away(engine.orphans, engine.children)
            engine.orphans, engine.children = OrderedDict(), {}
        if self._on_removed is not None:
            self._on_removed(instance, rank, None)
        return blocks

    def retire(self, instance: str, rank: int | None = None) -> int:
        """Forget all about an instance, or one rank of it: slots, block size, waiting blocks. Returns the blocks."""
        blocks = 0
        for at in [at for at in self._engines if at[0] == instance and rank in {None, at[1]}]:
            engine = self._engines.pop(at)
            for tier in engine.tiers.values():
                blocks += tier.blocks
                self._bury(tier)
            self._slots.throw_away(engine.orphans, engine.children)
            if self._on_removed is not None:
                self._on_removed(*at, None)
        for kept in (self._uncounted, self._reports):
            for at in [at for at in kept if at[0] == instance and rank in {None, at[1]}]:
                del kept[at]
        self._known_slots = None
        return blocks

    def sweep(self, blocks: int = SWEEP_BLOCKS) -> bool:
        """Give back the memory of up to so many blocks that were cleared or retired; False once none is left.

        Storing sweeps twice what it stores, so that memory stays bounded without this; an owner that wants it back
        soon calls it until it answers False, and lets others run in between.
        """
        return self._slots.sweep(blocks)

    def set_capacity(self, instance: str, rank: int, blocks: int | None, tier: str = DEFAULT_TIER) -> None:
        """How many physical blocks a tier has (the engine's num_gpu_blocks), None: not known.

        Copies counted beyond that were announced by "full" reports; the newest are forgotten first. Outlives a
        retirement.
        """
        if blocks is None:
            self._capacity.pop((instance, rank, tier), None)
        else:
            self._capacity[instance, rank, tier] = blocks

    def expect_reports(self, instance: str, rank: int) -> None:
        """The engine is asked to tell of blocks again that it has had for long.

        Such a report looks like the storing of another copy, unless the engine marks it (`REPORT_SESSION`). Counted as
        a copy it would be believed in for ever; a real copy that is not counted is only forgotten too early. So from
        here on no block that is known counts once more, until the rank is cleared or retired, or the engine is
        found to mark its reports, and then only what is marked is treated so.
        """
        self._reports.setdefault((instance, rank), False)

    def capacity(self, instance: str, rank: int, tier: str = DEFAULT_TIER) -> int | None:
        """What `set_capacity` was told last."""
        return self._capacity.get((instance, rank, tier))

    # ---- questions ----------------------------------------------------------------------------------------

    def match(self, prompt: Prompt) -> dict[Slot, int]:
        """The tokens of the prompt's longest cached prefix, for every live slot (0 included).

        A whole multiple of the instance's block size; up to the full length of the prompt, although an engine
        computes at least the last token anew. Where blocks count with the tokens behind them (`lookahead`), those of
        the prompt must be the same.
        """
        cached = self._live_slots().copy()
        slots = self._slots.by_bit
        for block_size, lookahead, among in self._known_shapes:
            keys = self._hasher.prompt_keys(prompt, block_size, lookahead)
            for slots_bits, blocks in self._residency.longest(keys, among):
                tokens = blocks * block_size
                if slots_bits & (slots_bits - 1):
                    for bit in bits(slots_bits):
                        cached[slots[bit]] = tokens
                else:
                    cached[slots[slots_bits.bit_length() - 1]] = tokens
        return cached

    def holds(self, instance: str, rank: int, key: int) -> bool:
        """Whether a block lies in any tier of a rank."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return False
        slots = self._residency.of(key)
        return any(slots & tier.bit for tier in engine.tiers.values())

    def beyond(self, prompt: Prompt, tiers: Sequence[str], main: str = DEFAULT_TIER) -> slower_tiers.Found:
        """What lies in slower tiers behind the prefix that `main` has, in tokens, by (instance, rank) and tier.

        Each block counts for the first of the `tiers` that has it; at the first block that none of them has it
        ends, and always before the prompt's last token, which is computed. A rank with nothing there is left out.
        """

        def keys_of(block_size: int, lookahead: int) -> Keys:
            whole = max(0, len(prompt.token_ids) - 1) // block_size
            return self._hasher.prompt_keys(prompt, block_size, lookahead)[:whole]

        return slower_tiers.beyond(self._engines, self._residency, keys_of, tiers, main)

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

    def lookahead(self, instance: str, rank: int) -> int:
        """Tokens behind each block that count for it, learned from the events; 0 for most engines, and until the first."""
        engine = self._engines.get((instance, rank))
        return engine.lookahead if engine is not None else 0

    def keys(self, prompt: Prompt, instance: str, rank: int, usual_size: int) -> list[int]:
        """The keys that rank's blocks of a prompt have; `usual_size`: of a block (tokens), until the rank's own is known.

        Made once for each prompt; not to be changed.
        """
        engine = self._engines.get((instance, rank))
        if engine is None:
            return self._hasher.of_prompt(prompt, usual_size)
        return self._hasher.of_prompt(prompt, engine.block_size, engine.lookahead)

    def uncounted(self, instance: str, rank: int) -> Mapping[str, Reason]:
        """The cache groups of a rank whose blocks are not counted, in words, and why.

        CACHE_GROUP: they hold a part of a prefix only (sliding windows, states), or hold what the counted group does;
        CACHE_KIND: nothing is known about their kind.
        """
        return self._uncounted.get((instance, rank), {})

    def upper_bound(self, instance: str, rank: int) -> bool:
        """Whether `match` tells at most, not exactly, what would be reused: a hybrid model reuses what all groups have."""
        return (instance, rank) in self._uncounted

    # ---- going from one process to the next ---------------------------------------------------------------

    def export(self, instance: str, rank: int) -> ExportedRank | None:
        """`exporting`, without pauses."""
        return at_once(self.exporting(instance, rank))

    def exporting(self, instance: str, rank: int) -> Generator[None, None, ExportedRank | None]:
        """All that is known of one rank; None if nothing is. Its keys belong to the secret.

        In slices between which the rest of the index may change, but not this rank; None if it was forgotten.
        """
        engine = self._engines.get((instance, rank))
        exported = (yield from copied(engine)) if engine is not None else None
        if exported is None or self._engines.get((instance, rank)) is not engine:
            return None
        exported.uncounted = dict(self.uncounted(instance, rank))
        return exported

    def load(self, instance: str, rank: int, exported: ExportedRank) -> None:
        """`loading`, without pauses."""
        at_once(self.loading(instance, rank, exported))

    def loading(self, instance: str, rank: int, exported: ExportedRank) -> Generator[None, None, bool]:
        """Forget what is known of a rank, and know what was exported with the same secret.

        In slices between which the rest of the index may change, but not this rank. Its blocks count from the first
        slice on; False if somebody forgot or cleared them all the same.
        """
        self.retire(instance, rank)
        engine = self._engines[instance, rank] = EngineCache(exported.block_size, exported.lookahead)
        engine.group_idx = exported.group_idx

        def whole() -> bool:
            return self._engines.get((instance, rank)) is engine and not engine.clears

        if exported.uncounted:
            self._uncounted[instance, rank] = dict(exported.uncounted)
        for told in exported.tiers:
            tier = engine.tiers[told.name] = self._new_tier(Slot(instance, rank, told.name))
            for start in range(0, len(told.hashes), SLICE_BLOCKS):
                piece = slice(start, start + SLICE_BLOCKS)
                self._blocks.load(tier, told.hashes[piece], told.keys[piece])
                yield
                if not whole():
                    return False
            tier.copies = dict(told.copies)
            tier.again = sum(told.copies.values())
        for number, orphan in enumerate(exported.orphans):
            for name in orphan.copies.keys() - engine.tiers.keys():
                engine.tiers[name] = self._new_tier(Slot(instance, rank, name))
            engine.add_orphan(orphan.engine_hash, orphan.parent, orphan.digest, dict(orphan.copies))
            if number % SLICE_BLOCKS == SLICE_BLOCKS - 1:
                yield
                if not whole():
                    return False
        return True

    # ---- slots --------------------------------------------------------------------------------------------

    def _new_tier(self, slot: Slot) -> Tier:
        self._known_slots = None
        return self._slots.new_tier(slot)

    def _bury(self, tier: Tier) -> None:
        self._known_slots = None
        self._slots.bury(tier)

    def _tiers(self) -> Iterator[tuple[Slot, Tier]]:
        for (instance, rank), engine in self._engines.items():
            for name, tier in engine.tiers.items():
                yield Slot(instance, rank, name), tier

    def _live_slots(self) -> dict[Slot, int]:
        """0 for every live slot; and `_known_shapes`: block size and lookahead, with the slots that have both."""
        if self._known_slots is None:
            self._known_slots = {slot: 0 for slot, _ in self._tiers()}
            shapes: dict[tuple[int, int], int] = {}
            for engine in self._engines.values():
                shape = engine.block_size, engine.lookahead
                for tier in engine.tiers.values():
                    shapes[shape] = shapes.get(shape, 0) | tier.bit
            self._known_shapes = [(*shape, among) for shape, among in shapes.items()]
        return self._known_slots

    def _counts_copies(self, instance: str, rank: int, event: BlockStored) -> bool:
        if event.is_report:
            self._reports[instance, rank] = True
            return False
        return self._count_copies and (not self._reports or self._reports.get((instance, rank), True))


def total(changes: Sequence[Change]) -> Change:
    """What several events did together."""
    dropped: dict[Reason, int] = {}
    for change in changes:
        for reason, count in change.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return Change(sum(c.applied for c in changes), sum(c.orphans for c in changes), dropped)


def _is_single(event: BlockStored, like: BlockStored) -> bool:
    """One whole block, of the same kind as another event's, with nothing special about it."""
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
    told = event.lookahead_token_ids
    return told is not None and len(told) == 1 and len(told[0]) == like.lookahead
