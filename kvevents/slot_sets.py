"""Each set of slots that some block lies in has one number as long as a block has it, and is stored once.

Blocks are shared in few ways - by one slot, by the two of a pair, by all that know a system prompt - so a
block costs four bytes for its set however many slots there are.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]

# Above so many members numpy takes a set apart faster.
_FEW_BITS = 8


class SlotSets:
    """Sets of bit numbers as integers; number 0 is the empty set."""

    def __init__(self) -> None:
        self.members = [0]
        """The set of each number: bit n is set if slot n is in it."""
        self._uses = [0]
        self._number_of = {0: 0}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._number_of) - 1

    def toggled(self, number: int, bit: int, blocks: int) -> int:
        """The number for so many blocks that had `number`, now with `bit` in their set, or out of it."""
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
        """The numbers of blocks put into the slot `bit`, or taken out; and where that changed nothing, if
        anywhere.
        """
        first = numbers.item(0)
        if not np.count_nonzero(numbers != first):  # half of what all() costs
            if bool(self.members[first] & bit) is into:
                return numbers, np.ones(len(numbers), np.bool_)
            after = numbers.copy()
            after.fill(self.toggled(first, bit, len(numbers)))  # half of what np.full costs
            return after, None
        # np.unique would do, but its first call imports numpy.ma: a pause of 20 ms.
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
