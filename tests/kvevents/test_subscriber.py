"""The subscriber on real sockets, against a publisher that behaves as vLLM's, and misbehaves as seen in the
field."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import zmq

from kvevents import BlockStored, Reason, Slot, State
from kvevents.subscriber import SourceAddress, Subscriber
from tests.kvevents.bench import ENGINE, Bench, Heard, block, publish, until


async def test_a_late_joiner_hears_what_came_before_and_what_comes(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert subscriber.connected
        assert bench.cached() == 3
        publish(publisher, 4, 5)
        await until(lambda: bench.cached() == 5)
    assert bench.heard.states == [State.EXACT, State.UNKNOWN]
    assert bench.heard.replays == [(3, True)]
    assert bench.heard.applied == {"BlockStored": 5}
    assert bench.heard.retirements == []
    assert publisher.requests == [0]


async def test_an_engine_that_has_published_nothing_is_exact(bench: Bench) -> None:
    publisher = bench.publisher()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 1)
        await until(lambda: bench.cached() == 1)


async def test_all_kinds_of_events_arrive_in_order(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.publish(block(1), block(2), {"type": "BlockRemoved", "block_hashes": [2], "medium": "GPU"})
    publisher.publish({"type": "BlockMoved"}, {"type": "AllBlocksCleared"}, block(1))
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 1
    assert bench.heard.applied == {"BlockStored": 3, "BlockRemoved": 1, "AllBlocksCleared": 1}
    assert bench.heard.drops == {Reason.UNKNOWN_TYPE: 1}


async def test_a_broken_event_makes_the_slot_partial(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.publish({"type": "BlockStored"}, block(1))
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.cached() == 1
    assert bench.heard.drops == {Reason.BROKEN_EVENT: 1}


@pytest.mark.parametrize(
    "removal", [{"type": "BlockRemoved", "block_hashes": None}, {"type": "TierBlocksCleared"}]
)
async def test_what_a_removal_may_have_named_that_cannot_be_read_is_forgotten(
    bench: Bench, caplog: pytest.LogCaptureFixture, removal: dict[str, Any]
) -> None:
    publisher = bench.publisher()
    publisher.publish(block(1))
    publisher.publish(block(2), removal)
    publisher.publish(block(1))
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.index.blocks() == {Slot(ENGINE, 0, "GPU"): 1}
        assert (subscriber.epoch, subscriber.damages) == (1, 1)
    assert bench.heard.retirements == ["damaged"]
    assert bench.heard.drops == {Reason.BROKEN_REMOVAL: 1}
    assert caplog.text.count("may have told of removed blocks") == 1


async def test_what_an_index_held_before_is_forgotten_for_that_rank_only(bench: Bench) -> None:
    for rank in (0, 1):
        bench.index.store(ENGINE, rank, BlockStored([1], None, [1, 2], 2))
    async with bench.following() as subscriber:
        bench.publisher()
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.index.blocks() == {Slot(ENGINE, 1, "GPU"): 1}


async def test_only_the_topic_asked_for_is_heard(bench: Bench) -> None:
    publisher = bench.publisher(topic="kv@one", replay=False)
    async with (
        bench.following(topic="kv@two", replay=False) as other,
        Bench2(bench).following(topic="kv@", replay=False) as subscriber,
    ):
        await until(lambda: other.connected and subscriber.connected)
        second = bench2_heard(subscriber)
        number = 0
        while not second.numbers:
            number += 1
            publisher.publish(block(number))
            await asyncio.sleep(0.01)
        assert bench.heard.numbers == []


class Bench2(Bench):
    """A second subscriber of the same publisher."""

    def __init__(self, first: Bench) -> None:
        super().__init__()
        self.endpoint, self.replay = first.endpoint, first.replay


def bench2_heard(subscriber: Subscriber) -> Heard:
    observer = subscriber._observer
    assert isinstance(observer, Heard)
    return observer


async def test_unreadable_messages_are_counted(bench: Bench) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.linger = 0
        pub.bind(bench.endpoint)
        async with bench.following(replay=False):

            def counted() -> bool:
                pub.send_multipart([b"", b"seven", b""])
                pub.send_multipart([b"only one"])
                return bench.heard.drops.get(Reason.UNREADABLE, 0) > 1

            await until(counted)
            number = 0

            def applied() -> bool:
                nonlocal number
                pub.send_multipart([b"", number.to_bytes(8, "big"), b"\xc1"])
                number += 1
                return State.PARTIAL in bench.heard.states

            await until(applied)
    assert bench.index.blocks() == {}


async def test_what_was_forgotten_is_swept_without_more_events(bench: Bench) -> None:
    publisher = bench.publisher()
    run = {
        **block(1),
        "block_hashes": list(range(1, 5_001)),
        "token_ids": list(range(1, 10_001)),
    }
    publisher.publish(run)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 1_000
        publisher.publish({"type": "AllBlocksCleared"})
        await until(lambda: bench.cached() == 0)
        await until(lambda: len(bench.index._residency) == 0)


async def test_two_subscribers_share_a_context(bench: Bench) -> None:
    publish(bench.publisher(), 1, 2)
    with zmq.Context() as context:
        async with (
            bench.following(context=context) as one,
            Bench2(bench).following(context=context) as two,
        ):
            await until(lambda: one.state is two.state is State.EXACT)
        assert not context.closed


async def test_the_loop_runs_while_a_large_batch_is_applied(bench: Bench) -> None:
    publisher = bench.publisher()
    long_run = {**block(1), "block_hashes": [1], "token_ids": [7] * 2}
    publisher.publish(*[long_run] * 20_000)
    publisher.settle()
    async with bench.following() as subscriber:
        turns = 0
        while subscriber.state is not State.EXACT:
            turns += bool(bench.heard.applied)
            await asyncio.sleep(0)
        assert turns >= 3


Phase = Callable[[Bench, Subscriber], bool]


@pytest.mark.parametrize(
    ("options", "phase"),
    [
        pytest.param(None, lambda bench, subscriber: True, id="connecting"),
        pytest.param(
            {"deaf": True}, lambda bench, subscriber: bool(bench.publishers[0].requests), id="in a replay"
        ),
        pytest.param({}, lambda bench, subscriber: bool(bench.heard.numbers), id="applying"),
        pytest.param({}, lambda bench, subscriber: subscriber.state is State.EXACT, id="live"),
    ],
)
async def test_cancelling_closes_everything(
    bench: Bench, options: dict[str, Any] | None, phase: Phase
) -> None:
    if options is not None:
        publish(bench.publisher(**options), 1, 300)
    with zmq.Context() as context:
        address = SourceAddress(0, bench.endpoint, bench.replay)
        subscriber = Subscriber(ENGINE, address, bench.index, bench.heard, context=context)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(subscriber.run())
            await asyncio.sleep(0)
            await until(lambda: phase(bench, subscriber))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert all(socket.closed for socket in context._sockets)
        assert subscriber.state is State.UNKNOWN
