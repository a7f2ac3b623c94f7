"""An index whose every answer is checked: each block of an event was applied, waits, or was counted as
dropped."""

from collections.abc import Sequence

from kvevents import BlockRemoved, BlockStored, Change, PrefixIndex, Reason


class LostCountError(Exception):
    """Blocks of an event that nobody counted."""


class WatchedIndex:
    """Stands between an applier and the index."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self.events = 0
        """How many changes were asked for."""

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        change = self._index.store(instance, rank, event)
        self._check(event, change, max(1, len(event.block_hashes)))
        return change

    def store_all(self, instance: str, rank: int, events: Sequence[BlockStored]) -> Change:
        change = self._index.store_all(instance, rank, events)
        self._check(events[0], change, sum(max(1, len(event.block_hashes)) for event in events))
        return change

    def orphans(self, instance: str, rank: int) -> int:
        return self._index.orphans(instance, rank)

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        change = self._index.remove(instance, rank, event)
        self._check(event, change, max(len(event.block_hashes), change.dropped.get(Reason.CACHE_GROUP, 0)))
        return change

    def clear(self, instance: str, rank: int) -> int:
        self.events += 1
        return self._index.clear(instance, rank)

    def retire(self, instance: str, rank: int | None = None) -> int:
        return self._index.retire(instance, rank)

    def sweep(self) -> bool:
        return self._index.sweep()

    def _check(self, event: BlockStored | BlockRemoved, change: Change, blocks: int) -> None:
        self.events += 1
        dropped = sum(n for reason, n in change.dropped.items() if reason is not Reason.ORPHAN_EVICTED)
        if change.applied + change.orphans + dropped != blocks:
            raise LostCountError(f"{blocks} blocks of a {type(event).__name__} became {change}")


def contradiction(index: PrefixIndex, instance: str, rank: int) -> str | None:
    """Where the index contradicts itself about a rank, in words; None if nowhere."""
    exported = index.export(instance, rank)
    if exported is None:
        return None
    blocks = {
        slot.tier: n for slot, n in index.blocks().items() if (slot.instance, slot.rank) == (instance, rank)
    }
    for tier in exported.tiers:
        keys = set(tier.keys.tolist())
        if len(keys) != blocks[tier.name]:
            return f"{len(keys)} keys and {blocks[tier.name]} blocks in {tier.name}"
        if len(set(tier.hashes)) != len(tier.hashes):
            return f"a hash is twice in {tier.name}"
        if not tier.copies.keys() <= set(tier.hashes) or any(n < 1 for n in tier.copies.values()):
            return f"copies of nothing in {tier.name}"
    if len(exported.orphans) != index.orphans(instance, rank):
        return "blocks that wait are counted wrongly"
    return None
