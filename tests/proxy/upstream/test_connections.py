"""A connection carries one request after the other; whatever an engine or a client does to it, no answer is
lost, cut in silence or given to somebody else, and nothing stays open."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from proxy.config import parse_instance
from proxy.descriptors import Descriptors
from proxy.errors import ConnectFailedError, DeadlineError, LegBrokenError
from proxy.phases import Role
from proxy.tasks import TaskOwner
from proxy.upstream.client import EngineClient
from proxy.upstream.connection import MAX_HELD_BYTES
from tests.helpers.resolver import Resolver, resolver
from tests.helpers.service import wait_until

__all__ = ["resolver"]

PATH = "/v1/completions"
BODY = b'{"prompt": "hello"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Serve = Callable[["Line"], Awaitable[None]]


class Line:
    """One connection as the engine has it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request. Raises IncompleteReadError if none comes."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await self.reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
        return head, body

    async def say(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close it so that the other side gets a reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Engine:
    """What its connections do is told it; it counts them."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.came = self.open = 0
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(Line(self.came, reader, writer))
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[Engine]:
    """An engine on a port of its own."""
    tasks = TaskOwner("engine")
    made = Engine(serve)
    server = await asyncio.start_server(
        lambda reader, writer: tasks.create(made.serve(reader, writer), name="line"), "127.0.0.1", 0
    )
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await tasks.close()


async def ask(client: EngineClient, made: Engine, body: bytes = BODY) -> bytes:
    """A whole answer."""
    with await client.post(made.address, PATH, body, []) as answer:
        return await answer.read()


def no_limits() -> Descriptors:
    """Only counts the connections to engines."""
    return Descriptors(
        1 << 16, open_now=lambda: 0, clock=lambda: 0.0, tell=lambda _: None, with_operators=False
    )


async def gone(line: Line) -> None:
    """Wait until the other side closes."""
    with contextlib.suppress(ConnectionError):
        while await line.reader.read(1 << 16):
            pass


async def test_one_connection_serves_one_request_after_the_other() -> None:
    answers = [
        OK,
        STREAM + b"1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]

    async def serve(line: Line) -> None:
        for said in answers * 2:
            await line.request()
            await line.say(said)

    async with engine(serve) as made, EngineClient() as client:
        assert [await ask(client, made) for _ in range(8)] == [b"{}", b"x", b"oops", b""] * 2
        assert made.came == 1


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        OK + b"x",
    ],
)
async def test_a_connection_that_is_not_fit_for_another_request_is_closed(said: bytes) -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(said)
        await gone(line)

    async with engine(serve) as made, EngineClient() as client:
        for count in range(1, 4):
            assert await ask(client, made) == b"{}"
            assert made.came == count
        await wait_until(lambda: made.open == 0, "all closed")


async def test_bytes_that_nobody_asked_for_are_no_answer_to_the_next_request() -> None:
    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)
            if line.number == 1:
                await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with engine(serve) as made, EngineClient() as client:
        assert await ask(client, made) == b"{}"
        await wait_until(lambda: made.open == 0, "it is closed")
        assert await ask(client, made) == b"{}"


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await line.say(b"lo")

    async with engine(serve) as made, EngineClient() as client:
        assert [await ask(client, made) for _ in range(2)] == [b"hello", b"hello"]


async def test_a_get_is_sent_again_if_a_kept_connection_turns_out_to_be_closed() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(OK)
        if line.number == 1:
            await line.request()
            line.reset()
        else:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient() as client:
        for _ in range(2):
            assert await client.exchange("GET", made.address, "/health", None, 30.0) == (200, b"{}")
        assert made.came == 2


async def test_a_leg_is_not_sent_again_by_itself() -> None:
    """The engine may have acted on it: what becomes of it is for who knows what it holds."""

    async def serve(line: Line) -> None:
        await line.request()
        await line.say(OK)
        await line.request()
        line.reset()

    async with engine(serve) as made, EngineClient() as client:
        assert await ask(client, made) == b"{}"
        with pytest.raises(LegBrokenError, match="no answer"):
            await ask(client, made)
        assert made.came == 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "after", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", STREAM, STREAM + b"5\r\nhel", OK[:-1]]
)
async def test_a_reset_is_never_the_end_of_an_answer(after: bytes, *, large: bool) -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(after)
        line.reset()

    async with engine(serve) as made, EngineClient() as client:
        for _ in range(3):
            with pytest.raises(LegBrokenError):
                await ask(client, made, b"x" * (3 << 20) if large else BODY)


@pytest.mark.parametrize("at", [0, 4, 47, 48, 50])
async def test_an_engine_may_answer_before_it_has_all_of_a_body(at: int) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong"

    async def serve(line: Line) -> None:
        await line.reader.readuntil(b"\r\n\r\n")
        await line.say(refusal[:at])
        await asyncio.sleep(0.05)
        await line.say(refusal[at:])
        await gone(line)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, b"x" * (32 << 20), []) as answer:
            assert (answer.status, await answer.read()) == (413, b"long")
        await wait_until(lambda: made.open == 0, "a connection with half a request on it is closed")


async def test_a_large_body_arrives_as_it_is() -> None:
    body = bytes(range(256)) * (40 << 10)
    got: list[bytes] = []

    async def serve(line: Line) -> None:
        while True:
            _, body = await line.request()
            got.append(body)
            await line.say(OK)

    async with engine(serve) as made, EngineClient() as client:
        assert list(await asyncio.gather(ask(client, made, body), ask(client, made))) == [b"{}", b"{}"]
    assert sorted(got, key=len) == [BODY, body]


async def test_a_reader_that_is_slow_holds_up_its_engine_and_not_our_memory() -> None:
    piece = b"%x\r\n%s\r\n" % (1 << 14, b"x" * (1 << 14))
    count = 2000
    said = 0
    both = asyncio.Event()

    async def serve(line: Line) -> None:
        nonlocal said
        await line.request()
        await line.say(STREAM)
        for _ in range(count):
            await line.say(piece)
            said += 1
        await line.say(b"0\r\n\r\n")
        both.set()

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            before = -1
            while before != said:  # until nothing more fits anywhere
                before = said
                await asyncio.sleep(0.5)
            assert said < count
            first = await answer.next_chunk()
            assert MAX_HELD_BYTES < len(first) < 8 * MAX_HELD_BYTES
            size_bytes = len(first)
            while chunk := await answer.next_chunk():
                size_bytes += len(chunk)
            assert size_bytes == count << 14
        await both.wait()


async def test_framing_without_a_byte_of_the_body_puts_off_no_deadline() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(STREAM + b"1\r\nx\r\n1")
        for _ in range(2000):
            await line.say(b";e")
            await asyncio.sleep(0.01)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            assert await answer.next_chunk() == b"x"
            with pytest.raises(DeadlineError, match=r"nothing for 0\.2 s"):
                await answer.next_chunk(0.2)


@pytest.mark.parametrize("phase", ["sending", "head", "body", "read"])
async def test_whoever_goes_away_takes_the_connection_along(phase: str) -> None:
    waits = asyncio.Event()

    async def serve(line: Line) -> None:
        if phase == "sending":
            await line.reader.readuntil(b"\r\n\r\n")
        else:
            await line.request()
        if phase in {"body", "read"}:
            await line.say(STREAM + b"1\r\nx\r\n")
        waits.set()
        if phase == "sending":
            await asyncio.sleep(0.2)  # the socket's buffers are full by then
        await gone(line)

    limits = no_limits()

    async with engine(serve) as made, EngineClient(descriptors=limits) as client:

        async def leg() -> None:
            body = b"x" * (32 << 20) if phase == "sending" else BODY
            with await client.post(made.address, PATH, body, []) as answer:
                if phase == "read":
                    await answer.read()
                assert await answer.next_chunk() == b"x"
                await answer.next_chunk()

        task = asyncio.get_running_loop().create_task(leg())
        await waits.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limits.legs == 0
        await wait_until(lambda: made.open == 0, "the engine sees it")
        await wait_until(lambda: limits.closing == 0, "its descriptor is not open any more")


async def test_a_connection_that_comes_about_for_nobody_is_closed() -> None:
    async def serve(line: Line) -> None:
        await gone(line)

    limits = no_limits()
    async with engine(serve) as made, EngineClient(descriptors=limits) as client:
        loop = asyncio.get_running_loop()
        for turns in range(6):  # cancelled in each turn of the loop that connecting takes
            task = loop.create_task(ask(client, made))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await wait_until(lambda: made.open == 0, "none is left")
        assert limits.legs == 0


async def test_the_next_address_of_a_name_is_tried(resolver: Resolver) -> None:
    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient() as client:
        port = made.address.rpartition(":")[2]
        resolver.says["a.test"] = ["127.0.0.9", "127.0.0.1"]
        for _ in range(4):  # each of them is the first in turn
            with await client.post(f"a.test:{port}", PATH, BODY, []) as answer:
                assert await answer.read() == b"{}"


async def test_an_engine_is_heard_while_its_leg_runs_and_after_its_connection_is_closed() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        await gone(line)

    async with engine(serve) as made, EngineClient() as client:
        before = time.monotonic()
        with await client.post(made.address, PATH, BODY, []) as answer:
            assert await answer.next_chunk() == b"{"
            heard_at = client.heard_at(made.address)
            assert heard_at is not None
            assert heard_at >= before
        await wait_until(lambda: made.open == 0, "it is closed")
        assert client.heard_at(made.address) == heard_at


async def test_an_engine_that_leaves_takes_its_free_connections_along() -> None:
    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient() as client:
        assert await ask(client, made) == b"{}"
        assert client.heard_at(made.address) is not None
        client.forget(made.address)
        await wait_until(lambda: made.open == 0, "it is closed")
        assert client.heard_at(made.address) is None


async def test_after_the_client_nothing_is_open() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(OK)
        await gone(line)

    async with engine(serve) as made:
        async with EngineClient() as client:
            await asyncio.gather(*(ask(client, made) for _ in range(5)))
        await wait_until(lambda: made.open == 0, "all closed")


async def test_an_answer_of_an_engine_that_is_given_up_is_not_whole() -> None:
    """Not even where the engine's own close would be its end."""

    async def serve(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await gone(line)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            assert await answer.next_chunk() == b"hel"
            loop = asyncio.get_running_loop()
            loop.call_later(0.05, client.give_up, made.address)
            with pytest.raises(LegBrokenError, match="the engine stopped answering"):
                await answer.next_chunk()


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_an_engine_that_reads_no_more_of_a_large_body_and_says_nothing_is_not_waited_for(
    said: bytes,
) -> None:
    async def serve(line: Line) -> None:
        await line.reader.readuntil(b"\r\n\r\n")
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # as all that read have it
        await asyncio.sleep(0.2)  # the buffers are full
        await line.say(said)
        if not said:
            line.writer.write_eof()
        await asyncio.sleep(20)

    async with engine(serve) as made, EngineClient() as client, asyncio.timeout(10):
        with pytest.raises(LegBrokenError, match="no answer"):
            await ask(client, made, b"x" * (32 << 20))


async def test_a_get_to_an_engine_that_is_given_up_is_not_sent_again() -> None:
    async def serve(line: Line) -> None:
        await line.request()
        await line.say(OK)
        await line.request()
        await gone(line)

    async with engine(serve) as made, EngineClient() as client:
        await client.exchange("GET", made.address, "/health", None, 30.0)
        asyncio.get_running_loop().call_later(0.05, client.give_up, made.address)
        with pytest.raises(LegBrokenError, match="the engine stopped answering"):
            await client.exchange("GET", made.address, "/health", None, 30.0)
        assert made.came == 1


async def test_a_connection_whose_answer_was_read_late_is_not_used_again() -> None:
    """Its engine may have closed it meanwhile, and a leg sent on it would be lost."""

    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient(keepalive_s=0.2) as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            await asyncio.sleep(0.3)
            assert await answer.read() == b"{}"
        assert await ask(client, made) == b"{}"
        assert made.came == 2


async def test_nothing_is_kept_of_an_engine_that_left_once_its_last_leg_is_over() -> None:
    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient() as client:
        with await client.post(made.address, PATH, BODY, []) as answer:
            client.forget(made.address)
            assert await answer.read() == b"{}"
        assert client.heard_at(made.address) is None
        assert not client._pool._engines
        await wait_until(lambda: made.open == 0, "it is closed")


async def test_an_engine_is_never_spoken_to_without_tls_once_it_wants_it() -> None:
    """Not on a connection from before, and not for a leg that is sent after the engine has left."""

    async def serve(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with engine(serve) as made, EngineClient(connect_timeout_s=1.0) as client:
        spec = parse_instance(f"https://{made.address}", Role.BOTH)
        with await client.post(made.address, PATH, BODY, []) as answer:
            client.reach(spec)
            assert await answer.read() == b"{}"
        with pytest.raises(ConnectFailedError):  # it does not speak TLS
            await ask(client, made)
        client.forget(made.address)
        with pytest.raises(ConnectFailedError):
            await ask(client, made)


def test_a_request_cancelled_as_it_connects_is_not_counted_for_good() -> None:
    """On the loop of the service: it does not tell of connections that were cancelled in the turn in which
    they came about."""

    async def cancelled() -> None:
        async def serve(line: Line) -> None:
            await gone(line)

        limits = no_limits()
        async with engine(serve) as made, EngineClient(descriptors=limits) as client:
            loop = asyncio.get_running_loop()
            for turns in range(8):
                for _ in range(5):
                    task = loop.create_task(ask(client, made))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
            await asyncio.sleep(0.05)
            assert (limits.legs, len(limits._closing)) == (0, 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(cancelled())


async def test_a_leg_that_connects_counts_once() -> None:
    counted: list[int] = []

    async def serve(line: Line) -> None:
        counted.append(limits.legs)
        await line.request()
        counted.append(limits.legs)
        await line.say(OK)

    limits = no_limits()
    async with engine(serve) as made, EngineClient(descriptors=limits) as client:
        assert await ask(client, made) == b"{}"
    assert counted == [1, 1]
