"""A subscriber that is started again goes on from what was known, on real sockets, if it is the same
publisher."""

import asyncio
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from kvevents import Checkpoint, PrefixIndex, Resumed, State
from kvevents.block_keys import BlockHasher
from kvevents.exported import ExportedRank
from kvevents.subscriber import Resume, Subscriber, in_slices
from tests.kvevents.bench import ENGINE, Bench, Heard, block, publish, until

Taken = tuple[Checkpoint, ExportedRank | None]


class Keeping(Heard):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str | None] = []

    def resumed(self, *, instance: str, rank: int, why: str | None) -> None:
        self.ends.append(why)


class Restarting(Bench):
    """A bench whose index makes the same keys after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        self.index, self.heard = PrefixIndex(BlockHasher(b"secret")), Keeping()

    @property
    def ends(self) -> list[str | None]:
        assert isinstance(self.heard, Keeping)
        return self.heard.ends

    def exporting(self, checkpoint: Checkpoint) -> Generator[None, None, Taken]:
        return checkpoint, (yield from self.index.exporting(ENGINE, 0))

    async def taken(self, up_to: int, **options: Any) -> Taken:
        """What a subscriber knew when it had heard that number, which is stopped then."""
        async with self.following(**options) as subscriber:
            await until(lambda: _number(subscriber) == up_to)
            taken = await subscriber.at_rest(self.exporting)
        assert taken is not None
        self.restart()
        return taken

    def resume(self, taken: Taken) -> Resume:
        checkpoint, exported = taken
        assert exported is not None

        async def load() -> Checkpoint:
            assert await in_slices(self.index.loading(ENGINE, 0, exported))
            return checkpoint

        return load


def _number(subscriber: Subscriber) -> int | None:
    return None if subscriber.checkpoint is None else subscriber.checkpoint.position.number


@pytest.fixture
def bench() -> Iterator[Restarting]:
    bench = Restarting()
    yield bench
    for publisher in bench.publishers:
        publisher.close()


async def test_it_is_exact_at_once_although_the_buffer_has_wrapped(bench: Restarting) -> None:
    publisher = bench.publisher(buffer_steps=5)
    async with bench.following() as subscriber:  # there from the start, so that it knows all
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 40)
        await until(lambda: bench.cached() == 40)
        taken = await subscriber.at_rest(bench.exporting)
    assert taken is not None
    bench.restart()
    publish(publisher, 41, 43)
    publisher.settle()
    publisher.requests.clear()
    async with bench.following(resume=bench.resume(taken)) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 43
        assert bench.heard.numbers == [40, 41, 42]
        publish(publisher, 44, 44)
        await until(lambda: bench.cached() == 44)
        assert subscriber.resumed is Resumed.RESTORED
    assert publisher.requests == [39]
    assert bench.ends == [None]
    assert bench.heard.retirements == []


async def test_it_is_worth_nothing_until_the_engine_is_back(bench: Restarting) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 5)
    taken = await bench.taken(4)
    publisher.close()
    async with bench.following(resume=bench.resume(taken)) as subscriber:
        await until(lambda: bench.cached() == 5)
        assert (subscriber.state, subscriber.resumed) == (State.UNKNOWN, Resumed.UNPROVEN)
        assert subscriber.checkpoint is None
        publish(bench.publisher(), 1, 2)
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 2
        assert (subscriber.resumed, subscriber.stale_because) == (Resumed.STALE, "new_process")
    assert bench.ends == ["new_process"]


@pytest.mark.parametrize("published", [3, 5, 9])
async def test_an_engine_that_was_restarted_meanwhile_is_not_believed(
    bench: Restarting, published: int
) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 5)
    taken = await bench.taken(4)
    publisher.close()
    other = bench.publisher()
    for number in range(101, 101 + published):
        other.publish({**block(number), "parent_block_hash": None})
    other.settle()
    async with bench.following(resume=bench.resume(taken)) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert (subscriber.resumed, subscriber.stale_because) == (Resumed.STALE, "new_process")
        assert bench.cached() == 0
        assert sum(bench.index.blocks().values()) == published


async def test_what_the_buffer_does_not_reach_back_to_is_forgotten(bench: Restarting) -> None:
    publisher = bench.publisher(buffer_steps=5)
    publish(publisher, 1, 5)
    taken = await bench.taken(4)
    publish(publisher, 6, 12)
    publisher.settle()
    async with bench.following(resume=bench.resume(taken)) as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert (subscriber.resumed, subscriber.stale_because) == (Resumed.STALE, "gap")
        assert bench.cached() == 0


async def test_without_a_replay_endpoint_it_is_not_even_loaded(bench: Restarting) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 5)
    taken = await bench.taken(4)
    async with bench.following(replay=False, resume=bench.resume(taken)) as subscriber:
        assert subscriber.resumed is Resumed.NONE
        await until(lambda: subscriber.connected)
        publish(publisher, 6, 6)
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.cached() == 0
        assert await subscriber.at_rest(bench.exporting) is None


async def test_a_copy_is_never_of_half_a_batch(bench: Restarting) -> None:
    events = 10_000
    publisher = bench.publisher()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        for number in range(3):
            hashes = range(number * events + 1, (number + 1) * events + 1)
            publisher.publish(*({**block(h), "parent_block_hash": None} for h in hashes))
            done = number * events
            await until(lambda done=done: done < bench.heard.applied.get("BlockStored", 0) < done + events)  # type: ignore[misc]
            taken = await subscriber.at_rest(bench.exporting)
            assert taken is not None
            checkpoint, exported = taken
            assert exported is not None
            assert checkpoint.position.number == number
            assert [len(tier.hashes) for tier in exported.tiers] == [done + events]


async def test_who_waits_for_a_copy_does_not_wait_for_ever(bench: Restarting) -> None:
    publish(bench.publisher(), 1, 3)
    where = bench.following()
    async with where as subscriber:
        await until(lambda: bench.cached() == 3)
        publisher = bench.publishers[0]
        publisher.publish(*[block(3)] * 20_000)
        await until(lambda: bench.heard.applied["BlockStored"] > 10)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(subscriber.at_rest(bench.exporting))
            await asyncio.sleep(0)
            assert not asked.done()
            subscriber_task = next(t for t in asyncio.all_tasks() if "Subscriber.run" in repr(t.get_coro()))
            subscriber_task.cancel()
            assert await asked is None
    assert isinstance(subscriber, Subscriber)
    assert await subscriber.at_rest(bench.exporting) is None
