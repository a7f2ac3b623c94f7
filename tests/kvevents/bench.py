"""A subscriber on real sockets, what it tells, and the publishers it follows."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kvevents import NullObserver, PrefixIndex, Prompt, Reason, RetireReason, Slot, State
from kvevents.subscriber import SourceAddress, Subscriber
from tests.kvevents.publisher import Publisher, free_port

ENGINE = "engine:8000"
SLOT = Slot(ENGINE, 0, "GPU")
DEADLINE_S = 15.0


class Heard(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.retirements: list[RetireReason] = []
        self.replays: list[tuple[int, bool]] = []
        self.missing = 0
        self.drops: dict[Reason, int] = {}
        self.applied: dict[str, int] = {}
        self.numbers: list[int] = []

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        self.applied[event_type] = self.applied.get(event_type, 0) + count

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        self.missing += missing

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:
        self.replays.append((batches, complete))

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        self.states.append(state)

    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
        self.retirements.append(why)

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        self.numbers.append(number)


def block(number: int) -> dict[str, Any]:
    """Block `number` of one long prompt whose tokens are 1, 2, 3, .., two a block."""
    return {
        "type": "BlockStored",
        "block_hashes": [number],
        "parent_block_hash": number - 1 or None,
        "token_ids": [2 * number - 1, 2 * number],
        "block_size": 2,
        "medium": "GPU",
    }


class Bench:
    """One engine's address, its publisher of the moment, and a subscriber's index."""

    def __init__(self, *, settle_s: float = 60.0) -> None:
        """`settle_s`: long enough that a test sees no requests but those it is about."""
        self.settle_s = settle_s
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.replay = f"tcp://127.0.0.1:{free_port()}"
        self.index = PrefixIndex()
        self.heard = Heard()
        self.publishers: list[Publisher] = []

    def publisher(self, *, replay: bool = True, **options: Any) -> Publisher:
        self.publishers.append(Publisher(self.endpoint, self.replay if replay else None, **options))
        return self.publishers[-1]

    @asynccontextmanager
    async def following(self, *, replay: bool = True, **options: Any) -> AsyncIterator[Subscriber]:
        address = {name: options.pop(name) for name in ("topic", "bind") if name in options}
        where = SourceAddress(0, self.endpoint, self.replay if replay else None, **address)
        options = {"probe_s": 60.0, "settle_s": self.settle_s, "replay_quiet_s": 5.0, **options}
        subscriber = Subscriber(ENGINE, where, self.index, self.heard, **options)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(subscriber.run())
            try:
                yield subscriber
            finally:
                task.cancel()
        assert subscriber.state is State.UNKNOWN
        assert not subscriber.connected

    def cached(self) -> int:
        """Blocks of the long prompt."""
        return self.index.match(Prompt(range(1, 2_001))).get(SLOT, 0) // 2


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.002)


def publish(publisher: Publisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.publish(block(number))
