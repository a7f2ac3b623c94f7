"""Which slots each block lies in, for all instances together, by the keys that they share.

A key leads to the number of a set of slots (`kvevents.key_table`), and the number to the set
(`kvevents.slot_sets`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kvevents.block_keys import Keys
from kvevents.key_table import KeyTable, Numbers
from kvevents.slot_sets import SlotSets

# Blocks of a prompt that are looked up first: most prompts have no cached prefix, or a short one.
_FIRST_LOOK = 16
# So few keys are looked up and updated one by one, which costs less than numpy's calls.
_FEW_KEYS = 12


class Residency:
    """Sets of slots, as integers with a bit for each slot, by block key."""

    def __init__(self) -> None:
        self._table = KeyTable()
        self._sets = SlotSets()

    def __len__(self) -> int:
        """The number of blocks that lie in any slot."""
        return len(self._table)

    def of(self, key: int) -> int:
        """The slots that a block lies in, as bits."""
        return self._sets.members[self._table.get(key)]

    @property
    def different(self) -> int:
        """The number of different sets of slots."""
        return len(self._sets)

    def move(self) -> bool:
        """Do a part of the work that growing has left to do. Returns False once nothing is left."""
        return self._table.move()

    def longest(self, keys: Keys, among: int) -> Iterator[tuple[int, int]]:
        """Sets of slots, each with the number of leading blocks that lie in all of its slots.

        A slot that the first block does not lie in is in none of the sets.
        """
        total = len(keys)
        if total <= _FEW_KEYS:
            yield from self._longest_of_few(keys.tolist(), among)
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

    def _longest_of_few(self, keys: list[int], among: int) -> Iterator[tuple[int, int]]:
        there = among if keys else 0
        for at, key in enumerate(keys):
            still = there & self.of(key)
            if still != there:
                if at:
                    yield there ^ still, at
                there = still
                if not there:
                    return
        if there:
            yield there, len(keys)

    def sets_of(self, keys: Keys) -> tuple[list[int], npt.NDArray[np.int64]]:
        """The different sets of slots that the blocks lie in, and for each block the place of its set in that
        list.
        """
        numbers = self._table.get_many(keys)
        ordered = np.sort(numbers)  # not np.unique: its first call imports numpy.ma, a pause of 20 ms
        different = ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
        return [self._sets.members[n] for n in different.tolist()], np.searchsorted(different, numbers)

    def put_one(self, key: int, bit: int) -> bool:
        """Put a block into a slot. Returns False if it lay there already."""
        before = self._table.get(key)
        if self._sets.members[before] & bit:
            return False
        self._table.set(key, self._sets.toggled(before, bit, 1))
        return True

    def put(self, keys: Keys, bit: int) -> list[int]:
        """Put different blocks into a slot. Returns the keys of those that lay there already."""
        sets = self._sets
        if not len(keys):
            return []
        same = None

        def change(numbers: Numbers) -> Numbers:
            nonlocal same
            after, same = sets.changed(numbers, bit, into=True)
            return after

        self._table.update_many(keys, change)
        return [] if same is None else keys[same].tolist()

    def take(self, keys: Sequence[int], bit: int) -> None:
        """Take different blocks out of a slot; a block that is not in it stays as it is."""
        table, sets = self._table, self._sets
        if len(keys) <= _FEW_KEYS:
            for key in keys:
                before = table.get(key)
                if sets.members[before] & bit:
                    table.set(key, sets.toggled(before, bit, 1))
            return
        array = np.array(keys, np.uint64)
        table.update_many(array, lambda numbers: sets.changed(numbers, bit, into=False)[0], adds=False)
