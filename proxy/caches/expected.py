"""Blocks that decisions just made will bring to an instance, until its events say so or time is up.

An overlay beside the index, which stays free of guesses: a burst of requests with one prefix meets on one
instance although the first of them has not been computed yet.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

SETTLE_S = 2.0
"""How long blocks stay expected after their prefill leg ended: its events are published before its answer, so
this only has to cover their way here."""

SWEPT_AT_ONCE = 4096
"""Blocks whose time is up that one call forgets, half a millisecond; those of a prompt of a million tokens
take 20 ms."""

_Place = tuple[str, int]


class PredictedBlocks:
    """Expected blocks per (instance, rank). Times are seconds of any one monotonic clock."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._running: dict[_Place, dict[int, int]] = {}
        self._settling: dict[_Place, OrderedDict[int, float]] = {}

    def expect(self, instance: str, rank: int, keys: Sequence[int]) -> None:
        """A prefill leg of a prompt with these block keys is about to run there."""
        running = self._running.setdefault((instance, rank), {})
        if running.keys().isdisjoint(keys):
            running.update(dict.fromkeys(keys, 1))  # loops in C
        else:
            for key in keys:
                running[key] = running.get(key, 0) + 1

    def settle(self, instance: str, rank: int, keys: Sequence[int], now: float, *, came: bool) -> None:
        """That leg has ended; `came` tells whether it was computed."""
        place = (instance, rank)
        running = self._running.get(place, {})
        for key in keys:
            count = running.pop(key, 0)
            if count > 1:
                running[key] = count - 1
        if not running:
            self._running.pop(place, None)
        settling = self._settling.setdefault(place, OrderedDict())
        if came:
            until = now + self._settle_s
            if not settling.keys().isdisjoint(keys):
                for key in keys:
                    settling.pop(key, None)  # the last to come are the last to go
            for key in keys:
                settling[key] = until
        self._expire(place, now)

    def prefix_blocks(self, instance: str, rank: int, keys: Sequence[int], now: float) -> int:
        """How many leading blocks of a prompt are expected there."""
        place = (instance, rank)
        self._expire(place, now)
        running = self._running.get(place, {})
        settling = self._settling.get(place, OrderedDict[int, float]())
        if not running and not settling:
            return 0
        if settling and next(iter(settling.values())) <= now:  # there are more than were swept
            return sum(1 for _ in takewhile(lambda key: key in running or settling.get(key, now) > now, keys))
        if running and settling:
            return sum(1 for _ in takewhile(lambda key: key in running or key in settling, keys))
        return len(list(takewhile((running or settling).__contains__, keys)))  # a loop in C

    def forget(self, instance: str) -> None:
        """The instance lost its cache, or is gone."""
        for places in (self._running, self._settling):
            for place in [place for place in places if place[0] == instance]:
                del places[place]

    def _expire(self, place: _Place, now: float) -> None:
        settling = self._settling.get(place)
        for _ in range(SWEPT_AT_ONCE):
            if not settling or next(iter(settling.values())) > now:
                break
            settling.popitem(last=False)
        if settling is not None and not settling:
            del self._settling[place]
