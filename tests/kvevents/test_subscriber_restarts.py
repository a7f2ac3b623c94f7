"""Engines that come, go and are replaced at one address, on real sockets."""

import asyncio
from typing import Any

import pytest
import zmq

from kvevents import BlockStored, State
from kvevents.source_events import Connected, Disconnected, Live
from kvevents.subscriber import SourceAddress, Subscriber
from tests.kvevents.bench import ENGINE, SLOT, Bench, block, publish, until


@pytest.mark.parametrize("connected", [False, True])
def test_messages_from_around_a_handshake_are_left_to_the_replay(bench: Bench, connected: bool) -> None:
    class Wire:
        left = 3

        def live(self, limit: int) -> list[list[bytes]]:
            self.left -= 1
            return [[b"", (7).to_bytes(8, "big"), b""]]

        def links(self) -> list[bool]:
            return [False, True]

        def discard(self) -> None:
            self.left = 0

    subscriber = Subscriber(ENGINE, SourceAddress(0, bench.endpoint, bench.replay), bench.index)
    subscriber._connected = connected
    wire: Any = Wire()
    assert subscriber._heard(wire) == [Disconnected(), Connected()]
    assert wire.left == 0


@pytest.mark.parametrize(("connected", "order"), [(False, [False, True, 1, 2]), (True, [1, 2, False, True])])
def test_messages_stay_on_their_side_of_a_handshake(
    bench: Bench, connected: bool, order: list[bool | int]
) -> None:
    class Wire:
        def live(self, limit: int) -> list[list[bytes]]:
            return [[b"", number.to_bytes(8, "big"), b""] for number in (1, 2)]

        def links(self) -> list[bool]:
            return [False, True]

    subscriber = Subscriber(ENGINE, SourceAddress(0, bench.endpoint), bench.index)
    subscriber._connected = connected
    wire: Any = Wire()
    heard = [
        event.message.number if isinstance(event, Live) else isinstance(event, Connected)
        for event in subscriber._heard(wire)
    ]
    assert heard == order


async def test_a_restart_on_the_same_address(bench: Bench) -> None:
    first = bench.publisher()
    publish(first, 1, 5)
    first.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        first.close()
        await until(lambda: subscriber.state is State.UNKNOWN)
        second = bench.publisher()
        publish(second, 1, 2)
        await until(lambda: subscriber.state is State.EXACT)
        await until(lambda: bench.cached() == 2)
        assert bench.heard.retirements == ["new_process"]
        publish(second, 3, 6)
        await until(lambda: bench.cached() == 6)
        assert bench.index.blocks() == {SLOT: 6}


async def test_a_restart_that_has_published_as_much_is_noticed(bench: Bench) -> None:
    first = bench.publisher()
    publish(first, 1, 3)
    first.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        first.close()
        await until(lambda: subscriber.state is State.UNKNOWN)
        second = bench.publisher()
        for number in (1, 501, 502, 503):
            second.publish({**block(number), "parent_block_hash": None})
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.heard.retirements == ["new_process"]
        await until(lambda: bench.index.blocks() == {SLOT: 4})


async def test_an_engine_that_is_not_up_yet(bench: Bench) -> None:
    async with bench.following() as subscriber:
        await asyncio.sleep(0)
        assert subscriber.state is State.UNKNOWN
        publish(bench.publisher(), 1, 2)
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 2


async def test_a_suspicion_is_verified_at_once(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 2)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        subscriber.suspect()
        await until(lambda: bench.heard.states == [State.EXACT, State.UNKNOWN, State.EXACT])
    assert publisher.requests == [0, 1]
    assert bench.heard.retirements == []


async def test_a_suspicion_uncovers_another_process(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publisher._buffer.clear()  # as if the replay endpoint were another process's
        subscriber.suspect()
        await until(lambda: bench.heard.retirements == ["new_process"])
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.index.blocks() == {}


async def test_an_engine_that_connects_to_us(bench: Bench) -> None:
    async with bench.following(bind=True) as subscriber:
        publisher = bench.publisher(bind=False)
        publish(publisher, 1, 2)
        await until(lambda: subscriber.state is State.EXACT and bench.cached() == 2)
        publish(publisher, 3, 3)
        await until(lambda: bench.cached() == 3)


async def test_an_address_in_use_is_tried_again_quietly(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as taken:
        taken.bind(bench.endpoint)
        async with bench.following(bind=True, open_again_s=0.02) as subscriber:
            await until(lambda: bool(caplog.records))
            taken.close()
            publish(bench.publisher(bind=False), 1, 1)
            await until(lambda: subscriber.state is State.EXACT)
    assert len(caplog.records) == 1
    assert bench.endpoint in caplog.text


async def test_a_rebuild_forgets_what_no_batch_has_said(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        bench.index.store(ENGINE, 0, BlockStored([4], 3, [7, 8], 2))
        assert bench.cached() == 4
        subscriber.rebuild(replay=True)
        await until(lambda: bench.heard.retirements == ["rebuild"] and subscriber.state is State.EXACT)
        assert bench.cached() == 3
        subscriber.rebuild(replay=False)
        await until(lambda: bench.heard.retirements == ["rebuild", "rebuild"])
        assert subscriber.state is State.PARTIAL
        assert bench.index.blocks() == {}
        publish(publisher, 4, 5)
        await until(lambda: bench.index.orphans(ENGINE, 0) == 2)
        assert subscriber.state is State.PARTIAL
    assert publisher.requests == [0, 0]


async def test_a_rebuild_does_not_forget_what_came_after_the_reset_that_it_is_about(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT and bench.cached() == 3)
        seen = subscriber.clears
        publisher.publish({"type": "AllBlocksCleared"}, block(1))
        await until(lambda: bench.cached() == 1)
        assert subscriber.clears == seen + 1
        subscriber.rebuild(replay=False, unless_cleared_since=seen)
        publish(publisher, 2, 3)
        await until(lambda: bench.cached() == 3)
        assert (subscriber.state, bench.heard.retirements) == (State.EXACT, [])
        subscriber.rebuild(replay=False, unless_cleared_since=subscriber.clears)
        await until(lambda: bench.heard.retirements == ["rebuild"])
