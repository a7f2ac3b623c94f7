"""KV events and replays of a stand-in, read as a subscriber reads them."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from kvevents import AllBlocksCleared, BlockStored, Event, EventBatch
from proxy.simulation import EventForm, StandIn
from proxy.simulation.live.publisher import END, Publisher
from tests.proxy.simulation.conftest import Ask, Start
from tests.proxy.simulation.driving import COMPLETIONS

TIMEOUT_MS = 10_000
BODY = {"model": "tiny", "temperature": 0, "max_tokens": 1}
decode = msgspec.msgpack.Decoder(EventBatch).decode
Subscribe = Callable[..., Any]


class Subscriber:
    """A SUB socket whose subscription has arrived."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket

    async def frames(self) -> list[bytes]:
        assert await self._socket.poll(TIMEOUT_MS), "no message came"
        return await self._socket.recv_multipart()

    async def batch(self) -> tuple[int, EventBatch]:
        _, number, payload = await self.frames()
        return int.from_bytes(number, "big"), decode(payload)


@pytest.fixture
async def context() -> AsyncIterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as opened:
        yield opened
        opened.destroy(linger=0)


@pytest.fixture
def subscribe(context: zmq.asyncio.Context, until: Any) -> Iterator[Subscribe]:
    """Subscribes to a stand-in; returns when its publisher knows."""
    sockets: list[zmq.asyncio.Socket] = []

    async def connect(engine: StandIn, rank: int = 0) -> Subscriber:
        publisher = engine.ranks[rank].publisher
        assert publisher is not None
        before = publisher.subscriptions()
        socket = context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect((publisher.endpoint or "").replace("*", "127.0.0.1"))
        await until(lambda: publisher.subscriptions() > before)
        sockets.append(socket)
        return Subscriber(socket)

    yield connect
    for socket in sockets:
        socket.close(linger=0)


