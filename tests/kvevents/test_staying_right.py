"""Whatever happens between an engine and us, in the end the index has what the engine has, or is known not
to.

Each is told on real sockets with an engine whose cache is a plain model: sets of whole prefixes.
"""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from kvevents import State
from kvevents.subscriber import Subscriber
from proxy.caches.feeds import EventFeeds
from proxy.config import parse_instance
from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.phases import Role
from proxy.tasks import TaskOwner
from tests.fuzz.events.good_engine import GoodEngine
from tests.kvevents.bench import ENGINE, SLOT, Bench, Heard, until
from tests.kvevents.publisher import Publisher, free_port


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Engines publish while they are being subscribed to, as they do in the field."""
    bench = Bench(settle_s=0.3)
    yield bench
    for publisher in bench.publishers:
        publisher.close()


class Engine:
    """An engine process with a publisher."""

    def __init__(self, bench: Bench, seed: int = 1, **options: Any) -> None:
        self.publisher: Publisher = bench.publisher(**options)
        self.cache = GoodEngine(random.Random(seed))
        self._index = bench.index
        self._told = 0

    def work(self, steps: int) -> None:
        self.cache.work(steps)
        self._publish()

    def reset(self) -> None:
        self.cache.reset()
        self.cache.work(3)
        self._publish()

    def _publish(self) -> None:
        for payload in self.cache.batches[self._told :]:
            self.publisher.publish(*msgspec.msgpack.decode(payload)[1])
        self._told = len(self.cache.batches)

    def is_known(self) -> bool:
        return self.cache.difference(self._index, SLOT) is None


async def exact(subscriber: Subscriber, engine: Engine) -> None:
    await until(lambda: subscriber.state is State.EXACT and engine.is_known())


async def test_from_the_start(bench: Bench) -> None:
    engine = Engine(bench)
    async with bench.following() as subscriber:
        engine.work(40)
        await exact(subscriber, engine)


@pytest.mark.parametrize("parts", [2, 3, 4])
async def test_joining_late_by_any_form_of_replay(bench: Bench, parts: int) -> None:
    engine = Engine(bench, parts=parts)
    engine.work(60)
    engine.publisher.settle()
    async with bench.following() as subscriber:
        engine.work(20)
        await exact(subscriber, engine)
    assert bench.heard.retirements == []


async def test_gaps(bench: Bench) -> None:
    engine = Engine(bench, lose=lambda number: number % 7 in {3, 4})
    async with bench.following(probe_s=0.3) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        engine.work(60)
        await exact(subscriber, engine)
    assert bench.heard.missing
    assert bench.heard.retirements == []


async def test_a_reset(bench: Bench) -> None:
    engine = Engine(bench)
    engine.work(30)
    async with bench.following() as subscriber:
        await exact(subscriber, engine)
        engine.reset()
        await exact(subscriber, engine)
    assert bench.heard.applied["AllBlocksCleared"] >= 1


async def test_a_reset_that_was_not_heard(bench: Bench) -> None:
    lost: set[int] = set()
    engine = Engine(bench, lose=lost.__contains__)
    engine.work(30)
    engine.publisher.settle()
    async with bench.following() as subscriber:
        await exact(subscriber, engine)
        lost.add(engine.publisher.published)
        engine.reset()
        await exact(subscriber, engine)


async def test_a_wrapped_buffer_is_known_to_be_partial_until_a_reset(bench: Bench) -> None:
    engine = Engine(bench, buffer_steps=5)
    engine.work(40)
    engine.publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        engine.reset()
        await exact(subscriber, engine)  # nothing older can be missing
        engine.work(10)
        await exact(subscriber, engine)


async def test_a_process_replaced_at_the_same_address(bench: Bench) -> None:
    first = Engine(bench)
    first.work(30)
    async with bench.following() as subscriber:
        await exact(subscriber, first)
        first.publisher.close()
        second = Engine(bench, seed=2)
        second.work(50)
        await exact(subscriber, second)
        assert not first.is_known()
    assert bench.heard.retirements == ["new_process"]


async def test_an_engine_that_connects_to_us_and_is_replaced(bench: Bench) -> None:
    async with bench.following(bind=True) as subscriber:
        first = Engine(bench, bind=False)
        first.work(20)
        await exact(subscriber, first)
        first.publisher.close()
        second = Engine(bench, seed=2, bind=False)
        second.work(30)
        await exact(subscriber, second)


class Line:
    """A line between the subscriber and a publisher that can be cut."""

    def __init__(self, to: str) -> None:
        self.port = free_port()
        self._to = int(to.rpartition(":")[2])
        self._writers: set[asyncio.StreamWriter] = set()
        self.met = 0

    def met_more_than(self, met: int) -> bool:
        return self.met > met

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._carry, "127.0.0.1", self.port):
            yield
            self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.met += 1
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers |= {writer, far_writer}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, far_writer))
                tasks.create_task(_pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_a_connection_that_breaks_and_comes_back(bench: Bench) -> None:
    engine = Engine(bench)
    line = Line(bench.endpoint)
    bench.endpoint = f"tcp://127.0.0.1:{line.port}"
    async with line.open(), bench.following() as subscriber:
        engine.work(20)
        await exact(subscriber, engine)
        for _ in range(3):
            met = line.met
            line.cut()
            engine.work(15)
            await until(functools.partial(line.met_more_than, met))
            await exact(subscriber, engine)
    assert bench.heard.retirements == []
    assert bench.heard.states.count(State.EXACT) >= 4


class Silent:
    async def exchange(self, method: str, instance: str, path: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        assert path == "/metrics", "its sources were told"
        raise LegError(instance, "it tells nothing")


async def test_an_instance_removed_in_the_middle_of_a_replay_and_added_again(bench: Bench) -> None:
    engine = Engine(bench, drop=lambda request, number: request == 0 and number == -1)
    engine.work(60)
    engine.publisher.settle()
    heard, tasks = Heard(), TaskOwner("test")
    feeds = EventFeeds(Silent(), bench.index, heard, tasks)
    told = f"events={bench.endpoint}&replay={bench.replay}"
    instance = Instance(parse_instance(f"{ENGINE}?{told}", Role.PREFILL))
    await feeds.follow(instance)
    await until(lambda: bool(heard.numbers))
    assert State.EXACT not in heard.states
    await feeds.unfollow(instance)
    assert bench.index.blocks() == {}
    assert await tasks.drained(10)
    assert bench.index.blocks() == {}
    assert not bench.index.sweep()
    engine.work(5)
    await feeds.follow(instance)
    await until(lambda: heard.states[-1:] == [State.EXACT] and engine.is_known())
    await feeds.unfollow(instance)
    assert await tasks.drained(10)
    feeds.close()
