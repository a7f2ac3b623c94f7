"""The cached tokens of a slot are those of the longest prefix all of whose blocks lie in it now; nothing is
guessed.

Engine hashes are names within one (instance, rank); blocks are known by their keys, which all instances
share. One table has, for each key, the number of the set of slots that the block lies in; dictionaries, some
for each tier of an engine, lead from hash to key. A block whose parent is not known waits, and counts once
the parent has come; the number of those that wait is bounded.

What is cleared or retired is gone from every answer at once, because answers are made of the bits of live
slots alone. `sweep` gives its memory back slice by slice. A slot's bit is used for another slot only when no
block has it any more.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

from kvevents import slower_tiers
from kvevents.block_keys import BlockHasher, Keys, Prompt
from kvevents.block_store import FEW_BLOCKS, BlockStore, is_single
from kvevents.change import Change, total
from kvevents.contents import UnkeyableRun
from kvevents.engine_cache import DEFAULT_TIER, EngineCache, Tier, note_uncounted, why_uncounted
from kvevents.events import BlockRemoved, BlockStored, Reason
from kvevents.exported import ExportedRank, at_once, copy_slices, load_slices
from kvevents.reports import Reports
from kvevents.residency import Residency
from kvevents.slot_sets import bits
from kvevents.slots import Slot, Slots

MAX_ORPHANS = 16_384
"""The most blocks of one rank that wait for a parent: two of the longest prompts in common use, in blocks of
16 tokens."""

MAX_BLOCKS = 2_000_000
"""The most blocks of one rank in the engine's own tier, counted by hash; all other tiers together have half
of that.

