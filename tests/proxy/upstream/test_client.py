"""Each failure between kvproxy and an engine is one kind of error, and kvproxy's own shortages are not blamed
on the engine.
"""

import asyncio
import errno
import itertools
import socket

import pytest

from proxy.errors import ConnectFailedError, LegBrokenError, NoSocketError
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.upstream.client import EngineClient
from proxy.upstream.engine_api.asking import Question, ask
from proxy.upstream.engine_api.models import MODELS
from tests.helpers.echoing import WAYS, echoing_engine
from tests.helpers.service import wait_until
from tests.hostile.raw_engine import answer, raw_engine

BODY = b'{"prompt": "hello", "max_tokens": 3}'
PATH = "/v1/completions"


async def test_a_refused_connection() -> None:
    async with EngineClient() as client:
        with pytest.raises(ConnectFailedError, match="connection refused"):
            await client.post("127.0.0.1:1", PATH, BODY, [])


async def test_an_answer_cut_before_and_within_its_body() -> None:
    async with StandIn() as engine, EngineClient() as client:
        engine.faults.add(Fault(kind="cut", path="/v1/c", times=1))
        with pytest.raises(LegBrokenError, match=engine.address):
            await client.post(engine.address, PATH, BODY, [])
        engine.faults.add(Fault(kind="cut", path="/v1/c", after_bytes=10))
        answer = await client.post(engine.address, PATH, BODY, [])
        with answer, pytest.raises(LegBrokenError, match="the engine's answer was cut off"):
            await answer.read()


async def test_no_piece_of_an_answer_is_in_the_words_of_its_failure() -> None:
    said: list[str] = []
    async with echoing_engine() as engine, EngineClient() as client:
        for _ in WAYS:
            try:
                with await client.post(engine.address, "/v1/marker", b'{"prompt": "marker"}', []) as answer:
                    await answer.read()
            except LegBrokenError as error:
                said.append(str(error))
    assert len(said) >= 7
    assert not [words for words in said if "marker" in words]


@pytest.mark.parametrize("errors", [(errno.EHOSTUNREACH,), (errno.EHOSTUNREACH, errno.ENETUNREACH)])
async def test_no_address_is_in_the_words_of_a_connection_that_failed_late(
    errors: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = itertools.cycle(errors)

    async def fails(_loop: object, _socket: socket.socket, address: tuple[str, int]) -> None:
        raise OSError(next(number), f"Connect call failed {address}")  # in asyncio's words

    def addresses(*_: object, **__: object) -> object:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n + 1}", 1)) for n in range(len(errors))
        ]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(type(loop), "sock_connect", fails)
    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    async with EngineClient() as client:
        with pytest.raises(ConnectFailedError) as failed:
            await client.post("engine.test:1", PATH, BODY, [])
    assert "127.0.0" not in failed.value.words


async def test_a_name_without_an_address() -> None:
    async with EngineClient() as client:
        with pytest.raises(ConnectFailedError, match="its name has no address"):
            await client.post("nowhere.invalid:1", PATH, BODY, [])


async def test_questions_that_are_not_answered_as_they_should() -> None:
    async with StandIn() as engine, EngineClient() as client:
        with pytest.raises(LegBrokenError, match="status 404"):
            await ask(client, engine.address, Question("/nowhere", bytes), 5.0)
        with pytest.raises(LegBrokenError, match="not JSON"):
            await ask(client, engine.address, Question("/metrics", MODELS.read), 5.0)
        engine.faults.add(Fault(kind="hang", path="/v1/models"))
        with pytest.raises(LegBrokenError, match="no answer to /v1/models within"):
            await ask(client, engine.address, MODELS, 0.05)


@pytest.mark.parametrize("status", [b"101 Switching Protocols", b"099 Hm", b"600 Hm", b"999 Hm"])
async def test_a_status_that_is_none_of_an_answer(status: bytes) -> None:
    async with raw_engine({PATH: answer(b"{}", status)}) as engine, EngineClient() as client:
        with pytest.raises(LegBrokenError, match=rf"status {int(status[:3])} is no answer"):
            await client.post(engine.address, PATH, BODY, [])


async def test_an_answer_that_was_announced_is_the_one_after() -> None:
    said = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + answer(b"[1]")
    async with raw_engine({PATH: said}) as engine, EngineClient() as client:
        with await client.post(engine.address, PATH, BODY, []) as whole:
            assert (whole.status, await whole.read()) == (200, b"[1]")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
async def test_our_own_want_of_sockets_is_told_apart(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> socket.socket:
        raise OSError(number, "none left")

    async with EngineClient() as client:
        monkeypatch.setattr(socket, "socket", none_left)
        with pytest.raises(NoSocketError):
            await client.post("127.0.0.1:1", PATH, BODY, [])
        monkeypatch.undo()


async def test_everybody_who_waits_for_an_engine_hears_that_it_is_given_up() -> None:
    async with StandIn() as engine, StandIn() as other, EngineClient() as client:
        for each in (engine, other):
            each.faults.add(Fault(kind="hang", path="/v1/c"))
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(client.post(e.address, PATH, BODY, [])) for e in (engine, engine, other)]
        await wait_until(lambda: len(engine.seen) == 2 and len(other.seen) == 1, "three waiting legs")
        client.give_up(engine.address)
        for leg in waiting[:2]:
            with pytest.raises(LegBrokenError, match="stopped answering"):
                await leg
        assert not waiting[2].done()
        waiting[2].cancel()
