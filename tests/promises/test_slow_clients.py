"""A client that sends next to nothing keeps its connection for a while only, and takes no other client's
place.
"""

import asyncio
import logging

import pytest

from proxy.edge import read_body as reading
from proxy.edge.app_keys import SERVICE
from proxy.edge.patience import Patience
from proxy.edge.sockets import connections
from proxy.simulation.live.faults import Fault
from tests.helpers.raw import BODY, CHUNKED, GET, LENGTH, POST, connection, send
from tests.helpers.service import fleet, wait_until

SHORT_S = 0.3
LONG_S = 60.0
"""Longer than a test: a bound that must not be the one that acts."""


def patience(**bounds: float) -> Patience:
    """These bounds, and no other that acts."""
    return Patience(**({"head_s": LONG_S, "idle_s": LONG_S, "body_grace_s": LONG_S} | bounds))


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(idle_s=SHORT_S)) as pair:
        received = await send(pair.service, b"")
        assert received.closed
        assert not received.data


@pytest.mark.parametrize("begin", [b"G", b"POST /v1/comp", GET, GET + b"X-A: ", POST + LENGTH, b"\r\n"])
async def test_half_a_head_is_waited_for_no_longer_than_its_time(begin: bytes) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=SHORT_S)) as pair:
        received = await send(pair.service, begin)
        assert received.closed
        assert not received.data


async def test_half_a_head_that_comes_with_its_connection_has_no_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop may read a connection before aiohttp's own task begins to wait for a request."""
    made = connections.Connection.connection_made

    def made_and_read(self: connections.Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        self.data_received(GET)

    monkeypatch.setattr(connections.Connection, "connection_made", made_and_read)
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=SHORT_S)) as pair:
        received = await send(pair.service, b"")
        assert received.closed
        assert not received.data


async def test_the_next_head_has_its_time_from_when_the_answer_before_it_has_ended() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=SHORT_S)) as pair:
        async with connection(pair.service) as (reader, writer):
            pair.engines.decode[0].faults.add(Fault(kind="slow", path="/v1/c", delay_s=3 * SHORT_S, times=1))
            writer.write(POST + LENGTH + b"\r\n" + BODY)
            await wait_until(lambda: bool(pair.service.claims), "a running leg")
            writer.write(GET)
            async with asyncio.timeout(10):
                received_too = await reader.read()
        assert received_too.startswith(b"HTTP/1.1 200 ")


async def test_a_head_that_drips_gets_no_more_time_for_each_drop() -> None:
    async with (
        fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=SHORT_S)) as pair,
        connection(pair.service) as (reader, writer),
    ):
        writer.write(GET)
        try:
            async with asyncio.timeout(20):
                while not reader.at_eof():
                    writer.write(b"X-Drip: 1\r\n")
                    await writer.drain()
                    await asyncio.sleep(SHORT_S / 10)
        except ConnectionError:
            pass
        assert (await pair.service.ask("/health")).status == 200


async def test_the_second_head_of_a_connection_has_its_time_too() -> None:
    async with (
        fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=2.0)) as pair,
        connection(pair.service) as (reader, writer),
    ):
        server = pair.service.runner.server
        assert server is not None
        for _ in range(3):  # whole heads in two pieces: their timers must not outlive them
            writer.write(GET)
            await wait_until(
                lambda: any(
                    isinstance(c, connections.Connection) and c._head_timer is not None
                    for c in server.connections
                ),
                "a head under way",
            )
            writer.write(b"\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(2.4)  # longer than a head may take
        writer.write(GET + b"\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(GET)
        async with asyncio.timeout(10):
            assert not await reader.read()


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n", CHUNKED])
@pytest.mark.parametrize(
    "path", [b"/v1/completions", b"/v1/chat/completions", b"/explain", b"/instances/add"]
)
async def test_a_body_that_does_not_come_is_answered_408(path: bytes, framing: bytes) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(body_grace_s=SHORT_S)) as pair:
        head = POST.replace(b"/v1/completions", path) + b"X-API-Key: admin-key\r\n" + framing
        async with connection(pair.service) as (reader, writer):
            writer.write(head + b"\r\n" + (b"1\r\n{\r\n" if framing == CHUNKED else b"{"))
            async with asyncio.timeout(10):
                answer = await reader.readuntil(b"}}")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"RequestTimeoutError" in answer
        assert b"Connection: close" in answer
        assert not [s for e in pair.engines.all for s in e.seen if s.path.startswith("/v1/c")]


async def test_a_body_that_drips_is_answered_408_and_its_client_is_not_listened_to_for_ever() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(body_grace_s=SHORT_S)) as pair:
        async with connection(pair.service) as (reader, writer):
            writer.write(POST + b"Content-Length: 1000000\r\n\r\n")
            answer = asyncio.get_running_loop().create_task(reader.readline(), name="answer")
            async with asyncio.timeout(20):
                while not answer.done():
                    writer.write(b" ")
                    await asyncio.sleep(SHORT_S / 10)
            assert b" 408 " in await answer
        assert (await pair.service.complete("hello")).status == 200


