"""What is no engine behind an address, or one that floods, costs the subscriber nothing for good."""

import asyncio
import itertools

import pytest
import zmq

from kvevents import State
from kvevents.decoder import MAX_PAYLOAD_BYTES
from kvevents.subscriber import SourceAddress, Subscriber, Turns, open_context
from tests.kvevents.bench import ENGINE, Bench, block, publish, until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)  # of ZMTP 3.0


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), GREETING + b"\x00" * 100])
async def test_an_address_where_something_else_answered_for_a_while(bench: Bench, said: bytes) -> None:
    met = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.write(said)
        writer.close()

    async with bench.following(connect_again_s=0.1) as subscriber:
        async with await asyncio.start_server(serve, "127.0.0.1", int(bench.endpoint.rpartition(":")[2])):
            await until(lambda: met >= 3)
        publish(bench.publisher(), 1, 2)
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 2


async def test_a_message_too_large_ends_the_connection_and_the_next_is_made(bench: Bench) -> None:
    async with bench.following(connect_again_s=0.1) as subscriber:
        with zmq.Context() as context, context.socket(zmq.PUB) as pub:
            pub.linger = 0
            pub.bind(bench.endpoint)
            await until(lambda: subscriber.connected)
            numbers = itertools.count()

            def gone() -> bool:
                number = next(numbers)
                pub.send_multipart([b"", number.to_bytes(8, "big"), bytes(MAX_PAYLOAD_BYTES + 1)])
                return not subscriber.connected

            await until(gone)
        publish(bench.publisher(), 1, 2)
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 2
    assert bench.heard.numbers == [0, 1]


@pytest.mark.parametrize("replay", ["tcp://nowhere", "foo://x", "tcp://\ud800:1"])
async def test_a_replay_endpoint_that_is_none_leaves_live_messages(bench: Bench, replay: str) -> None:
    bench.replay = replay
    async with bench.following(replay_quiet_s=0.05) as subscriber:
        publisher = bench.publisher(replay=False)
        await until(lambda: subscriber.connected)

        def partial_or_exact() -> bool:
            publisher.publish(block(1))
            return subscriber.state is not State.UNKNOWN

        await until(partial_or_exact)
        assert bench.cached() == 1


async def test_an_endpoint_that_is_no_text_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.endpoint = "tcp://\ud800:1"
    async with bench.following(replay=False):
        await until(lambda: "cannot follow" in caplog.text)


async def test_a_context_has_room_for_many_sources(bench: Bench) -> None:
    with open_context() as context:
        sockets = [context.socket(zmq.PAIR) for _ in range(1_100)]
        for socket in sockets:
            socket.close(0)


async def test_subscribers_that_share_turns_let_others_run_between_any_two() -> None:
    turns, log = Turns(), []

    async def take(name: str) -> None:
        for _ in range(3):
            await turns.begin()
            log.append(name)
            turns.end()
            await asyncio.sleep(0)

    async def other() -> None:
        for _ in range(6):
            log.append("other")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for name in ("a", "b", "c"):
            tasks.create_task(take(name))
        tasks.create_task(other())
    first = log[: len(log) - log[::-1].index("other")]
    assert sorted(entry for entry in log if entry != "other") == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert max(len(list(run)) for kind, run in itertools.groupby(first, "other".__eq__) if not kind) <= 3


@pytest.mark.parametrize(
    ("busy_s", "least", "most"), [(0.0001, 0.8, 0.9), (0.002, 0.18, 0.25), (0.05, 0.08, 0.1)]
)
async def test_events_get_a_share_of_a_loop_that_is_busy_with_requests(
    busy_s: float, least: float, most: float
) -> None:
    """However long a turn of the loop takes, or else what is known falls behind without end."""
    clock = 0.0
    turns, spent = Turns(lambda: clock), 0.0

    async def requests() -> None:
        nonlocal clock
        while clock < 20:
            clock += busy_s
            await asyncio.sleep(0)

    async def events() -> None:
        nonlocal clock, spent
        while clock < 20:
            await turns.begin()
            while not turns.over:
                clock += 0.0005
                spent += 0.0005
            turns.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(requests())
        tasks.create_task(events())
    assert least <= spent / clock <= most


async def test_a_subscriber_that_is_ended_in_its_turn_gives_it_back(bench: Bench) -> None:
    turns = Turns()
    publisher = bench.publisher()
    publisher.publish(*[{**block(1), "block_hashes": [1], "token_ids": [7] * 2}] * 20_000)
    publisher.settle()
    subscriber = Subscriber(
        ENGINE, SourceAddress(0, bench.endpoint, bench.replay), bench.index, bench.heard, turns=turns
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(subscriber.run())
        await until(lambda: bool(bench.heard.applied))
        task.cancel()
    async with asyncio.timeout(5):
        await turns.begin()
    turns.end()


def test_places_are_given_first_come_first_served() -> None:
    turns = Turns()
    wakes = [asyncio.Event() for _ in range(7)]
    assert [turns.begin_replay(wake) for wake in wakes] == [True] * 4 + [False] * 3
    assert not turns.may_replay
    turns.end_replay()
    assert [wake.is_set() for wake in wakes[4:]] == [True, False, False]
    assert not turns.begin_replay(wakes[0]), "it has had its turn"
    assert not turns.begin_replay(wakes[5])
    turns.leave(wakes[4])
    assert turns.begin_replay(wakes[5])
    turns.leave(wakes[0])
    turns.end_replay()
    assert turns.begin_replay(wakes[6])
    turns.end_replay()
    assert turns.may_replay


class _Watched(Turns):
    asked = 0

    @property
    def may_replay(self) -> bool:
        self.asked += 1
        return super().may_replay


async def test_an_idle_source_is_not_asked_while_others_wait(bench: Bench) -> None:
    """Else live batches would wait for the answer, and the index be taken to be exact."""
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    turns = _Watched()
    address = SourceAddress(0, bench.endpoint, bench.replay)
    subscriber = Subscriber(ENGINE, address, bench.index, turns=turns, probe_s=0.2, probe_again_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(subscriber.run())
        await until(lambda: subscriber.state is State.EXACT)
        others = [asyncio.Event() for _ in range(8)]
        for other in others:
            turns.begin_replay(other)
        turns.asked = 0
        await until(lambda: turns.asked > 2)
        publish(publisher, 4, 5)
        await until(lambda: bench.cached() == 5)
        task.cancel()


async def test_replays_of_many_wait_for_a_place_and_all_come(bench: Bench) -> None:
    publish(bench.publisher(), 1, 50)
    turns = Turns()
    subscribers = [
        Subscriber(f"{ENGINE}{n}", SourceAddress(0, bench.endpoint, bench.replay), bench.index, turns=turns)
        for n in range(12)
    ]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(subscriber.run()) for subscriber in subscribers]
        most = 0

        def exact() -> bool:
            nonlocal most
            most = max(most, turns._replays)
            return all(subscriber.state is State.EXACT for subscriber in subscribers)

        await until(exact)
        for task in running:
            task.cancel()
    assert 0 < most <= 4
    assert turns._replays == 0
