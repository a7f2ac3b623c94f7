"""A set of slots is stored once, under one number, as long as any block lies in exactly these slots.

Blocks are shared in few ways (by one slot, by the two of a pair, by all that know a system prompt), so a
block needs four bytes for its set however many slots there are.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]

# A set with more members than this is taken apart faster by numpy.
_FEW_BITS = 8


class SlotSets:
    """Sets of slots as integers with a bit for each slot; number 0 is the empty set."""

    def __init__(self) -> None:
        self.members = [0]
        """The set of each number. Bit n is set if slot n is in the set."""
        self._uses = [0]
        self._number_of = {0: 0}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._number_of) - 1

    def toggled(self, number: int, bit: int, blocks: int) -> int:
        """The number for `blocks` blocks that had `number`, after `bit` was put into their set or taken out
        of it.
        """
        after = self.members[number] ^ bit
        found = self._number_of.get(after)
        if found is None:
            found = self._free.pop() if self._free else len(self.members)
            if found == len(self.members):
                self.members.append(after)
                self._uses.append(0)
            else:
                self.members[found] = after
            self._number_of[after] = found
        self._uses[found] += blocks
        if number:
            self._uses[number] -= blocks
            if not self._uses[number]:
                del self._number_of[self.members[number]]
                self._free.append(number)
        return found

    def changed(
        self, numbers: Numbers, bit: int, *, into: bool
    ) -> tuple[Numbers, npt.NDArray[np.bool_] | None]:
        """The numbers of blocks that are put into the slot `bit`, or taken out; and for which of them nothing
        changes (None: for none).
        """
        first = numbers.item(0)
        if not np.count_nonzero(numbers != first):  # at half of the cost of all()
            if bool(self.members[first] & bit) is into:
                return numbers, np.ones(len(numbers), np.bool_)
            after = numbers.copy()
            after.fill(self.toggled(first, bit, len(numbers)))  # at half of the cost of np.full
            return after, None
        # Not np.unique: its first call imports numpy.ma, a pause of 20 ms.
        ordered = np.sort(numbers)
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        different, counts = ordered[ends], np.diff(ends, prepend=-1)
        same = np.array([bool(self.members[number] & bit) is into for number in different.tolist()])
        number_after = np.array(
            [
                number if stays else self.toggled(number, bit, count)
                for number, stays, count in zip(
                    different.tolist(), same.tolist(), counts.tolist(), strict=True
                )
            ],
            np.uint32,
        )
        which = np.searchsorted(different, numbers)
        return number_after[which], same[which] if same.any() else None


def bits(members: int) -> Iterator[int]:
    """The bit numbers in a set, lowest first."""
    if members.bit_count() > _FEW_BITS:
        octets = np.frombuffer(members.to_bytes((members.bit_length() + 7) // 8, "little"), np.uint8)
        yield from np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist()
        return
    while members:
        lowest = members & -members
        yield lowest.bit_length() - 1
        members ^= lowest
