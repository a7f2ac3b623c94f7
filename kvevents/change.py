"""What an event did to the index, as numbers of blocks: stored or removed, waiting, and without effect."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvevents.events import Reason


class Change(NamedTuple):
    """What an event did to the index, in blocks."""

    applied: int
    """Blocks stored or removed, copies included."""
    orphans: int
    """Blocks of this event that now wait for a parent."""
    dropped: Mapping[Reason, int]
    """Blocks that changed nothing, or that stopped waiting without a parent, and why."""


def total(changes: Sequence[Change]) -> Change:
    """The sum of what several events did."""
    dropped: dict[Reason, int] = {}
    for change in changes:
        for reason, count in change.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return Change(sum(c.applied for c in changes), sum(c.orphans for c in changes), dropped)