async def replay(context: zmq.asyncio.Context, engine: StandIn, start: int) -> list[list[bytes]]:
    """Everything a replay answers, its end marker last."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(engine.replay_endpoint)
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        messages: list[list[bytes]] = []
        while not messages or messages[-1][2] != END:
            assert await socket.poll(TIMEOUT_MS), "the replay did not end"
            messages.append(await socket.recv_multipart())
        return messages


def numbers(messages: list[list[bytes]]) -> list[int]:
    assert messages[-1] == [b"", b"", END, b""]
    return [int.from_bytes(message[2], "big") for message in messages[:-1]]


def prompt(seed: int, blocks: int = 2) -> dict[str, Any]:
    return {**BODY, "prompt": [300 + seed] * (4 * blocks + 1)}


async def test_a_batch_is_what_vllm_sends(engine: StandIn, ask: Ask, subscribe: Subscribe) -> None:
    subscriber = await subscribe(engine)
    await ask(engine, {**BODY, "model": "alpha", "prompt": list(range(300, 309)), "cache_salt": "s"})
    topic, number, payload = await subscriber.frames()
    assert (topic, number) == (b"kv-events", bytes(8))
    ts, [event], rank = msgspec.msgpack.decode(payload)
    assert isinstance(ts, float)
    assert rank == 0
    assert list(event) == [
        "type",
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
    ]
    hashes = event.pop("block_hashes")
    assert len(hashes) == 2
    assert all(0 <= h < 2**64 for h in hashes)
    assert event == {
        "type": "BlockStored",
        "parent_block_hash": None,
        "token_ids": list(range(300, 308)),
        "block_size": 4,
        "lora_id": 1,
        "medium": "GPU",
        "lora_name": "alpha",
        "extra_keys": [["alpha", "s"], ["alpha"]],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


async def test_events_come_before_the_answer_is_finished(
    engine: StandIn, http: aiohttp.ClientSession, subscribe: Subscribe
) -> None:
    subscriber = await subscribe(engine)
    body = {**prompt(0), "max_tokens": 180, "stream": True}
    async with http.post(engine.url + COMPLETIONS, json=body) as response:
        number, batch = await subscriber.batch()
        assert number == 0
        assert isinstance(batch.events[0], BlockStored)
        await response.read()
    stored = 2
    while stored < (9 + 180 - 1) // 4:
        _, batch = await subscriber.batch()
        stored += sum(len(e.block_hashes) for e in batch.events if isinstance(e, BlockStored))


async def test_a_hit_says_nothing_unless_a_full_report_is_asked_for(
    engine: StandIn, ask: Ask, subscribe: Subscribe
) -> None:
    subscriber = await subscribe(engine)
    await ask(engine, prompt(0))
    await ask(engine, prompt(0))
    await ask(engine, {**prompt(0), "vllm_xargs": {"kv_cache_report_mode": "full"}})
    (first, one), (second, other) = await subscriber.batch(), await subscriber.batch()
    assert (first, second) == (0, 1)
    assert one.events == other.events


async def test_a_reset_is_heard_with_the_next_batch(engine: StandIn, ask: Ask, subscribe: Subscribe) -> None:
    subscriber = await subscribe(engine)
    await ask(engine, prompt(0))
    assert await ask(engine, None, "/reset_prefix_cache") == (200, {"success": True})
    assert engine.publisher.next_number == 1
    await ask(engine, prompt(0))
    await subscriber.batch()
    number, batch = await subscriber.batch()
    assert number == 1
    assert [type(e) for e in batch.events] == [AllBlocksCleared, BlockStored]


async def test_a_replay_tells_what_was_missed(
    engine: StandIn, ask: Ask, context: zmq.asyncio.Context, subscribe: Subscribe
) -> None:
    assert numbers(await replay(context, engine, 0)) == []
    subscriber = await subscribe(engine)
    for seed in range(4):
        await ask(engine, prompt(seed))
    live = [await subscriber.frames() for _ in range(4)]
    assert [message[1:] for message in (await replay(context, engine, 0))[:-1]] == live
    assert numbers(await replay(context, engine, 2)) == [2, 3]
    assert numbers(await replay(context, engine, 99)) == []


async def test_the_replay_buffer_wraps(start: Start, ask: Ask, context: zmq.asyncio.Context) -> None:
    engine = await start(block_size=4, blocks=64, max_model_len=200, buffer_steps=3)
    for seed in range(5):
        await ask(engine, prompt(seed))
    assert numbers(await replay(context, engine, 0)) == [2, 3, 4]


async def test_a_replay_request_without_delimiter_is_dropped(
    engine: StandIn, context: zmq.asyncio.Context
) -> None:
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(engine.replay_endpoint)
        await socket.send_multipart([bytes(8)])
        await socket.send_multipart([b"", b""])  # an empty number is 0
        assert await socket.poll(TIMEOUT_MS)
        assert await socket.recv_multipart() == [b"", b"", END, b""]
        assert not await socket.poll(0)


async def test_a_slow_reader_loses_messages_and_maybe_the_end(context: zmq.asyncio.Context) -> None:
    publisher = Publisher(form=EventForm())
    publisher.open("tcp://*:0", "tcp://*:0")
    address = (publisher.replay_endpoint or "").replace("*", "127.0.0.1")
    tokens = list(range(4096))
    events: list[Event] = [BlockStored([bytes(32)], None, tokens, 4096)]
    for _ in range(3000):
        publisher.publish(events)
    with context.socket(zmq.DEALER) as slow, context.socket(zmq.DEALER) as other:
        slow.set(zmq.RCVHWM, 1)
        slow.set(zmq.RCVBUF, 4096)
        for socket in (slow, other):
            socket.linger = 0
            socket.connect(address)
        await slow.send_multipart([b"", bytes(8)])
        while publisher.replays == 0:
            await other.send_multipart([b"", b"\xff" * 8])
            assert await other.poll(TIMEOUT_MS)
            await other.recv_multipart()
        while publisher.replays < 2:
            await other.poll(10)
        received = 0
        while await slow.poll(200):
            await slow.recv_multipart()
            received += 1
    assert 0 < received < 3000
    await publisher.close()


async def test_a_restart_counts_from_0_again(engine: StandIn, ask: Ask, context: zmq.asyncio.Context) -> None:
    await ask(engine, prompt(0))
    await ask(engine, prompt(1))
    before = engine.event_sources()
    await engine.restart()
    assert engine.event_sources() == before
    await ask(engine, prompt(2))
    assert numbers(await replay(context, engine, 0)) == [0]


async def test_dropped_messages_are_a_gap_that_a_replay_fills(
    engine: StandIn, ask: Ask, context: zmq.asyncio.Context, subscribe: Subscribe
) -> None:
    subscriber = await subscribe(engine)
    await ask(engine, prompt(0))
    engine.publisher.drop(2)
    for seed in range(1, 4):
        await ask(engine, prompt(seed))
    assert [(await subscriber.batch())[0] for _ in range(2)] == [0, 3]
    assert numbers(await replay(context, engine, 0)) == [0, 1, 2, 3]


async def test_frozen_events_come_in_order_when_thawed(
    engine: StandIn, ask: Ask, subscribe: Subscribe
) -> None:
    subscriber = await subscribe(engine)
    engine.publisher.freeze()
    for seed in range(3):
        await ask(engine, prompt(seed))
    engine.publisher.thaw()
    assert [(await subscriber.batch())[0] for _ in range(3)] == [0, 1, 2]


async def test_a_frozen_publisher_answers_replays_when_thawed(
    engine: StandIn, ask: Ask, context: zmq.asyncio.Context
) -> None:
    engine.publisher.freeze()
    await ask(engine, prompt(0))
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(engine.replay_endpoint)
        await socket.send_multipart([b"", bytes(8)])
        assert not await socket.poll(30)
        assert engine.publisher.replays == 0
        engine.publisher.thaw()
        assert await socket.poll(TIMEOUT_MS)
        first = await socket.recv_multipart()
    assert first[2] == bytes(8)  # what was frozen went out before


async def test_every_rank_has_its_own_source(start: Start, ask: Ask, http: Any, subscribe: Subscribe) -> None:
    engine = await start(block_size=4, blocks=64, max_model_len=200, ranks=2)
    async with http.get(engine.url + "/kv_event_sources") as response:
        sources = await response.json()
    assert list(sources) == ["0", "1"]
    assert list(sources["0"]) == [
        "enable_kv_cache_events",
        "publisher",
        "endpoint",
        "replay_endpoint",
        "buffer_steps",
        "hwm",
        "max_queue_size",
        "topic",
    ]
    assert all(source["endpoint"].startswith("tcp://*:") for source in sources.values())
    subscriber = await subscribe(engine, rank=1)
    await ask(engine, prompt(0), COMPLETIONS, **{"X-data-parallel-rank": "1"})
    assert (await subscriber.batch())[1].data_parallel_rank == 1


async def test_no_events_no_sources(start: Start, http: Any) -> None:
    engine = await start(events=None)
    async with http.get(engine.url + "/kv_event_sources") as response:
        assert await response.json() == {}


@pytest.mark.parametrize("form", [EventForm(arrays=True), EventForm(bytes_hashes=True)])
async def test_other_forms_of_events(start: Start, ask: Ask, subscribe: Subscribe, form: EventForm) -> None:
    engine = await start(block_size=4, blocks=64, max_model_len=200, event_form=form)
    subscriber = await subscribe(engine)
    await ask(engine, prompt(0))
    *_, payload = await subscriber.frames()
    _, [event], _ = msgspec.msgpack.decode(payload)
    if form.arrays:
        assert event[0] == "BlockStored"
        assert event[2:5] == [None, [300] * 8, 4]
    else:
        assert [len(h) for h in event["block_hashes"]] == [32, 32]


async def test_a_publisher_may_connect_to_its_reader(
    start: Start, ask: Ask, context: zmq.asyncio.Context
) -> None:
    with context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.subscribe(b"")
        address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        engine = await start(block_size=4, blocks=64, max_model_len=200, events_connect=address, replay=None)
        [source] = engine.event_sources().values()
        assert (source["endpoint"], source["replay_endpoint"]) == (address, None)
        sent = 0
        while not await socket.poll(20):  # a connecting publisher learns of subscriptions when it sends
            await ask(engine, prompt(sent))
            sent += 1
        topic, number, _ = await socket.recv_multipart()
        assert topic == b"kv-events"
        assert int.from_bytes(number, "big") < sent
