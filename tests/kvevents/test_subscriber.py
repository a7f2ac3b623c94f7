"""The subscriber on real sockets, against a publisher that behaves as vLLM's, and misbehaves as seen in the field."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import zmq

from kvevents import (
    BlockStored,
    NullObserver,
    PrefixIndex,
    Prompt,
    Reason,
    Slot,
    SourceAddress,
    State,
    Subscriber,
)
from kvevents.source_events import Connected, Live
from tests.kvevents.publisher import Publisher, free_port

ENGINE = "engine:8000"
SLOT = Slot(ENGINE, 0, "GPU")
DEADLINE_S = 15.0


class Heard(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.retirements: list[str] = []
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

    def retired(self, *, instance: str, rank: int, why: str) -> None:
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

    def __init__(self) -> None:
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
        options = {"probe_s": 60.0, "replay_quiet_s": 5.0, **options}
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


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for publisher in bench.publishers:
        publisher.close()


def publish(publisher: Publisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.publish(block(number))


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


async def test_live_batches_during_a_long_replay_are_applied_after_it(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 600)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: bool(publisher.requests))
        publish(publisher, 601, 700)
        await until(lambda: subscriber.state is State.EXACT and bench.cached() == 700)
    assert bench.heard.numbers == list(range(700))
    assert bench.heard.retirements == []


@pytest.mark.parametrize("parts", [2, 3])
async def test_replays_of_other_releases(bench: Bench, parts: int) -> None:
    publisher = bench.publisher(parts=parts)
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 3


async def test_a_gap_is_filled_by_a_replay(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: number in {2, 3})
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 6)
        await until(lambda: bench.cached() == 6)
        await until(lambda: subscriber.state is State.EXACT)
    assert bench.heard.missing == 2
    assert bench.heard.retirements == []
    assert publisher.requests == [0, 1]


async def test_a_gap_the_buffer_has_outgrown(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: 2 <= number < 20, buffer_steps=3)
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 20)
        publisher.publish({"type": "AllBlocksCleared"}, block(1), block(2))
        await until(lambda: subscriber.state is State.PARTIAL)
        await until(lambda: bench.cached() == 2)
    assert bench.heard.retirements == ["gap"]


async def test_a_wrapped_buffer_makes_a_late_joiner_partial(bench: Bench) -> None:
    publisher = bench.publisher(buffer_steps=2)
    publish(publisher, 1, 9)
    publisher.publish(block(1))
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.heard.numbers == [8, 9]
        assert bench.cached() == 1
        assert bench.index.orphans(ENGINE, 0) == 1


async def test_a_router_that_drops_is_asked_again(bench: Bench) -> None:
    dropped = {(0, 4), (0, 5), (0, 6), (1, 6), (1, -1)}
    publisher = bench.publisher(drop=lambda request, number: (request, number) in dropped)
    publish(publisher, 1, 12)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 12
    assert bench.heard.numbers == list(range(12))
    assert publisher.requests == [0, 3, 5]
    assert bench.heard.replays == [(4, False), (2, False), (6, True)]


async def test_a_lost_end_marker_costs_time_only(bench: Bench) -> None:
    publisher = bench.publisher(drop=lambda _, number: number == -1)
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 3
    assert publisher.requests == [0, 2]


async def test_no_replay_endpoint_and_there_from_the_start(bench: Bench) -> None:
    publisher = bench.publisher(replay=False)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: subscriber.connected)
        assert subscriber.state is State.UNKNOWN
        await _publish_until_heard(bench, publisher)
        # What is published before the subscription has reached the publisher is lost, and then it is partial.
        assert subscriber.state is (State.EXACT if bench.heard.numbers[0] == 0 else State.PARTIAL)


async def test_no_replay_endpoint_and_a_gap(bench: Bench) -> None:
    publisher = bench.publisher(replay=False, lose=lambda number: number == 500)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: subscriber.connected)
        await _publish_until_heard(bench, publisher)
        publisher.settle()
        publish(publisher, publisher.published + 1, 500)
        publisher.settle()
        publisher.publish(block(501))  # lost
        publisher.publish(block(1))
        await until(lambda: "gap" in bench.heard.retirements)
        await until(lambda: bench.cached() == 1)
        assert subscriber.state is State.PARTIAL
        assert bench.heard.missing == 1


async def _publish_until_heard(bench: Bench, publisher: Publisher) -> None:
    number = 0
    while not bench.heard.numbers:
        number += 1
        assert number < 400
        publisher.publish(block(number))
        await asyncio.sleep(0.01)


async def test_a_deaf_replay_endpoint_leaves_live_messages(bench: Bench) -> None:
    publisher = bench.publisher(deaf=True)
    publish(publisher, 1, 2)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.1) as subscriber:
        await until(lambda: len(bench.heard.replays) >= 3)
        publisher.publish(block(1))
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.cached() == 1


async def test_a_replay_endpoint_that_comes_back_makes_it_exact(bench: Bench) -> None:
    publisher = bench.publisher(deaf=True)
    publish(publisher, 1, 2)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.1, probe_s=0.2) as subscriber:

        def partial() -> bool:
            publisher.publish(block(publisher.published + 1))
            return subscriber.state is State.PARTIAL

        def exact() -> bool:  # while the source is never idle
            partial()
            return subscriber.state is State.EXACT

        await until(partial)
        publisher._deaf = False
        await until(exact)
        assert bench.heard.retirements == ["rebuild"]
    assert bench.heard.numbers[-1] < publisher.published
    first = bench.heard.numbers.index(0)
    assert bench.heard.numbers[first:] == list(range(len(bench.heard.numbers) - first))


async def test_what_an_index_held_before_is_forgotten_for_that_rank_only(bench: Bench) -> None:
    for rank in (0, 1):
        bench.index.store(ENGINE, rank, BlockStored([1], None, [1, 2], 2))
    async with bench.following() as subscriber:
        bench.publisher()
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.index.blocks() == {Slot(ENGINE, 1, "GPU"): 1}


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


async def test_a_lost_last_batch_is_found_by_a_probe(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: number >= 2)
    async with bench.following(probe_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 4)
        await until(lambda: bench.cached() == 4)
        assert subscriber.state is State.EXACT
    assert bench.heard.missing == 0
    assert bench.heard.retirements == []


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
        self.endpoint, self.replay = first.endpoint, first.replay
        self.index, self.heard, self.publishers = PrefixIndex(), Heard(), []


def bench2_heard(subscriber: Subscriber) -> Heard:
    observer = subscriber._observer
    assert isinstance(observer, Heard)
    return observer


async def test_an_engine_that_connects_to_us(bench: Bench) -> None:
    async with bench.following(bind=True) as subscriber:
        publisher = bench.publisher(bind=False)
        publish(publisher, 1, 2)
        await until(lambda: subscriber.state is State.EXACT and bench.cached() == 2)
        publish(publisher, 3, 3)
        await until(lambda: bench.cached() == 3)


async def test_an_address_in_use_is_tried_again_quietly(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvevents.subscriber._OPEN_AGAIN_S", 0.02)
    with zmq.Context() as context, context.socket(zmq.SUB) as taken:
        taken.bind(bench.endpoint)
        async with bench.following(bind=True) as subscriber:
            await until(lambda: bool(caplog.records))
            taken.close()
            publish(bench.publisher(bind=False), 1, 1)
            await until(lambda: subscriber.state is State.EXACT)
    assert len(caplog.records) == 1
    assert bench.endpoint in caplog.text


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
