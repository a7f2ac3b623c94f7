"""Follow the engines' KV events and tell each as one short line."""

import asyncio
from collections.abc import Callable

from kvevents import BlockRemoved, BlockStored, Change, NullObserver, PrefixIndex
from kvevents.subscriber import SourceAddress, Subscriber
from scripts.workshop.engines.engine import HOST, EngineSpec

Tell = Callable[[str, str], None]


class EventFeed(NullObserver):
    """An index that says what happens to it; `instance` is the engine's name."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._index = PrefixIndex()

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        change = self._index.store(instance, rank, event)
        count = len(event.block_hashes)
        self._tell(instance, f"stored {_blocks(count)} of {event.block_size} tokens{self._held(instance)}")
        return change

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        change = self._index.remove(instance, rank, event)
        self._tell(instance, f"removed {_blocks(len(event.block_hashes))}{self._held(instance)}")
        return change

    def clear(self, instance: str, rank: int) -> int:
        blocks = self._index.clear(instance, rank)
        self._tell(instance, "cleared its cache")
        return blocks

    def retire(self, instance: str, rank: int | None = None) -> int:
        return self._index.retire(instance, rank)

    def sweep(self) -> bool:
        return self._index.sweep()

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        self._tell(instance, f"GAP: {missing} batches missing (rank {rank})")

    def _held(self, instance: str) -> str:
        held = sum(blocks for slot, blocks in self._index.blocks().items() if slot.instance == instance)
        return f", holds {held} now"


def subscribers(engines: list[EngineSpec], feed: EventFeed) -> list[Subscriber]:
    """One for each engine that publishes."""
    return [
        Subscriber(
            spec.name,
            SourceAddress(0, f"tcp://{HOST}:{spec.events_port}", f"tcp://{HOST}:{spec.replay_port}"),
            feed,
            feed,
        )
        for spec in engines
        if spec.events_port
    ]


async def follow(engines: list[EngineSpec], tell: Tell) -> None:
    """Tell of every event until cancelled."""
    async with asyncio.TaskGroup() as group:
        for subscriber in subscribers(engines, EventFeed(tell)):
            group.create_task(subscriber.run())


def _blocks(count: int) -> str:
    return f"{count} block{'' if count == 1 else 's'}"
