"""What is poured is taken in the turn of the loop in which it arrives, loses nothing to what else happens on
its connection, and is late only if nothing arrives."""

import asyncio

import pytest

from proxy.errors import DeadlineError, LegBrokenError
from proxy.upstream.client import EngineAnswer, EngineClient
from proxy.upstream.connection import MAX_HELD_BYTES
from tests.proxy.upstream.test_connections import BODY, PATH, STREAM, Line, engine

LONG_S = 30.0


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


async def rest(answer: EngineAnswer) -> bytes:
    """What comes after what was poured."""
    found = b""
    while piece := await answer.next_chunk(LONG_S):
        found += piece
    return found


async def test_a_whole_body_is_taken_up_to_its_end() -> None:
    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(STREAM)
            for number in range(50):
                await line.say(chunk(b"%d," % number))
                await asyncio.sleep(0)
            await line.say(END)

    async with engine(serve) as made, EngineClient() as client:
        for _ in range(2):  # its connection is used again
            got: list[bytes] = []
            with await client.post(made.address, PATH, BODY, []) as answer:

                def take(piece: bytes, got: list[bytes] = got) -> bool:
                    got.append(piece)
                    return True

                await answer.pour(take, LONG_S)
                assert await answer.next_chunk() == b""
            assert b"".join(got) == b"".join(b"%d," % number for number in range(50))
        assert made.came == 1


async def test_whoever_has_enough_finds_what_came_meanwhile_afterwards() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + chunk(b"a"))
        for letter in (b"b", b"c", b"d"):
            await asyncio.sleep(0.01)
            await line.say(chunk(letter))
        await line.say(END)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            got: list[bytes] = []

            def take(piece: bytes) -> bool:
                got.append(piece)
                return len(b"".join(got)) < 2

            await answer.pour(take, LONG_S)
            taken = b"".join(got)
            assert len(taken) >= 2
            await asyncio.sleep(0.05)
            assert taken + await rest(answer) == b"abcd"


@pytest.mark.parametrize("way", ["reset", "close", "nonsense"])
async def test_bytes_poured_before_a_break_are_all_there_is(way: str) -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + chunk(b"a"))
        await asyncio.sleep(0.02)
        await line.say(chunk(b"b") + (b"zz\r\n" if way == "nonsense" else b""))
        if way == "reset":
            await asyncio.sleep(0.05)
            line.reset()

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            got: list[bytes] = []

            def take(piece: bytes) -> bool:
                got.append(piece)
                return True

            await answer.pour(take, LONG_S)
            assert b"".join(got) == b"ab"
            with pytest.raises(LegBrokenError, match="cut off"):
                await answer.next_chunk()


async def test_time_runs_from_the_last_piece() -> None:
    """Each comes in time, all of them together do not; then nothing comes any more."""
    limit_s, pieces = 1.0, 12

    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + chunk(b"a"))
        for _ in range(pieces):
            await asyncio.sleep(limit_s / 10)
            await line.say(chunk(b"b"))
        await line.reader.read()

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            got: list[bytes] = []

            def take(piece: bytes) -> bool:
                got.append(piece)
                return True

            with pytest.raises(DeadlineError, match="nothing for 1 s"):
                await answer.pour(take, limit_s)
            assert b"".join(got) == b"a" + b"b" * pieces


async def test_whoever_leaves_takes_nothing_more_and_the_connection_along() -> None:
    left = asyncio.Event()

    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + chunk(b"a"))
        await left.wait()
        while True:
            await line.say(chunk(b"b"))
            await asyncio.sleep(0.01)

    async with engine(serve) as made, EngineClient() as client:
        got: list[bytes] = []
        poured = asyncio.Event()

        def take(piece: bytes) -> bool:
            got.append(piece)
            poured.set()
            return True

        async def leg() -> None:
            with await client.post(made.address, PATH, BODY, []) as answer:
                await answer.pour(take, LONG_S)

        task = asyncio.get_running_loop().create_task(leg())
        await poured.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()
        await asyncio.sleep(0.05)
        assert got == [b"a"]


async def test_whoever_takes_nothing_holds_up_the_engine_and_no_memory() -> None:
    piece, said = chunk(b"x" * (1 << 14)), 0

    async def serve(line: Line) -> None:
        nonlocal said
        await line.request()
        await line.say(STREAM)
        for _ in range(2000):
            await line.say(piece)
            said += 1
        await line.say(END)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            size_bytes = 0

            def take(data: bytes) -> bool:
                nonlocal size_bytes
                size_bytes += len(data)
                return False

            await answer.pour(take, LONG_S)
            before = -1
            while before != said:  # until nothing more fits anywhere
                before = said
                await asyncio.sleep(0.3)
            assert said < 2000
            held = await answer.next_chunk()
            assert len(held) < 8 * MAX_HELD_BYTES
            size_bytes += len(held) + len(await rest(answer))
            assert size_bytes == 2000 << 14


async def test_an_engine_that_is_given_up_ends_it() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + chunk(b"a"))
        await line.reader.read()

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:

            def take(_: bytes) -> bool:
                asyncio.get_running_loop().call_soon(client.give_up, made.address)
                return True

            await answer.pour(take, LONG_S)
            with pytest.raises(LegBrokenError, match="stopped answering"):
                await answer.next_chunk()
