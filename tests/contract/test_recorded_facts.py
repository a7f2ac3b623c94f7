"""What no CPU engine shows twice - other forms of events, a connecting publisher, ranks - agrees with
recordings."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq.asyncio

from proxy.simulation import EventForm, StandIn, StandInConfig
from scripts.workshop.live.asking import COMPLETIONS, ask
from scripts.workshop.live.waiting import wait_until
from tests.contract.prompts import GREEDY, ids, token_ids
from tests.contract.shapes import misfits
from tests.kvevents import recorded

B = 32
WITHIN_S = 10


async def serve(engine: StandIn, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    assert (await ask(session, engine.url, COMPLETIONS, body)).status == 200


async def replayed(context: zmq.asyncio.Context, engine: StandIn, start: int = 0) -> list[tuple[int, bytes]]:
    with context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(engine.replay_endpoint)
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        found: list[tuple[int, bytes]] = []
        while True:
            assert await socket.poll(WITHIN_S * 1000)
            _, _, number, payload = await socket.recv_multipart()
            if number == b"\xff" * 8:
                return found
            found.append((int.from_bytes(number, "big"), payload))


def requests_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The requests that store what a recording stored, None for a reset."""
    prompts: dict[Any, list[int]] = {None: []}
    salts: dict[Any, str | None] = {None: None}
    found: list[dict[str, Any] | None] = []
    for event in events:
        if event["type"] == "AllBlocksCleared":
            found.append(None)
            continue
        parent = event["parent_block_hash"]
        salt = salts[parent] or (event["extra_keys"][0] or [None])[0]
        prompt = list(prompts[parent])
        for index, name in enumerate(event["block_hashes"]):
            prompt += event["token_ids"][index * B : (index + 1) * B]
            prompts[name], salts[name] = list(prompt), salt
        body = GREEDY | {"prompt": [*prompt, 299], "max_tokens": 1}
        found.append(body | ({"cache_salt": salt} if salt else {}))
    return found


