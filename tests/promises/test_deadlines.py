"""Every wait ends in time: a leg that takes too long is tried elsewhere, a request that takes too long gets
504.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.config import Deadlines
from proxy.edge.app_keys import SERVICE
from proxy.errors import DeadlineError, LegError
from proxy.simulation.live.faults import Fault
from tests.helpers.service import InOrder, Pair, fleet, prose, wait_until

SHORT_S = 1.0
"""A deadline that only what never comes misses, on a busy machine too."""
BAD_LIMITS = ["0", "-5", "1.5", "1e3", "soon", "", "٣", "9" * 13, "inf", "0x10", "1_000"]


# -- phases --------------------------------------------------------------------------------------------------


def told(pair: Pair) -> list[tuple[str, LegError]]:
    """What the watch is told of failed legs from now on."""
    heard: list[tuple[str, LegError]] = []
    watch = pair.service.app[SERVICE].watch.legs
    passed_on = watch.leg_failed

    def leg_failed(instance: Any, error: LegError) -> None:
        heard.append((instance.address, error))
        passed_on(instance, error)

    watch.leg_failed = leg_failed  # type: ignore[method-assign]
    return heard


PHASES: dict[str, tuple[str, Fault, bool, Deadlines]] = {
    "prefill": ("prefill", Fault(kind="hang", path="/v1/c"), False, Deadlines(prefill_s=SHORT_S)),
    "prefill's answer": (
        "prefill",
        Fault(kind="stall", path="/v1/c", after_bytes=10),
        False,
        Deadlines(prefill_s=SHORT_S),
    ),
    "the head of decode": ("decode", Fault(kind="hang", path="/v1/c"), True, Deadlines(first_byte_s=SHORT_S)),
    "the first event": ("decode", Fault(kind="stall", path="/v1/c"), True, Deadlines(first_byte_s=SHORT_S)),
    "the whole of a unary answer": (
        "decode",
        Fault(kind="stall", path="/v1/c", after_bytes=10),
        False,
        Deadlines(first_byte_s=SHORT_S),
    ),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_phase_that_takes_too_long_is_tried_elsewhere_and_the_watch_told(phase: str) -> None:
    role, fault, stream, deadlines = PHASES[phase]
    async with fleet(deadlines=deadlines, policy=InOrder()) as pair:
        heard = told(pair)
        slow, other = sorted(getattr(pair.engines, role), key=lambda e: e.address)
        slow.faults.add(fault)
        answer = await pair.service.complete(prose(30), stream=stream)
        assert answer.status == 200
        assert [(address, type(error)) for address, error in heard] == [(slow.address, DeadlineError)]
        assert any(seen.path == "/v1/completions" for seen in other.seen)
        assert await pair.service.metric("kvproxy_retries_total", phase=role, reason="deadline") == 1
        slow.faults.clear()
        await pair.service.settled()


@pytest.mark.parametrize("phase", ["prefill", "the head of decode"])
async def test_when_every_attempt_takes_too_long_the_client_gets_504(phase: str) -> None:
    role, fault, stream, _ = PHASES[phase]
    short = Deadlines(prefill_s=0.1) if role == "prefill" else Deadlines(first_byte_s=0.1)
    async with fleet(prefill=1, decode=1, deadlines=short) as pair:
        getattr(pair.engines, role)[0].faults.add(fault)
        answer = await pair.service.complete("hello", stream=stream)
        assert answer.status == 504
        assert answer.json["error"]["type"] == "GatewayTimeoutError"
        assert "127.0.0.1" not in answer.json["error"]["message"]
        assert await pair.service.metric("kvproxy_requests_total", outcome="timeout") == 1
        await pair.service.settled()


# -- the whole -----------------------------------------------------------------------------------------------


async def test_a_bad_limit_is_400_and_names_the_header() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for bad in (bad for bad in BAD_LIMITS if bad.isascii()):
            answer = await pair.service.ask("/v1/completions", {"prompt": "x"}, X_Request_Timeout_Ms=bad)
            assert answer.status == 400
            assert answer.json["error"]["param"] == "X-Request-Timeout-Ms"
            assert "X-Request-Timeout-Ms" in answer.json["error"]["message"]


async def test_a_limit_that_is_kept_changes_nothing_and_engines_do_not_see_it() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        answer = await pair.service.ask("/v1/completions", {"prompt": "hi"}, X_Request_Timeout_Ms="60000")
        assert answer.status == 200
        for engine in pair.engines.all:
            assert engine.seen
            assert not any("X-Request-Timeout-Ms" in seen.headers for seen in engine.seen)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", ["tokenizing", "prefill", "decode"])
async def test_a_request_that_takes_too_long_gets_504_and_everything_is_given_back(
    slow: str, stream: bool
) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        path = "/tokenize" if slow == "tokenizing" else "/v1/c"
        for engine in pair.engines.all if slow == "tokenizing" else getattr(pair.engines, slow):
            engine.faults.add(
                Fault(kind="slow" if slow == "prefill" else "hang", path=path, delay_s=1.0, times=1)
            )
        body = {"prompt": prose(30), "max_tokens": 5, "stream": stream}
        answer = await pair.service.ask("/v1/completions", body, X_Request_Timeout_Ms="300")
        assert answer.status == 504
        assert answer.json["error"]["type"] == "GatewayTimeoutError"
        assert "0.3 s" in answer.json["error"]["message"]
        assert await pair.service.metric("kvproxy_requests_total", outcome="timeout") == 1
        assert await pair.service.metric("kvproxy_retries_total") == 0  # nobody is to blame
        await pair.service.settled()
        await wait_until(lambda: pair.engines.holds == 0, "the end of all holds")
        assert await pair.service.metric("kvproxy_holds_total", end="stranded") == 0


async def test_the_configured_limit_holds_without_a_header_and_retries_do_not_prolong_it() -> None:
    async with fleet(prefill=1, decode=1, deadlines=Deadlines(prefill_s=0.2, request_s=0.5)) as pair:
        pair.engines.prefill[0].faults.add(Fault(kind="hang", path="/v1/c"))
        answer = await pair.service.complete("hello")
        assert answer.status == 504
        assert "limit of 0.5 s" in answer.json["error"]["message"]
        await pair.service.settled()


@contextlib.asynccontextmanager
async def raw(pair: Pair, body: bytes, limit_ms: int) -> AsyncIterator[tuple[asyncio.StreamReader, Any]]:
    """A client that has sent its request and reads as slowly as it likes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (pair.service.host, pair.service.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"X-Request-Timeout-Ms: %d\r\nContent-Length: %d\r\n\r\n%s" % (limit_ms, len(body), body)
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_time_that_is_up_in_a_stream_ends_it_with_an_error_event_and_a_cut() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="stall", path="/v1/c", after_bytes=1500))
        body = b'{"prompt": "hello", "max_tokens": 100, "ignore_eos": true, "stream": true}'
        async with raw(pair, body, 1000) as (reader, _):
            data = await reader.read()
        assert b"HTTP/1.1 200" in data
        assert b'"type":"GatewayTimeoutError"' in data
        assert b"[DONE]" not in data
        assert not data.endswith(b"0\r\n\r\n")
        assert await pair.service.metric("kvproxy_requests_total", outcome="timeout") == 1
        assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 0
        await pair.service.settled()
        await wait_until(lambda: not pair.engines.decode[0].model.unfinished, "an idle engine")


async def test_a_client_that_does_not_read_cannot_outstay_its_limit() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        server = pair.service.runner.server
        assert server is not None
        body = b'{"prompt": "hello", "n": 16, "max_tokens": 4000, "ignore_eos": true, "stream": true}'
        before = set(server.connections)
        async with raw(pair, body, 3000) as (reader, _):
            await wait_until(lambda: bool(set(server.connections) - before), "its connection")
            (connection,) = set(server.connections) - before
            transport: Any = connection.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await wait_until(lambda: transport.get_write_buffer_size() > 1 << 16, "a client that is behind")
            assert pair.service.claims == 1
            await wait_until(lambda: pair.service.claims == 0, "the end of its claim")
            await wait_until(lambda: not pair.engines.decode[0].model.unfinished, "an idle engine")
            await wait_until(lambda: connection not in server.connections, "the end of its connection")
            with contextlib.suppress(ConnectionError):
                assert not (await reader.read()).endswith(b"0\r\n\r\n")
        assert await pair.service.metric("kvproxy_requests_total", outcome="timeout") == 1
        await pair.service.settled()