async def test_a_body_that_keeps_coming_gets_the_time_it_needs() -> None:
    async with (
        fleet(
            prefill=1,
            decode=1,
            kv_events=False,
            patience=patience(body_grace_s=SHORT_S, body_least_bytes_s=0.05),
        ) as pair,
        connection(pair.service) as (reader, writer),
    ):
        writer.write(POST + LENGTH + b"\r\n" + BODY[:1])
        for byte in BODY[1:]:  # three times longer than the grace, and far faster than the least rate
            writer.write(bytes([byte]))
            await asyncio.sleep(3 * SHORT_S / len(BODY))
        assert b" 200 " in await reader.readline()


MIB = 1 << 20
STEADY = [(float(s), s * 16 * 1024) for s in range(1, 4096)]
BURSTS = [(float(s), (1 + s // 9) * 200 * 1024) for s in range(1, 600)]


@pytest.mark.parametrize(
    ("come", "ends_at"),
    [
        ([], 30),
        ([(1.0, 100)], 30 + 100 / 16384),
        ([(float(s), s) for s in range(1, 30)], 30 + 29 / 16384),
        ([(1.0, 100 * 1024)], 30),
        ([(25.0, 160 * 1024)], 35),
        ([(1.0, 100 * MIB)], 11),
        ([(1.0, 100 * MIB), (10.0, 100 * MIB)], 11),
        ([(1.0, 100 * MIB), (10.0, 100 * MIB + 1)], 11 + 1 / 16384),
        ([(1.0, 100 * MIB), (10.0, 101 * MIB)], 20),
        (STEADY, 4095 + 10),
        (BURSTS, 594 + 10),
        ([(float(s), 100 * MIB + s * 8 * 1024) for s in range(19)], 10 + 18 / 2),
    ],
)
def test_a_body_has_time_while_it_comes_and_not_by_its_size(
    come: list[tuple[float, int]], ends_at: float
) -> None:
    pace = reading.Pace(0.0)
    due = pace.due(0.0, 0)
    for now, received_bytes in come:
        assert now < due
        due = pace.due(now, received_bytes)
    assert due == pytest.approx(ends_at, abs=0.01)
    assert pace.due(due, come[-1][1] if come else 0) == due  # looking gives no time


async def test_a_large_body_that_stops_is_answered_408_long_before_its_size_would_end_it() -> None:
    async with (
        fleet(
            prefill=1,
            decode=1,
            kv_events=False,
            patience=patience(body_stall_s=SHORT_S, body_look_every_s=SHORT_S / 5),
        ) as pair,
        connection(pair.service) as (reader, writer),
    ):
        writer.write(POST + b"Content-Length: 2000000\r\n\r\n" + b" " * 1_999_000)
        async with asyncio.timeout(20):
            assert b" 408 " in await reader.readline()
        assert pair.service.app[SERVICE].bodies.held_bytes == 0


async def test_many_slow_connections_hold_nobody_up_and_leave_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, patience=patience(head_s=1.0)) as pair:
        with caplog.at_level(logging.INFO):
            slow = [await asyncio.open_connection(pair.service.host, pair.service.port) for _ in range(200)]
            for _, writer in slow:
                writer.write(GET + b"X-Secret: marker")
            for number in range(3):
                assert (await pair.service.complete(f"hello {number}")).status == 200
            async with asyncio.timeout(20):
                for reader, writer in slow:
                    assert not await reader.read()
                    writer.close()
        server = pair.service.runner.server
        assert server is not None
        await wait_until(lambda: len(server.connections) <= 1, "the end of the slow connections")
        assert "marker" not in caplog.text
