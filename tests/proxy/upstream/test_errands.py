"""An errand ends once: with the whole answer, however it comes, or with the error that `post` would raise."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from proxy.errors import LegBrokenError, TooLongError
from proxy.upstream.client import EngineClient
from proxy.upstream.connection import WHOLE_BYTES
from proxy.upstream.errand import Errand
from tests.helpers.service import wait_until
from tests.proxy.upstream.test_connections import BODY, OK, PATH, STREAM, Engine, Line, ask, engine, gone

MAX_BYTES = 1 << 20


class Errands:
    """Begins errands at one engine, and notes their ends."""

    def __init__(self, client: EngineClient, made: Engine) -> None:
        self.client = client
        self.made = made
        self.ended = 0

    def begin(self, body: bytes = BODY, max_bytes: int = MAX_BYTES) -> Errand | None:
        return self.client.begin(self.made.address, PATH, body, [], max_bytes, self.over)

    def over(self) -> None:
        self.ended += 1

    async def end(self, max_bytes: int = MAX_BYTES) -> Errand:
        """An errand once it is over."""
        before = self.ended
        errand = self.begin(max_bytes=max_bytes)
        assert errand is not None
        await wait_until(lambda: self.ended == before + 1)
        return errand


@contextlib.asynccontextmanager
async def errands(answer: Callable[[Line], Awaitable[None]]) -> AsyncIterator[Errands]:
    """At an engine with one free connection, which answers the next request on it so."""

    async def serve(line: Line) -> None:
        await line.request()
        await line.say(OK)
        while True:
            await line.request()
            await answer(line)

    async with engine(serve) as made, EngineClient() as client:
        assert await ask(client, made) == b"{}"
        yield Errands(client, made)


def saying(answer: bytes) -> Callable[[Line], Awaitable[None]]:
    async def say(line: Line) -> None:
        await line.say(answer)

    return say


WHOLE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
IN_CHUNKS = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'


@pytest.mark.parametrize("answer", [WHOLE, IN_CHUNKS])
async def test_an_answer_comes_in_whatever_pieces(answer: bytes) -> None:
    places = iter(range(len(answer)))

    async def say(line: Line) -> None:
        at = next(places)
        await line.say(answer[:at])
        await asyncio.sleep(0)
        await line.say(answer[at:])

    async with errands(say) as begun:
        for _ in range(len(answer)):
            errand = await begun.end()
            assert (errand.status, errand.data, errand.error) == (200, b'{"a":1}', None)
        assert begun.made.came == 1, "its connection is free again each time"


async def test_an_answer_that_the_close_ends() -> None:
    async def say(line: Line) -> None:
        await line.say(b"HTTP/1.1 200 OK\r\n\r\n{}")
        line.writer.close()

    async with errands(say) as begun:
        errand = await begun.end()
        assert (errand.data, errand.error) == (b"{}", None)
        assert begun.begin() is None, "and nothing is free"


async def close(line: Line) -> None:
    line.writer.close()


async def reset(line: Line) -> None:
    line.reset()


async def cut(line: Line) -> None:
    await line.say(WHOLE[:-3])
    line.writer.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (close, 0),
        (reset, 0),
        (cut, 200),
        (saying(b"HTTP/1.1 2000 OK\r\n\r\n"), 0),
        (saying(b"HTTP/1.1 700 What\r\nContent-Length: 0\r\n\r\n"), 0),
        (saying(STREAM + b"zz\r\n"), 0),
    ],
    ids=["closed", "reset", "cut", "no answer", "no status", "wrong chunks"],
)
async def test_it_fails_as_what_is_posted_fails(
    answer: Callable[[Line], Awaitable[None]], status: int
) -> None:
    async with errands(answer) as begun:
        errand = await begun.end()
        assert errand.status == status
        assert isinstance(errand.error, LegBrokenError)
        assert await ask(begun.client, begun.made) == b"{}"
        with pytest.raises(LegBrokenError) as posted:
            await ask(begun.client, begun.made)
        assert posted.value.words == errand.error.words
        await wait_until(lambda: begun.made.open == 0)
        assert begun.ended == 1


@pytest.mark.parametrize(
    "answer",
    [WHOLE.replace(b"7", b"9000"), STREAM + b"%x\r\n%b" % (9000, b"x" * 1001)],
    ids=["by its length", "by what came"],
)
async def test_no_more_is_held_than_may_come(answer: bytes) -> None:
    async def say(line: Line) -> None:
        await line.say(answer)
        await gone(line)

    async with errands(say) as begun:
        errand = await begun.end(max_bytes=1000)
        assert isinstance(errand.error, TooLongError)
        assert errand.error.words == "its answer to /v1/completions is longer than 1000 bytes"
        await wait_until(lambda: begun.made.open == 0)


async def test_a_long_answer_is_taken_whole() -> None:
    body = b"x" * MAX_BYTES

    async def say(line: Line) -> None:
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with errands(say) as begun:
        for _ in range(2):
            assert (await begun.end()).data == body


async def test_closing_it_ends_it_and_nobody_is_called() -> None:
    came = asyncio.Event()

    async def wait(line: Line) -> None:
        came.set()
        await gone(line)

    async with errands(wait) as begun:
        errand = begun.begin()
        assert errand is not None
        await came.wait()
        errand.close()
        errand.close()
        await wait_until(lambda: begun.made.open == 0)
        assert (begun.ended, begun.begin()) == (0, None)


async def test_it_hears_that_its_engine_is_given_up() -> None:
    async with errands(gone) as begun:
        errand = begun.begin()
        assert errand is not None
        begun.client.give_up(begun.made.address)
        assert errand.error is not None
        assert errand.error.words == "the engine stopped answering"
        await wait_until(lambda: begun.made.open == 0)
        assert begun.ended == 1


async def test_what_takes_time_to_send_is_no_errand() -> None:
    async with errands(saying(WHOLE)) as begun:
        assert begun.begin(b"x" * (WHOLE_BYTES + 1)) is None
        assert begun.begin() is not None
        assert begun.begin() is None, "the connection is in use"
        await wait_until(lambda: begun.ended == 1)


async def test_a_header_that_ends_a_line_is_not_sent() -> None:
    async with errands(saying(WHOLE)) as begun:
        with pytest.raises(LegBrokenError, match="line end"):
            begun.client.begin(begun.made.address, PATH, BODY, [("X-A", "b\r\nX-B: c")], 1, begun.over)
        assert (await begun.end()).data == b'{"a":1}'
        assert begun.made.came == 1
