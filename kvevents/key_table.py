"""A dictionary from block keys to small numbers grows without a pause.

A Python dictionary of millions of keys is rehashed as a whole when it is full: a tenth of a second in which
nothing else runs. This one is two arrays, of keys and of numbers, with linear probing; when it is too full a
new pair of arrays is begun, and each later update moves a slice into it. A few numpy calls look up or change
many keys, plain Python single ones. An entry takes 24 to 80 bytes and no object of its own, more only after
most entries were taken out. At least half of the places are empty, so that most keys are found at the first
place: that makes a block cost a tenth less.

Whoever chooses what is hashed cannot choose the bits of a key (`kvevents.block_keys`), so its low bits spread
the keys evenly.
"""

import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kvevents.block_keys import Keys

Numbers = npt.NDArray[np.uint32]

_MIN_PLACES = 1 << 12
# Places that are moved in one slice.
_SLICE = 1 << 12
# Places whose memory is given back in one slice: whole pages, in less than half a millisecond.
_RELEASED = 64 * _SLICE
# Places that are moved for each key that is added; with 20, a move to a table of a quarter of the size would
# end just in time.
_PLACES_PER_KEY = 32
# Up to this many keys whose first place is taken are followed one by one, which costs less than more numpy
# calls.
_MAX_STRAGGLERS = 24
# A larger share of places in use makes probing slow.
_MAX_USED = 0.5
# The largest share of live keys that a new pair of arrays begins with.
_MAX_USED_AT_FIRST = 0.3


