"""A batch changes the index as its events do, one by one and in order; what changes nothing is counted.

Synchronous, and a generator: it pauses between two events, between groups of short ones and within a very
long one, so that its driver can let the event loop run.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from msgspec.structs import replace

from kvevents.change import Change
from kvevents.decoder import Message, UnreadableMessage, read_batch
from kvevents.engine_cache import DEFAULT_TIER
from kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Reason
from kvevents.observer import Observer
from kvevents.source_events import Damage, RetireReason
from kvevents.together import together

_DAMAGE = {Reason.BROKEN_EVENT: Damage.MISSING, Reason.BROKEN_REMOVAL: Damage.STALE}
# Blocks of one event that are applied between two pauses: half a millisecond, more while the index grows.
_PART_BLOCKS = 512


class Index(Protocol):
    """What events change: a PrefixIndex, or another class with its methods."""

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
        """Forget all that is known of that rank."""
        ...

    def sweep(self) -> bool:
        """Give back some of the memory of what was forgotten. Returns False once none is left."""
        ...


@runtime_checkable
class TakesTogether(Protocol):
    """An index that takes groups of independent events at once. Any other index gets each event by itself."""

    def store_all(self, instance: str, rank: int, events: Sequence[BlockStored]) -> Change:
        """Does what `store` does, for each of the events in order."""
        ...

    def orphans(self, instance: str, rank: int) -> int:
        """The number of blocks that wait for their parent."""
        ...


class Applier:
    """Writes the batches of one rank of an instance into an index and tells an observer."""

    def __init__(self, instance: str, rank: int, index: Index, observer: Observer) -> None:
        self._instance = instance
        self._rank = rank
        self._index = index
        self._grouping = index if isinstance(index, TakesTogether) else None
        self._observer = observer
        self.clears = 0
        """The number of cache resets that were applied."""
        self.has_slower_tiers = False
        """Whether blocks were stored in other tiers than the engine's own. A reset does not say which tiers
        it emptied."""

    def apply(self, message: Message) -> Generator[None, None, Damage]:
        """Apply a batch, with a pause after each event, group or part. Returns the worst damage done by what
        could not be read.

        An event of an unknown type counts as damage only if its name says that something is gone: newer
        engines announce more than is needed here.
        """
        try:
            batch = read_batch(message.payload)
        except UnreadableMessage:
            self.drop(Reason.UNREADABLE, 1)
            return Damage.STALE
        self._observer.batch_received(
            instance=self._instance,
            rank=self._rank,
            number=message.number,
            ts_s=batch.ts,
            events=batch.length,
        )
        damage = Damage.NONE
        if (index := self._grouping) is None:
            for event in batch.events:
                damage = max(damage, (yield from self._take(event)))
            return damage
        for piece in together(batch.events, lambda: index.orphans(self._instance, self._rank) > 0):
            if isinstance(piece, list):
                change = index.store_all(self._instance, self._rank, piece)
                damage = max(damage, self._tell(piece[0], change))
                yield
            else:
                damage = max(damage, (yield from self._take(piece)))
        return damage

    def _take(self, event: Event | Reason) -> Generator[None, None, Damage]:
        if isinstance(event, Reason):
            self.drop(event, 1)
            damage = _DAMAGE.get(event, Damage.NONE)
        elif isinstance(event, AllBlocksCleared) or len(event.block_hashes) <= _PART_BLOCKS:
            damage = self._apply_event(event)
        else:
            damage = Damage.NONE
            for part in _parts(event):
                damage = max(damage, self._apply_event(part))
                yield
        yield
        return damage

    def retire(self, why: RetireReason) -> None:
        """Forget all blocks of the rank."""
        self._index.retire(self._instance, self._rank)
        self._observer.retired(instance=self._instance, rank=self._rank, why=why)

    def drop(self, reason: Reason, count: int) -> None:
        """Tell the observer how many blocks or events changed nothing, and why."""
        self._observer.event_dropped(instance=self._instance, rank=self._rank, reason=reason, count=count)

    def _apply_event(self, event: Event) -> Damage:
        if isinstance(event, BlockStored):
            change = self._index.store(self._instance, self._rank, event)
        elif isinstance(event, BlockRemoved):
            change = self._index.remove(self._instance, self._rank, event)
        else:
            self._index.clear(self._instance, self._rank)
            self.clears += 1
            change = Change(1, 0, {})
        return self._tell(event, change)

    def _tell(self, event: Event, change: Change) -> Damage:
        """Tell the observer what an event, or several like it, changed."""
        if change.applied:
            self._observer.event_applied(
                instance=self._instance,
                rank=self._rank,
                event_type=type(event).__name__,
                count=change.applied,
            )
        for reason, count in change.dropped.items():
            self.drop(reason, count)
        # Blocks of a slower tier that found no room are no damage: a rank's state speaks of the engine's own
        # tier.
        missing = not self._is_slower(event) and Reason.FULL in change.dropped
        return Damage.MISSING if missing else Damage.NONE

    def _is_slower(self, event: Event) -> bool:
        slower = isinstance(event, BlockStored) and event.medium not in {None, DEFAULT_TIER}
        self.has_slower_tiers = self.has_slower_tiers or slower
        return slower


def _parts(event: BlockStored | BlockRemoved) -> Iterator[BlockStored | BlockRemoved]:
    """The event as several shorter ones, which mean the same: the beginning of a run is a run."""
    hashes = event.block_hashes
    starts = range(0, len(hashes), _PART_BLOCKS)
    if isinstance(event, BlockRemoved):
        yield from (replace(event, block_hashes=hashes[at : at + _PART_BLOCKS]) for at in starts)
        return
    size, extra, lookahead = event.block_size, event.extra_keys or None, event.lookahead_token_ids
    if size * len(hashes) != len(event.token_ids) or any(
        len(each) != len(hashes) for each in (extra, lookahead) if each is not None
    ):
        yield event  # misaligned: refused as a whole
        return
    parent = event.parent_block_hash
    for at in starts:
        end = at + _PART_BLOCKS
        yield replace(
            event,
            block_hashes=hashes[at:end],
            parent_block_hash=parent,
            token_ids=event.token_ids[at * size : end * size],
            extra_keys=extra and extra[at:end],
            lookahead_token_ids=lookahead and lookahead[at:end],
        )
        parent = hashes[min(end, len(hashes)) - 1]
