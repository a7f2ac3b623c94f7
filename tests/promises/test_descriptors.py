"""However many connections there are, engines are reached, and probes and operators are answered."""

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest

from proxy.config import Health
from proxy.descriptors import Place
from proxy.edge.app_keys import SERVICE
from tests.helpers.service import UNHURRIED, Answer, Pair, ask, fleet

# -- a process that has few ----------------------------------------------------------------------------------


class Limited:
    """A kvproxy with few descriptors, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = self.admin_url = ""

    async def listening(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            if found := re.search(r"listening on (http://\S+) and (http://\S+),", line.decode()):
                self.url, self.admin_url = found.groups()
                return

    async def read_on(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())

    async def metric(self, session: aiohttp.ClientSession, series: str) -> float:
        text = (await ask(session, self.admin_url, "/metrics")).body.decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))


@contextlib.asynccontextmanager
async def limited(pair: Pair, descriptors: int, *flags: str) -> AsyncIterator[Limited]:
    arguments: Sequence[str] = (
        sys.executable, "-m", "proxy", "serve", "-m", "tiny", "-p", pair.engines.prefill[0].address,
        "-d", pair.engines.decode[0].address, "--port", "0", "--admin-port", "0", *flags,
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *arguments,
        stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    them = Limited(process)
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(30):
            await them.listening()
            reading = asyncio.get_running_loop().create_task(them.read_on(), name="stderr")
            while (await ask(pair.service.session, them.admin_url, "/ready")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield them
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if reading is not None:
            await reading


@contextlib.asynccontextmanager
async def crowd(url: str, count: int, sent: bytes = b"") -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many connections that send this and then nothing."""
    port = int(url.rpartition(":")[2])
    made = []
    try:
        for _ in range(count):
            made.append(await asyncio.open_connection("127.0.0.1", port))
            made[-1][1].write(sent)
        yield [reader for reader, _ in made]
    finally:
        for _, writer in made:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def asked_anew(url: str, path: str, body: object = None) -> Answer:
    """As a probe asks: on a connection of its own."""
    async with aiohttp.ClientSession() as session:
        return await ask(session, url, path, body)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nX-A: "], ids=["silent", "half a head"])
@pytest.mark.parametrize("events", ["off", "auto"])
async def test_idle_connections_lock_neither_probes_nor_operators_nor_clients_out(
    sent: bytes, events: str
) -> None:
    async with (
        fleet(prefill=1, decode=1) as pair,
        limited(pair, 64, "--kv-events", events) as them,
        crowd(them.url, 100, sent) as readers,
        crowd(them.admin_url, 40, sent),
    ):
        for n in range(5):
            assert (await asked_anew(them.url, "/health")).status == 200
            assert (await asked_anew(them.admin_url, "/health")).status == 200
            body = {"model": "tiny", "prompt": f"hello {n}", "max_tokens": 2}
            assert (await asked_anew(them.url, "/v1/completions", body)).status == 200
        async with asyncio.timeout(20):
            assert not await readers[0].read()  # who came first was closed first
        async with aiohttp.ClientSession() as session:
            closed = await them.metric(session, 'kvproxy_connections_closed_total{reason="idle"}')
            assert closed > 50
            assert 0 < await them.metric(session, 'kvproxy_open_connections{peer="clients"}') < 40
        warnings = [line for line in them.lines if "file descriptors are short: of 64" in line]
        assert len(warnings) == 1


async def test_bodies_that_do_not_come_lock_nobody_out() -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        b"99\r\n\r\n{"
    )
    async with (
        fleet(prefill=1, decode=1, kv_events=False) as pair,
        limited(pair, 64, "--kv-events", "off") as them,
        crowd(them.url, 60, head),
    ):
        for n in range(8):  # more than there are spare ones
            assert (await asked_anew(them.url, "/health")).status == 200
            assert (await asked_anew(them.admin_url, "/health")).status == 200
            body = {"model": "tiny", "prompt": f"hello {n}", "max_tokens": 2}
            assert (await asked_anew(them.url, "/v1/completions", body)).status == 200
        async with aiohttp.ClientSession() as session:
            assert await them.metric(session, 'kvproxy_connections_closed_total{reason="reading"}') > 10


async def test_where_all_are_answered_probes_are_answered_too_and_no_body_keeps_them_out() -> None:
    """Streams that nobody reads: each has a client's connection and one to an engine."""
    body = json.dumps(
        {"model": "tiny", "prompt": "x", "max_tokens": 5000, "ignore_eos": True, "stream": True}
    )
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        b"%d\r\n\r\n"
    )
    async with (
        fleet(prefill=1, decode=1, kv_events=False, stand_in=UNHURRIED) as pair,
        limited(pair, 64, "--kv-events", "off", "--health-interval", "60") as them,
        aiohttp.ClientSession() as session,
        contextlib.AsyncExitStack() as stack,
    ):
        series = 'kvproxy_refused_requests_total{reason="no_descriptors"}'
        async with asyncio.timeout(60):
            streams: list[asyncio.StreamReader] = []
            while not await them.metric(session, series):
                streams += await stack.enter_async_context(
                    crowd(them.url, 1, head % len(body) + body.encode())
                )
            # Until each is answered one may still need a connection to an engine, and for that one goes whose
            # request was not read yet.
            for reader in streams:
                with contextlib.suppress(ConnectionResetError):
                    await reader.readline()
        for _ in range(8):
            assert (await asked_anew(them.url, "/health")).status == 200
            assert (await asked_anew(them.admin_url, "/health")).status == 200
            async with crowd(them.url, 1, head % 99) as [reader], asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):  # it may be the one that is closed for others
                    await reader.readline()


async def test_a_spare_connection_gets_one_answer_and_generates_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with fleet(prefill=1, decode=1, kv_events=False) as pair:
            descriptors = pair.service.app[SERVICE].descriptors
            while descriptors.client_comes() is Place.SHARED:  # as if so many were at work
                descriptors.clients = descriptors.shared
            health = await asked_anew(pair.service.url, "/health")
            assert (health.status, health.headers["Connection"]) == (200, "close")
            body = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
            refused = await asked_anew(pair.service.url, "/v1/completions", body)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert refused.headers["Connection"] == "close"
            assert "file descriptors" in json.loads(refused.body)["error"]["message"]
            descriptors.clients, descriptors.spares = 1, 0
            counted = await pair.service.metric("kvproxy_refused_requests_total", reason="no_descriptors")
            assert counted == 1
            assert (await asked_anew(pair.service.url, "/v1/completions", body)).status == 200


async def test_connections_to_engines_end_at_their_share_and_no_engine_is_blamed() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, health=Health(interval_s=60)) as pair:
        descriptors = pair.service.app[SERVICE].descriptors
        instances = list(pair.service.fleet)
        descriptors.limit, descriptors._own = 1, 0  # two are left for clients and legs together
        descriptors.clients = 2
        answer = await asked_anew(pair.service.url, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
        assert answer.status == 503
        assert all(instance.breaker.state == "closed" for instance in instances)
        descriptors.limit, descriptors.clients, descriptors.spares = 1 << 20, 0, 0
        answer = await asked_anew(pair.service.url, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
        assert answer.status == 200
