"""A replay answers with every buffered batch from a number on, then with its end."""

import pytest
import zmq.asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS
from tests.contract.asking import Engine
from tests.contract.listening import END, Journal
from tests.contract.prompts import ids

B = BLOCK_TOKENS


@pytest.fixture
async def journal(engine: Engine, context: zmq.asyncio.Context) -> Journal:
    """The plain engine's events, with three batches at least."""
    made = Journal(context, engine.spec)
    await made.mark()
    for n in range(3):
        await engine.served(ids(B, f"replayed {n} after {made.next}"))
    await made.stored(3)
    return made


async def test_numbers_begin_with_0_and_have_no_gap(journal: Journal) -> None:
    numbers = [number for number, _ in await journal.since(0)]
    assert numbers == list(range(journal.next + 3))


async def test_a_replay_begins_where_it_is_asked_to(journal: Journal) -> None:
    everything = await journal.since(0)
    for start in (1, journal.next, journal.next + 2):
        assert await journal.since(start) == everything[start:]


@pytest.mark.parametrize("beyond", [0, 1, 1000, 2**40])
async def test_beyond_the_end_there_is_only_the_end(journal: Journal, beyond: int) -> None:
    start = journal.next + 3 + beyond
    assert await journal.replay([b"", start.to_bytes(8, "big")]) == [[b"", b"", END, b""]]


async def test_messages_have_their_frames(journal: Journal) -> None:
    messages = await journal.replay([b"", journal.next.to_bytes(8, "big")])
    assert messages[-1] == [b"", b"", END, b""]
    assert len(messages) == 4
    for offset, (delimiter, topic, number, _) in enumerate(messages[:-1]):
        assert (delimiter, topic) == (b"", b"kv-events")
        assert number == (journal.next + offset).to_bytes(8, "big")


@pytest.mark.parametrize("start", [b"", b"\0", b"\0" * 3, b"\0" * 16])
async def test_a_number_may_have_any_length(journal: Journal, start: bytes) -> None:
    assert len(await journal.replay([b"", start])) == journal.next + 3 + 1


async def test_a_request_without_delimiter_is_dropped(
    journal: Journal, engine: Engine, context: zmq.asyncio.Context
) -> None:
    end = (2**40).to_bytes(8, "big")
    with context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{engine.spec.replay_port}")
        await socket.send_multipart([end])
        await socket.send_multipart([b"", end])
        assert await socket.poll(10_000)
        assert await socket.recv_multipart() == [b"", b"", END, b""]
        assert not await socket.poll(100), "only the second request was answered"
