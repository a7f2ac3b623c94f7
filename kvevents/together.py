"""Events of one block each change the index in groups, with the same result as one by one.

An engine with a full cache announces each block that it evicts, and each that a sequence has filled, by an
event of its own, in turn. As one removal and one list of single blocks they cost half as much.

The removals of a group come first. That is right as long as none of them names a block, or the parent of a
block, that an earlier event of the group stored, and no block waits for its parent; otherwise a new group
begins.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from kvevents.events import BlockRemoved, BlockStored, EngineHash, Event, Reason

MAX_EVENTS = 128
"""The most events of one group."""

MAX_TOKENS = 8192
"""The most tokens of one group: about half a millisecond."""

Piece: TypeAlias = Event | Reason | list[BlockStored]


def together(
    events: Iterable[Event | Reason], any_waits: Callable[[], bool] = lambda: False
) -> Iterator[Piece]:
    """The events, those of one block each in groups; a Reason keeps its place.

    `any_waits`: whether, once all that was given out is applied, some block waits for its parent.
    """
    group = _Group(any_waits)
    for event in events:
        if isinstance(event, BlockStored) and len(event.block_hashes) == 1:
            if not group.takes_stored(event):
                yield from group.end()
            group.add_stored(event)
            continue
        if isinstance(event, BlockRemoved) and len(event.block_hashes) == 1:
            if not group.takes_removed(event):
                yield from group.end()
            group.add_removed(event)
            continue
        yield from group.end()
        yield event
    yield from group.end()


class _Group:
    def __init__(self, any_waits: Callable[[], bool]) -> None:
        self._any_waits = any_waits
        self._tokens = 0
        self._removed: list[BlockRemoved] = []
        self._stored: list[BlockStored] = []
        self._touched: set[EngineHash | None] = set()  # blocks that the group stores, and their parents

    def takes_stored(self, event: BlockStored) -> bool:
        if not self._stored:
            return self._is_open()
        fits = self._tokens + len(event.token_ids) <= MAX_TOKENS
        return self._is_open() and fits and self._stored[0].medium == event.medium

    def takes_removed(self, event: BlockRemoved) -> bool:
        return (
            self._is_open()
            and (not self._removed or _tier(self._removed[0]) == _tier(event))
            and not (self._stored and (event.block_hashes[0] in self._touched or self._any_waits()))
        )

    def add_stored(self, event: BlockStored) -> None:
        self._stored.append(event)
        self._tokens += len(event.token_ids)
        self._touched.add(event.block_hashes[0])
        self._touched.add(event.parent_block_hash)

    def add_removed(self, event: BlockRemoved) -> None:
        self._removed.append(event)

    def end(self) -> Iterator[Piece]:
        """Give out what the group has, and leave it empty."""
        removed, stored = self._removed, self._stored
        self._removed, self._stored, self._touched, self._tokens = [], [], set(), 0
        if len(removed) > 1:
            hashes = [event.block_hashes[0] for event in removed]
            yield BlockRemoved(hashes, *_tier(removed[0]))
        elif removed:
            yield removed[0]
        if len(stored) > 1:
            yield stored
        elif stored:
            yield stored[0]

    def _is_open(self) -> bool:
        return len(self._removed) + len(self._stored) < MAX_EVENTS


def _tier(event: BlockRemoved) -> tuple[str | None, int | None]:
    return event.medium, event.group_idx