class _Pair:
    """Two arrays of places: keys (0: never used) and their numbers (0: the key is not in the table)."""

    __slots__ = ("key", "key_at", "memory", "number", "number_at", "places", "used")

    def __init__(self, places: int) -> None:
        # The system provides pages of zeros when they are touched, and takes them back one by one.
        self.memory = mmap.mmap(-1, 12 * places, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.places = places
        self.key: Keys = np.frombuffer(self.memory, np.uint64, places)
        self.number: Numbers = np.frombuffer(self.memory, np.uint32, places, 8 * places)
        self.key_at = memoryview(self.memory)[: 8 * places].cast("Q")
        self.number_at = memoryview(self.memory)[8 * places :].cast("I")
        self.used = 0

    def find(self, key: int) -> int:
        """The place of a key, or the place where it would be put."""
        mask, key_at = self.places - 1, self.key_at
        place = key & mask
        while (there := key_at[place]) and there != key:
            place = (place + 1) & mask
        return place

    def find_many(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The places of the keys; for a key that is not here, an empty place."""
        last = self.places - 1
        at = (keys & np.uint64(last)).view(np.int64)
        there = self.key[at]
        on = ((there != keys) & (there != 0)).nonzero()[0]
        while len(on) > _MAX_STRAGGLERS:
            at[on] = (at[on] + 1) & last
            there = self.key[at[on]]
            on = on[(there != keys[on]) & (there != 0)]
        if len(on):
            key_at = self.key_at
            ends = at[on].tolist()
            for straggler, (key, place) in enumerate(zip(keys[on].tolist(), ends, strict=True)):
                while (there := key_at[place]) and there != key:
                    place = (place + 1) & last  # noqa: PLW2901  # the place to look at next
                ends[straggler] = place
            at[on] = ends
        return at

    def claim_many(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The places of the keys, which MUST be different; new keys are put in."""
        at = self.find_many(keys)
        new = (self.key[at] == 0).nonzero()[0]
        self.used += len(new)
        if len(new) == len(keys):
            self.key[at] = keys  # where two keys want the same place, the last gets it
            new = (self.key[at] != keys).nonzero()[0]
            if len(new):
                at[new] = self.find_many(keys[new])
        while len(new):
            wanted = keys[new]
            self.key[at[new]] = wanted
            new = new[self.key[at[new]] != wanted]
            if len(new):
                at[new] = self.find_many(keys[new])
        return at


class KeyTable:
    """Numbers from 1 to 2**32 - 1 for keys from 1 to 2**64 - 1. The number 0 means that the key is not in the
    table.
    """

    def __init__(self) -> None:
        self._now = _Pair(_MIN_PLACES)
        self._limit = int(_MAX_USED * _MIN_PLACES)
        self._before: _Pair | None = None
        self._moved = 0  # how many places of `_before` have been moved
        self._owed = 0  # how many places are due to be moved since the last slice
        # Pairs that are empty now, each with the number of its places whose memory was given back.
        self._leaving: list[tuple[_Pair, int]] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    @property
    def resident_bytes(self) -> int:
        """The memory of all places, used or not."""
        pairs = [self._now, *(pair for pair, _ in self._leaving)]
        return sum(12 * pair.places for pair in pairs) + (12 * self._before.places if self._before else 0)

    @property
    def places_to_move(self) -> int:
        """The number of places that the current move has not reached."""
        return self._before.places - self._moved if self._before is not None else 0

    @property
    def moving(self) -> bool:
        """Whether `move` has something to do."""
        return self._before is not None or bool(self._leaving)

    def get(self, key: int) -> int:
        """The number of a key; 0 if it is not in the table."""
        found = self._now.number_at[self._now.find(key)]
        if not found and self._before is not None:
            found = self._before.number_at[self._before.find(key)]
        return found

    def get_many(self, keys: Keys) -> Numbers:
        """The numbers of many keys, as `get`."""
        found: Numbers = self._now.number[self._now.find_many(keys)]
        if self._before is not None and not found.all():
            found = np.maximum(found, self._before.number[self._before.find_many(keys)])
        return found

    def set(self, key: int, number: int) -> None:
        """Give a key a number; 0 takes the key out."""
        if number and (self._before is not None or self._leaving or self._now.used >= self._limit):
            self._make_room(1)
        pair = self._now
        place = pair.find(key)
        held = pair.number_at[place]
        if not held and self._before is not None:
            old = self._before.find(key)
            held = self._before.number_at[old]
            if held:
                self._before.number_at[old] = 0
        if number:
            if not held:
                self._live += 1
            if not pair.key_at[place]:
                pair.key_at[place] = key
                pair.used += 1
            pair.number_at[place] = number
        elif held:
            self._live -= 1
            pair.number_at[place] = 0

    def update_many(self, keys: Keys, change: Callable[[Numbers], Numbers], *, adds: bool = True) -> None:
        """Give many different keys the numbers that `change` makes of those they have.

        `adds`: False promises that no key that is not in the table gets a number.
        """
        if adds:
            self._make_room(len(keys))
        pair, before = self._now, self._before
        # A key that is still in the old pair moves with this update, so it needs a place.
        at = pair.claim_many(keys) if adds or before is not None else pair.find_many(keys)
        numbers: Numbers = pair.number[at]
        if before is not None:
            old = before.find_many(keys)
            numbers = np.maximum(numbers, before.number[old])
            before.number[old] = 0  # for a key that is not there this is an empty place, which has 0 already
        after = change(numbers)
        pair.number[at] = after
        self._live += int(np.count_nonzero(after)) - int(np.count_nonzero(numbers))

    def move(self, places: int = _SLICE) -> bool:
        """Do a part of the current move. Returns False once nothing is left to do."""
        before = self._before
        if before is not None:
            end = min(self._moved + places, before.places)
            numbers = before.number[self._moved : end]
            live = np.flatnonzero(numbers)
            if len(live):
                at = self._now.claim_many(before.key[self._moved : end][live])
                self._now.number[at] = numbers[live]
                numbers[live] = 0  # the keys stay: the way to other keys may lead past them
            self._moved = end
            if end == before.places:
                self._before = None
                self._leaving.append((before, 0))
        elif self._leaving:
            pair, given = self._leaving.pop()
            if given + _RELEASED < pair.places:
                pair.memory.madvise(mmap.MADV_DONTNEED, 8 * given, 8 * _RELEASED)
                pair.memory.madvise(mmap.MADV_DONTNEED, 8 * pair.places + 4 * given, 4 * _RELEASED)
                self._leaving.append((pair, given + _RELEASED))
        return self.moving

    def _make_room(self, keys: int) -> None:
        if self.moving:
            self._owed += _PLACES_PER_KEY * keys
            if self._owed >= _SLICE:
                self.move(self._owed)
                self._owed = 0
        if self._now.used + keys <= self._limit:
            return
        while self._before is not None:  # one run of keys may be longer than the table was
            self.move(self._before.places)
        places = _MIN_PLACES
        # Not much smaller than before, or it would be full before the move has ended.
        while self._live + keys > _MAX_USED_AT_FIRST * places or 4 * places < self._now.places:
            places *= 2
        self._before, self._moved = self._now, 0
        self._now = _Pair(places)
        self._limit = int(_MAX_USED * places)
