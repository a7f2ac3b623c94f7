"""Blocks that recent decisions will bring to an instance count there until its events announce them, or time
is up.

They are kept beside the index, which stays free of guesses: the requests of a burst with one prefix go to one
instance although the first of them has not been computed yet. What prompts have in common is kept once
(`proxy/key_runs.py`).
"""

from array import array
from collections import deque
from collections.abc import Collection, Sequence

from proxy.key_runs import KeyRun

SETTLE_S = 2.0
"""Seconds that blocks stay expected after their prefill leg ended: its events are published before its
answer, so only their way here has to be covered."""

SWEPT_AT_ONCE = 64
"""The most legs whose time is up that one call forgets, in a tenth of a millisecond."""

_Place = tuple[str, int]


class _Run(KeyRun):
    """Consecutive blocks that have been expected together so far."""

    __slots__ = ("running", "until")

    def __init__(self, keys: "array[int]", before: "_Run | None") -> None:
        super().__init__(keys, before)
        self.running = 0
        """The number of legs under way that bring these blocks."""
        self.until = 0.0
        """When these blocks are not expected any more, if no leg under way brings them."""

    def is_expected(self, now: float) -> bool:
        return self.running > 0 or self.until > now

    def cut(self, blocks: int) -> "_Run":
        """As `KeyRun`: both parts are expected as the whole was."""
        first = super().cut(blocks)
        first.running, first.until = self.running, self.until
        return first


class _Tree:
    """The blocks that are expected on one rank."""

    __slots__ = ("root", "settled")

    def __init__(self) -> None:
        self.root = _Run(array("Q"), None)
        self.settled: deque[tuple[float, _Run]] = deque()
        """For each leg that has ended, the time until which its blocks are expected, and its last run;
        ascending."""

    def __bool__(self) -> bool:
        return bool(self.root.after) or bool(self.settled)

    @property
    def runs(self) -> int:
        """The number of runs."""
        found, new = 0, [self.root]
        while new:
            after = new.pop().after.values()
            found += len(after)
            new.extend(after)
        return found

    def prune(self, last: _Run, now: float) -> None:
        """Forget a leg's blocks, up to the run `last`, except those that other legs bring or brought."""
        while not last.after and not last.is_expected(now) and (before := last.before) is not None:
            last.drop()
            last = before

    def sweep(self, now: float) -> None:
        """Forget legs whose time is up."""
        settled = self.settled
        for _ in range(SWEPT_AT_ONCE):
            if not settled or settled[0][0] > now:
                break
            self.prune(settled.popleft()[1], now)


class PredictedBlocks:
    """Expected blocks by (instance, rank). Times are seconds of any one monotonic clock.

    `keys`: those of all blocks of a prompt, from the first one on.
    """

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._trees: dict[_Place, _Tree] = {}

    @property
    def places(self) -> Collection[tuple[str, int]]:
        """The ranks where any blocks may be expected."""
        return self._trees.keys()

    @property
    def runs(self) -> int:
        """The number of runs of blocks that are kept."""
        return sum(tree.runs for tree in self._trees.values())

    @property
    def legs(self) -> int:
        """The number of legs under way that bring blocks."""
        return sum(tree.root.running for tree in self._trees.values())

    def expect(self, instance: str, rank: int, keys: Sequence[int]) -> "Awaited | None":
        """A prefill leg of a prompt with these block keys is about to run there. Returns what it brings,
        which MUST be settled in the end; None if that is nothing.
        """
        if not keys:
            return None
        place = (instance, rank)
        tree = self._trees.get(place)
        if tree is None:
            tree = self._trees[place] = _Tree()
        last = tree.root.upto(keys)
        run: _Run | None = last
        while run is not None:
            run.running += 1
            run = run.before
        return Awaited(place, tree, last)

    def settle(self, awaited: "Awaited | None", now: float, *, came: bool) -> None:
        """The leg that brings this has ended; `came`: whether it was computed."""
        if awaited is None:
            return
        place, tree, last = awaited.place, awaited.tree, awaited.last
        if self._trees.get(place) is not tree:
            return  # the instance has lost its cache since, or is gone
        until = now + self._settle_s if came else 0.0
        run: _Run | None = last
        while run is not None:
            run.running -= 1
            run.until = max(run.until, until)
            run = run.before
        if came:
            tree.settled.append((until, last))
        else:
            tree.prune(last, now)
        self._swept(place, tree, now)

    def any(self, instance: str, rank: int) -> bool:
        """Whether any blocks may be expected there."""
        return (instance, rank) in self._trees

    def begins(self, place: tuple[str, int], key: int, now: float) -> bool:
        """Whether a block may be expected there that is the first of a prompt and has that key."""
        tree = self._trees.get(place)
        if tree is None:
            return False
        settled = tree.settled
        if settled and settled[0][0] <= now and not self._swept(place, tree, now):
            return False
        return key in tree.root.after

    def prefix_blocks(self, instance: str, rank: int, keys: Sequence[int], now: float) -> int:
        """The number of leading blocks of a prompt that are expected there."""
        place = (instance, rank)
        tree = self._trees.get(place)
        if tree is None or not self._swept(place, tree, now):
            return 0
        run, at, count = tree.root, 0, len(keys)
        while at < count:
            then = run.after.get(keys[at])
            if then is None or not (then.running or then.until > now):
                break
            shared = then.shared(keys, at)
            at += shared
            if shared < len(then.keys):
                break
            run = then
        return at

    def forget(self, instance: str) -> None:
        """The instance lost its cache, or is gone."""
        for place in [place for place in self._trees if place[0] == instance]:
            del self._trees[place]

    def _swept(self, place: _Place, tree: _Tree, now: float) -> bool:
        """Drop what is not expected any more on a rank; False if nothing is left."""
        if tree.settled and tree.settled[0][0] <= now:
            tree.sweep(now)
        if tree:
            return True
        del self._trees[place]
        return False


class Awaited:
    """The blocks that one leg brings. Its last run stays the last of its blocks, however runs are cut."""

    __slots__ = ("last", "place", "tree")

    def __init__(self, place: _Place, tree: _Tree, last: _Run) -> None:
        self.place = place
        self.tree = tree
        self.last = last
