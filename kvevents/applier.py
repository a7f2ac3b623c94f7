"""A batch changes the index event by event, in order, and whatever it could not change is counted.

Synchronous, and a generator: between two events its driver may let the event loop run.
"""

from collections.abc import Generator
from typing import Protocol

from kvevents.decoder import Message, UnreadableMessage, decode
from kvevents.events import BlockRemoved, BlockStored, Event, Reason
from kvevents.observer import Observer
from kvevents.prefix_index import Change


class Index(Protocol):
    """What events change: a PrefixIndex, or something that looks like one."""

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        """A run of blocks now lies in a tier."""
        ...

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """One copy of each named block has left a tier."""
        ...

    def clear(self, instance: str, rank: int) -> int:
        """Nothing is cached on that rank any more."""
        ...

    def retire(self, instance: str, rank: int | None = None) -> int:
        """Forget all about that rank."""
        ...

    def sweep(self) -> bool:
        """Give back some memory of what was forgotten; False once there is none left."""
        ...


class Applier:
    """Writes the batches of one rank of an instance into an index and tells an observer."""

    def __init__(self, instance: str, rank: int, index: Index, observer: Observer) -> None:
        self._instance = instance
        self._rank = rank
        self._index = index
        self._observer = observer

    def apply(self, message: Message) -> Generator[None, None, bool]:
        """Apply a batch, pausing after each event. Returns False if a part that may have mattered was not understood.

        An event of an unknown type does not matter: newer engines announce more than we need.
        """
        try:
            batch, skipped = decode(message.payload)
        except UnreadableMessage:
            self.drop(Reason.UNREADABLE, 1)
            return False
        self._observer.batch_received(
            instance=self._instance,
            rank=self._rank,
            number=message.number,
            ts_s=batch.ts,
            events=len(batch.events),
        )
        for reason, count in skipped.items():
            self.drop(reason, count)
        for event in batch.events:
            self._apply_event(event)
            yield
        return Reason.BROKEN_EVENT not in skipped

    def retire(self, why: str) -> None:
        """Forget all blocks of the rank."""
        self._index.retire(self._instance, self._rank)
        self._observer.retired(instance=self._instance, rank=self._rank, why=why)

    def drop(self, reason: Reason, count: int) -> None:
        """Tell the observer of something that changed nothing."""
        self._observer.event_dropped(instance=self._instance, rank=self._rank, reason=reason, count=count)

    def _apply_event(self, event: Event) -> None:
        if isinstance(event, BlockStored):
            change = self._index.store(self._instance, self._rank, event)
        elif isinstance(event, BlockRemoved):
            change = self._index.remove(self._instance, self._rank, event)
        else:
            self._index.clear(self._instance, self._rank)
            change = Change(1, 0, {})
        if change.applied:
            self._observer.event_applied(
                instance=self._instance,
                rank=self._rank,
                event_type=type(event).__name__,
                count=change.applied,
            )
        for reason, count in change.dropped.items():
            self.drop(reason, count)