def renamed(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events with the n-th hash they mention called n."""
    names: dict[Any, int] = {}

    def name(block: Any) -> int:
        assert isinstance(block, bytes)
        assert len(block) == 32
        return names.setdefault(block, len(names))

    found = []
    for event in events:
        new = dict(event)
        if "block_hashes" in new:
            new["block_hashes"] = [name(block) for block in event["block_hashes"]]
        if (parent := new.get("parent_block_hash")) is not None:
            new["parent_block_hash"] = name(parent)
        found.append(new)
    return found


async def test_bytes_from_a_publisher_that_connects_are_as_recorded(
    session: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    payloads = [payload for _, _, payload in recorded.frames("kv_events_0_32_bytes")]
    theirs = [event for payload in payloads for event in msgspec.msgpack.decode(payload)[1]]
    with context.socket(zmq.SUB) as socket:
        socket.set(zmq.LINGER, 0)
        socket.subscribe(b"")
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        config = StandInConfig(
            block_size=B,
            events_connect=f"tcp://127.0.0.1:{port}",
            replay=None,
            event_form=EventForm(bytes_hashes=True),
        )
        ours: list[dict[str, Any]] = []
        async with StandIn(config) as engine:
            warm = 0
            while not await socket.poll(50):  # a publisher that connects drops what it says before
                await serve(engine, session, ids(B, f"is anybody there {warm}"))
                warm += 1
            last = -1
            while last < engine.publisher.next_number - 1:
                _, number, _ = await socket.recv_multipart()
                last = int.from_bytes(number, "big")
            for body in requests_of(theirs):
                if body is None:
                    assert engine.model.reset_prefix_cache()
                    continue
                await serve(engine, session, body)
            while len(ours) < len(theirs):
                assert await socket.poll(WITHIN_S * 1000)
                topic, _, payload = await socket.recv_multipart()
                assert topic == b"kv-events"
                ours += msgspec.msgpack.decode(payload)[1]
    assert renamed(ours) == renamed(theirs)
    assert [list(event) for event in ours] == [list(event) for event in theirs]


async def test_arrays_say_what_maps_say(session: aiohttp.ClientSession, context: zmq.asyncio.Context) -> None:
    batches = []
    for form in (EventForm(), EventForm(arrays=True)):
        config = StandInConfig(block_size=B, blocks=20, max_model_len=300, event_form=form, loras=("alpha",))
        async with StandIn(config) as engine:
            for n in range(4):
                await serve(engine, session, ids(6 * B, f"arrays {n}", model="alpha" if n % 2 else "tiny"))
            engine.model.reset_prefix_cache()
            await serve(engine, session, ids(6 * B, "arrays", cache_salt="s"))
            batches.append([payload for _, payload in await replayed(context, engine)])
    maps, arrays = batches
    assert {event["type"] for payload in maps for event in msgspec.msgpack.decode(payload)[1]} == {
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    }
    for as_map, as_array in zip(maps, arrays, strict=True):
        expected = msgspec.msgpack.decode(recorded.as_arrays(as_map))
        assert msgspec.msgpack.decode(as_array)[1:] == expected[1:]


async def test_a_buffer_that_has_wrapped_gives_what_is_left(
    session: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    async with StandIn(StandInConfig(block_size=B, buffer_steps=3)) as engine:
        for n in range(5):
            await serve(engine, session, ids(B, f"wraps {n}"))
        for start, numbers in ((0, [2, 3, 4]), (3, [3, 4]), (5, [])):
            assert [number for number, _ in await replayed(context, engine, start)] == numbers


async def test_every_rank_is_a_source_one_port_on(
    session: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    ranks = 2
    async with StandIn(StandInConfig(block_size=B, ranks=ranks)) as engine:
        async with session.get(f"{engine.url}/kv_event_sources") as answer:
            sources = await answer.json()
        assert list(sources) == ["0", "1"]
        for rank in range(ranks):
            headers = {"X-data-parallel-rank": str(rank)}
            assert (await ask(session, engine.url, COMPLETIONS, ids(B, "ranked"), headers)).status == 200
        told = []
        for source in sources.values():
            with context.socket(zmq.DEALER) as socket:
                socket.set(zmq.LINGER, 0)
                socket.connect(source["replay_endpoint"].replace("*", "127.0.0.1"))
                await socket.send_multipart([b"", b""])
                assert await socket.poll(WITHIN_S * 1000)
                told.append(msgspec.msgpack.decode((await socket.recv_multipart())[3]))
        assert [rank for _, _, rank in told] == [0, 1]
        assert told[0][1] == told[1][1]
        refused = await ask(session, engine.url, COMPLETIONS, ids(B, "x"), {"X-data-parallel-rank": "2"})
        assert refused.status == 400
        assert "[0, 2)" in refused.json["error"]["message"]


DEADLY: list[dict[str, Any]] = [
    {"do_remote_prefill": True},
    {"do_remote_prefill": True, "remote_block_ids": []},
]


@pytest.mark.parametrize("params", DEADLY)
async def test_params_without_blocks_end_the_engine(
    session: aiohttp.ClientSession, params: dict[str, Any]
) -> None:
    async with StandIn(StandInConfig(block_size=B)) as engine:
        body = ids(2 * B, "deadly", 4, kv_transfer_params=params)
        answer = await ask(session, engine.url, COMPLETIONS, body)
        error = {"message": str, "type": "InternalServerError", "param": None, "code": 500}
        assert answer.status == 500
        assert list(misfits(answer.json, {"error": error})) == []
        async with asyncio.timeout(WITHIN_S):
            await engine.ended.wait()
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{engine.url}/health")


async def test_a_spent_hold_answers_another_text_with_status_200(session: aiohttp.ClientSession) -> None:
    """By luck a real engine answers right until the blocks are used again; a stand-in has no luck."""
    async with (
        StandIn(StandInConfig(block_size=B)) as prefill,
        StandIn(StandInConfig(block_size=B)) as decode,
    ):
        body = GREEDY | {"prompt": token_ids(2 * B, "spent"), "max_tokens": 8}
        leg = body | {"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        params = (await ask(session, prefill.url, COMPLETIONS, leg)).json["kv_transfer_params"]
        texts = []
        for salt in ("first", "second"):
            again = body | {"kv_transfer_params": params, "cache_salt": salt}
            answer = await ask(session, decode.url, COMPLETIONS, again)
            assert answer.status == 200
            texts.append(answer.text)
        plain = await ask(session, prefill.url, COMPLETIONS, body)
        assert texts[0] == plain.text != texts[1]


async def test_an_engine_that_is_gone_fails_the_pull(session: aiohttp.ClientSession) -> None:
    config = StandInConfig(block_size=B)
    async with StandIn(config) as prefill, StandIn(config) as decode:
        body = ids(2 * B, "gone", 4)
        leg = body | {"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        params = (await ask(session, prefill.url, COMPLETIONS, leg)).json["kv_transfer_params"]
        await prefill.stop()
        answer = await ask(session, decode.url, COMPLETIONS, body | {"kv_transfer_params": params})
        assert answer.status == 500
        assert answer.json["error"]["message"] == "Internal server error"

        async def at_rest() -> bool:
            return decode.model.unfinished == 0 and decode.model.cache.pool.usage == 0

        await wait_until(at_rest, WITHIN_S, "nothing is left of it")