They are 32 million tokens in blocks of 16, and take 300 to 400 MB here. Further blocks are dropped, so that a
source that never removes any cannot fill the memory."""

MAX_TIERS = 8
"""The most tiers of one rank; vLLM has a GPU, a CPU and one or two kinds of storage."""

SWEEP_BLOCKS = 512
"""Blocks that one slice of sweeping gives back, in much less than half a millisecond."""

Removals = Callable[[str, int, Sequence[int] | None], None]
"""Called with an instance, a rank, and the keys that left one of its tiers; None: all blocks of the rank are
gone."""


class PrefixIndex:
    """Which blocks lie in which slot. Synchronous. Every call leaves the index consistent, and no event makes
    it raise.
    """

    def __init__(
        self,
        hasher: BlockHasher | None = None,
        *,
        count_copies: bool = True,
        max_orphans: int = MAX_ORPHANS,
        max_blocks: int = MAX_BLOCKS,
    ) -> None:
        """`max_orphans`, `max_blocks`: for each (instance, rank).

        `count_copies`: True if each physical copy of a block is stored and removed by an event of its own, as
        with every vLLM; also right for an engine that announces only the first copy and the last removal.
        False: the first event of either kind decides, for engines whose events do not come in pairs.
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
        self._reports = Reports()
        self._slots = Slots(self._residency)
        self._known_slots: dict[Slot, int] | None = None
        self._known_shapes: list[tuple[int, int, int]] = []
        self._on_removed: Removals | None = None

    def listen(self, on_removed: Removals) -> None:
        """Call `on_removed` with the keys that left a tier, and with None when a rank was cleared or retired.

        The call comes in the middle of that change: `on_removed` MUST be quick and MUST NOT raise.
        """
        self._on_removed = on_removed

    @property
    def hasher(self) -> BlockHasher:
        """The hasher whose keys this index has."""
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
        counts = not self._reports.may_repeat(instance, rank, event) and self._count_copies
        applied, orphans = self._blocks.store(engine, name, event, digests, counts=counts)
        self._forget_copies(instance, rank, name, tier)
        evicted = engine.evict_orphans(self._max_orphans)
        return Change(applied, orphans, {Reason.ORPHAN_EVICTED: evicted} if evicted else {})

    def store_all(self, instance: str, rank: int, events: Sequence[BlockStored]) -> Change:
        """Does what `store` does, for each of the events in order. For single blocks of many sequences that
        are being decoded it costs half as much.
        """
        if len(events) >= FEW_BLOCKS and self._store_singles(instance, rank, events):
            return Change(len(events), 0, {})
        return total([self.store(instance, rank, event) for event in events])

    def _store_singles(self, instance: str, rank: int, events: Sequence[BlockStored]) -> bool:
        """Store single blocks that are alike in all but their content. Returns False, and does nothing, if
        they are not.
        """
        engine, first = self._engines.get((instance, rank)), events[0]
        if (
            engine is None
            or first.block_size != engine.block_size
            or why_uncounted(first.kv_cache_spec_kind) is not None
            or engine.refusal(first) is not None
            or not all(is_single(event, first) for event in events)
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
        # Some connectors never announce what leaves their tier: its blocks must not take the place of blocks
        # of the engine's own tier.
        main = tier == DEFAULT_TIER
        return engine.held(main=main) + blocks <= (self._max_blocks if main else self._max_blocks // 2)

    def _forget_copies(self, instance: str, rank: int, name: str, tier: Tier) -> None:
        if self._capacity:
            tier.forget_copies_above(self._capacity.get((instance, rank, name), sys.maxsize))

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """One copy of each named block has left a tier; a block that waited for its parent waits no
        longer.
        """
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
        """Nothing is cached on that rank any more; its slots stay. Returns the number of blocks that went."""
        engine = self._engines.get((instance, rank))
        self._reports.cleared(instance, rank)
        if engine is None:
            return 0
        blocks = 0
        engine.clears += 1
        for name, tier in engine.tiers.items():
            if not tier.hashes:
                continue  # there is nothing to sweep, and thousands of resets may come
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
        """Forget all that is known of an instance, or of one rank of it: slots, block size, waiting blocks.
        Returns the number of blocks that went.
        """
        blocks = 0
        for at in [at for at in self._engines if at[0] == instance and rank in {None, at[1]}]:
            engine = self._engines.pop(at)
            for tier in engine.tiers.values():
                blocks += tier.blocks
                self._bury(tier)
            self._slots.throw_away(engine.orphans, engine.children)
            if self._on_removed is not None:
                self._on_removed(*at, None)
        for at in [at for at in self._uncounted if at[0] == instance and rank in {None, at[1]}]:
            del self._uncounted[at]
        self._reports.retire(instance, rank)
        self._known_slots = None
        return blocks

    def sweep(self, blocks: int = SWEEP_BLOCKS) -> bool:
        """Give back the memory of up to `blocks` blocks that were cleared or retired. Returns False once none
        is left.

        Storing sweeps twice as many blocks as it stores, so memory stays bounded without a call. An owner
        that wants the memory back soon calls this until it returns False, and lets other tasks run in
        between.
        """
        return self._slots.sweep(blocks)

    def set_capacity(self, instance: str, rank: int, blocks: int | None, tier: str = DEFAULT_TIER) -> None:
        """Set how many physical blocks a tier has (the engine's num_gpu_blocks); None: not known.

        If more copies are counted than fit, some of them were only reported; the newest are forgotten first.
        The capacity stays after `retire`.
        """
        if blocks is None:
            self._capacity.pop((instance, rank, tier), None)
        else:
            self._capacity[instance, rank, tier] = blocks

    def expect_reports(self, instance: str, rank: int) -> None:
        """The engine is asked for a full report, so it will announce blocks again that it has had for long.

        From now on, until the rank is cleared or retired, a known block that is announced again is no further
        copy. Once the engine is found to mark its reports (`REPORT_SESSION`), that is so for marked events
        only.
        """
        self._reports.expect(instance, rank)

    def capacity(self, instance: str, rank: int, tier: str = DEFAULT_TIER) -> int | None:
        """The capacity that `set_capacity` set last; None: not known."""
        return self._capacity.get((instance, rank, tier))

    # ---- questions ----------------------------------------------------------------------------------------

    def match(self, prompt: Prompt) -> dict[Slot, int]:
        """The tokens of the prompt's longest cached prefix, for every live slot (0 included).

        A whole multiple of the instance's block size; up to the full length of the prompt, although an engine
        computes at least the last token anew. Where blocks count with the tokens behind them (`lookahead`),
        those of the prompt must be the same.
        """
        cached = self._live_slots().copy()
        for slot, tokens in self._found(prompt):
            cached[slot] = tokens
        return cached

    def match_tier(self, prompt: Prompt, tier: str = DEFAULT_TIER) -> dict[tuple[str, int], int]:
        """As `match`, of one tier: by (instance, rank), where there is any."""
        self._live_slots()
        return {(slot.instance, slot.rank): n for slot, n in self._found(prompt) if slot.tier == tier}

    def _found(self, prompt: Prompt) -> Iterator[tuple[Slot, int]]:
        """The slots that have something of a prompt, and how many tokens; `_known_shapes` MUST be set."""
        slots = self._slots.by_bit
        for block_size, lookahead, among in self._known_shapes:
            keys = self._hasher.prompt_keys(prompt, block_size, lookahead)
            for slots_bits, blocks in self._residency.longest(keys, among):
                tokens = blocks * block_size
                if slots_bits & (slots_bits - 1):
                    for bit in bits(slots_bits):
                        yield slots[bit], tokens
                else:
                    yield slots[slots_bits.bit_length() - 1], tokens

    def holds(self, instance: str, rank: int, key: int) -> bool:
        """Whether the block with that key lies in any tier of a rank."""
        engine = self._engines.get((instance, rank))
        if engine is None:
            return False
        slots = self._residency.of(key)
        return any(slots & tier.bit for tier in engine.tiers.values())

    def match_slower(
        self, prompt: Prompt, tiers: Sequence[str], main: str = DEFAULT_TIER
    ) -> slower_tiers.Found:
        """How many tokens of a prompt lie in slower tiers behind the prefix that `main` has, by rank and
        tier.

        A rank with nothing there is left out. Each block counts for the first of the `tiers` that has it.
        Counting ends at the first block that none of them has, and before the prompt's last token, which is
        always computed.
        """

        def keys_of(block_size: int, lookahead: int) -> Keys:
            whole = max(0, len(prompt.token_ids) - 1) // block_size
            return self._hasher.prompt_keys(prompt, block_size, lookahead)[:whole]

        return slower_tiers.match(self._engines, self._residency, keys_of, tiers, main)

    def blocks(self) -> dict[Slot, int]:
        """The number of different blocks in each live slot; copies of a block count once."""
        return {slot: tier.blocks for slot, tier in self._tiers()}

    def orphans(self, instance: str, rank: int) -> int:
        """The number of blocks of that rank that wait for a parent."""
        engine = self._engines.get((instance, rank))
        return len(engine.orphans) if engine is not None else 0

    def block_size(self, instance: str, rank: int) -> int | None:
        """The tokens of a block, learned from events; None before the first."""
        engine = self._engines.get((instance, rank))
        return engine.block_size if engine is not None else None

    def lookahead(self, instance: str, rank: int) -> int:
        """The number of tokens behind a block that its engine's hash covers, learned from events; 0 before
        the first, and for most engines.
        """
        engine = self._engines.get((instance, rank))
        return engine.lookahead if engine is not None else 0

    def shape(self, at: tuple[str, int], usual_size: int) -> tuple[int, int]:
        """The block size of an instance's rank, as `usual_size` of `keys` has it, and its lookahead."""
        engine = self._engines.get(at)
        return (usual_size, 0) if engine is None else (engine.block_size, engine.lookahead)

    def keys(self, prompt: Prompt, instance: str, rank: int, usual_size: int) -> Sequence[int]:
        """The keys of a prompt's blocks on that rank, read where they lie. Made once for each prompt.

        `usual_size`: the tokens of a block to assume until the rank's own size is known.
        """
        engine = self._engines.get((instance, rank))
        if engine is None:
            return self._hasher.prompt_keys(prompt, usual_size).data
        return self._hasher.prompt_keys(prompt, engine.block_size, engine.lookahead).data

    def uncounted(self, instance: str, rank: int) -> Mapping[str, Reason]:
        """The cache groups of a rank whose blocks are not counted, in words, and why: CACHE_GROUP or
        CACHE_KIND.
        """
        return self._uncounted.get((instance, rank), {})

    def upper_bound(self, instance: str, rank: int) -> bool:
        """Whether the rank may reuse less than `match` says: a hybrid model reuses what all of its cache
        groups have, and only one of them is counted.
        """
        return (instance, rank) in self._uncounted

    # ---- going from one process to the next ---------------------------------------------------------------

    def export(self, instance: str, rank: int) -> ExportedRank | None:
        """`exporting`, without pauses."""
        return at_once(self.exporting(instance, rank))

    def exporting(self, instance: str, rank: int) -> Generator[None, None, ExportedRank | None]:
        """All that is known of one rank; None if nothing is known, or if the rank was forgotten or cleared
        meanwhile.

        It is made in slices. Between them the rest of the index may change, but this rank MUST NOT. The keys
        can only be used by an index with the same secret.
        """
        engine = self._engines.get((instance, rank))
        exported = (yield from copy_slices(engine)) if engine is not None else None
        if exported is None or self._engines.get((instance, rank)) is not engine:
            return None
        exported.uncounted = dict(self.uncounted(instance, rank))
        return exported

    def load(self, instance: str, rank: int, exported: ExportedRank) -> None:
        """`loading`, without pauses."""
        at_once(self.loading(instance, rank, exported))

    def loading(self, instance: str, rank: int, exported: ExportedRank) -> Generator[None, None, bool]:
        """Replace what is known of a rank by what an index with the same secret has exported.

        It is loaded in slices. Between them the rest of the index may change, but this rank MUST NOT. Blocks
        count from the first slice on. Returns False if the rank was retired or cleared meanwhile.
        """
        self.retire(instance, rank)
        engine = self._engines[instance, rank] = EngineCache(exported.block_size, exported.lookahead)
        if exported.uncounted:
            self._uncounted[instance, rank] = dict(exported.uncounted)
        steps = load_slices(
            exported,
            engine,
            new_tier=lambda name: self._new_tier(Slot(instance, rank, name)),
            put=self._blocks.load,
            is_current=lambda: self._engines.get((instance, rank)) is engine,
        )
        return (yield from steps)

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
        """Every live slot, with 0. Sets `_known_shapes` as well: each pair of block size and lookahead, with
        the slots that have it.
        """
        if self._known_slots is None:
            self._known_slots = {slot: 0 for slot, _ in self._tiers()}
            shapes: dict[tuple[int, int], int] = {}
            for engine in self._engines.values():
                shape = engine.block_size, engine.lookahead
                for tier in engine.tiers.values():
                    shapes[shape] = shapes.get(shape, 0) | tier.bit
            self._known_shapes = [(*shape, among) for shape, among in shapes.items()]
        return self._known_slots
