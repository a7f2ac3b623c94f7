"""What prompts have in common is kept once: their blocks are a tree of runs of block keys.

A block's key stands for all blocks before it (docs/adr/0001-block-keys.md), so two prompts that share a key
share all keys up to it. A block takes the 8 bytes of its key, and the last key of a run shows whether a
prompt shares all of it.
"""

import bisect
from array import array
from collections.abc import Sequence
from typing import Self


class KeyRun:
    """Consecutive blocks that have come together so far, and the runs that follow them."""

    __slots__ = ("after", "before", "keys")

    def __init__(self, keys: "array[int]", before: Self | None) -> None:
        self.keys = keys
        """The keys of the blocks: at least one, except in the root of a tree."""
        self.before = before
        self.after: dict[int, Self] = {}
        """The runs that follow, by their first key."""

    def shared(self, keys: Sequence[int], at: int) -> int:
        """The number of blocks that the run shares with a prompt, from the prompt's block `at` on; the first
        of them is shared.
        """
        most = min(len(self.keys), len(keys) - at)
        if self.keys[most - 1] == keys[at + most - 1]:
            return most
        return 1 + bisect.bisect_left(range(1, most), True, key=lambda n: self.keys[n] != keys[at + n])

    def put(self, keys: "array[int]") -> Self:
        """Add a run that follows this one."""
        run = self.after[keys[0]] = type(self)(keys, self)
        return run

    def cut(self, blocks: int) -> Self:
        """Move the first `blocks` blocks into a new run before this one, and return the new run."""
        before = self.before
        if before is None:
            raise RuntimeError("the root of a tree has no blocks")
        first = before.after[self.keys[0]] = type(self)(self.keys[:blocks], before)
        self.keys, self.before = self.keys[blocks:], first
        first.after[self.keys[0]] = self
        return first

    def upto(self, keys: Sequence[int]) -> Self:
        """The run that ends with the last of a prompt's blocks, of a tree whose root this is; blocks that are
        missing are added.
        """
        run, at = self, 0
        while at < len(keys):
            then = run.after.get(keys[at])
            if then is None:
                then = run.put(_copied(keys[at:]))
            elif (shared := then.shared(keys, at)) < len(then.keys):
                then = then.cut(shared)
            run = then
            at += len(run.keys)
        return run

    def drop(self) -> None:
        """Take the run out of its tree; none may follow it. A second call does nothing."""
        if self.before is not None and self.before.after.get(self.keys[0]) is self:
            del self.before.after[self.keys[0]]


def _copied(keys: Sequence[int]) -> "array[int]":
    if not isinstance(keys, memoryview):
        return array("Q", keys)
    copied = array("Q")  # as the bytes that they are: a long prompt has thousands
    copied.frombytes(keys.cast("B"))
    return copied
