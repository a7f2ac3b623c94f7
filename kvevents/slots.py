"""A slot's bit is given to another slot only when no block has it any more.

A tier that is cleared or retired is buried: its bit is in no answer from then on, and its memory is given
back slice by slice.
"""

from typing import Any, NamedTuple

from kvevents.engine_cache import Tier
from kvevents.residency import Residency


class Slot(NamedTuple):
    """A place where blocks lie: one tier of one rank of an instance."""

    instance: str
    rank: int
    tier: str


class Slots:
    """Gives each slot a bit, and takes it back."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self.by_bit: list[Slot] = []
        """The last owner of each bit, by the bit's number."""
        self._free: list[int] = []
        self._buried: list[Tier] = []
        self._waste: list[dict[Any, Any]] = []

    @property
    def to_sweep(self) -> bool:
        """Whether memory of buried tiers is left to give back."""
        return bool(self._buried or self._waste)

    def new_tier(self, slot: Slot) -> Tier:
        """An empty tier for that slot, with a bit of its own."""
        if self._free:
            number = self._free.pop()
            self.by_bit[number] = slot
        else:
            number = len(self.by_bit)
            self.by_bit.append(slot)
        return Tier(1 << number)

    def bury(self, tier: Tier) -> None:
        """The tier is not asked for any more: give its bit and its memory back, later."""
        self._buried.append(tier)
        self._waste += (tier.copies, tier.names)

    def throw_away(self, *waste: dict[Any, Any]) -> None:
        """Give back the memory of these dictionaries later: they may be large."""
        self._waste += waste

    def sweep(self, blocks: int) -> bool:
        """Give back the memory of up to `blocks` buried blocks. Returns False once none is left."""
        while blocks > 0 and self._buried:
            tier = self._buried[-1]
            keys: list[int] = []
            while tier.shards and len(keys) < blocks:
                shard = tier.shards[-1]
                keys += [shard.popitem()[1] for _ in range(min(len(shard), blocks - len(keys)))]
                if not shard:
                    tier.shards.pop()
            blocks -= len(keys) + 1
            self._residency.take(list(set(keys)) if tier.names else keys, tier.bit)
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
        return self.to_sweep or self._residency.move()
