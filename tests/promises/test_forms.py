"""A multipart form reaches one engine as its client sends it, is held by nobody, and is sent again only while
none of it was sent.
"""

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.config import Retries
from proxy.edge.app import shut_down
from proxy.edge.patience import Patience
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.http_edge import json_answer
from tests.helpers.raw import connection
from tests.helpers.service import Engines, InOrder, Pair, Service, kvproxy, wait_until

HEARD = "/v1/audio/transcriptions"
MARK = b"a-mark"
LARGE = bytes(range(256)) * 4096  # a MiB
TYPE = f"multipart/form-data; boundary={MARK.decode()}"


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (MARK, name, more, value)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--%s--\r\n" % MARK


MODEL = part(b"model", b"tiny")
FILE = part(b"file", LARGE, b'; filename="a.wav"\r\nContent-Type: audio/wav')
FORM = form(MODEL, FILE)
HEAD = (
    f"POST {HEARD} HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: {len(FORM)}\r\n\r\n"
).encode()


@web.middleware
async def hears(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An engine whose model hears: it says what it was sent."""
    if request.path != HEARD:
        return await handler(request)
    return json_answer({"text": hashlib.sha256(await request.read()).hexdigest()})


@contextlib.asynccontextmanager
async def hearing(decode: int = 1, **settings: Any) -> AsyncIterator[Pair]:
    policy, patience = settings.pop("policy", None), settings.pop("patience", Patience())
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(StandIn(StandInConfig(), before=[hears]))
            for _ in range(decode + 1)
        ]
        made = [made[0], *sorted(made[1:], key=lambda engine: engine.address)]
        engines = Engines(made[:1], made[1:], [])
        config = engines.config(kv_events=False, **settings)
        service = await stack.enter_async_context(kvproxy(config, policy, patience=patience))
        yield Pair(engines, service)


async def send(service: Service, body: bytes, **headers: str) -> tuple[int, Any]:
    named = {"Content-Type": TYPE} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with service.session.post(service.url + HEARD, data=io.BytesIO(body), headers=named) as answer:
        return answer.status, await answer.json()


async def test_a_form_arrives_as_it_was_sent_and_is_counted() -> None:
    async with hearing() as pair:
        for body in (FORM, form(FILE, MODEL), form(FILE)):
            status, answer = await send(pair.service, body)
            assert (status, answer["text"]) == (200, hashlib.sha256(body).hexdigest())
            assert pair.engines.decode[0].seen[-1].body == body
            assert pair.engines.decode[0].seen[-1].headers["Content-Type"] == TYPE
        assert not pair.engines.prefill[0].seen
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok", route="transcriptions") == 3

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(FORM), 100_000):
                yield FORM[at : at + 100_000]

        async with pair.service.session.post(
            pair.service.url + HEARD, data=pieces(), headers={"Content-Type": TYPE}
        ) as streamed:  # its length is not told
            assert (await streamed.json())["text"] == hashlib.sha256(FORM).hexdigest()
        assert pair.engines.decode[0].seen[-1].body == FORM
        assert pair.service.claims == 0


async def test_its_engine_hears_of_it_before_it_is_whole() -> None:
    async with hearing() as pair, connection(pair.service) as (reader, writer):
        half = len(FORM) // 2
        writer.write(HEAD + FORM[:half])
        engine = pair.engines.decode[0]
        await wait_until(lambda: engine.asked[HEARD] == 1, "the leg")
        assert not engine.seen
        assert pair.service.claims == 1
        writer.write(FORM[half:])
        assert (await reader.readline()).split()[1] == b"200"
        assert engine.seen[-1].body == FORM


async def test_the_model_is_read_if_it_comes_early() -> None:
    async with hearing() as pair:
        small = part(b"file", b"x", b'; filename="a"')
        unknown = part(b"model", b"none")
        for body, status in (
            (form(unknown, small), 404),
            (form(small, unknown), 404),
            (form(FILE, unknown), 200),
            (form(part(b"model", b"none", b'; filename="model"'), small), 200),
        ):
            got, answer = await send(pair.service, body)
            assert got == status, answer
        assert pair.engines.decode[0].asked[HEARD] == 2


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content_Type": "application/json"}, b"{}", 415),
        ({"Content_Type": "multipart/form-data"}, FORM, 415),
        ({"Content_Encoding": "gzip"}, FORM, 415),
        ({}, form(part(b"file", LARGE * 2, b'; filename="a"')), 413),
    ],
)
async def test_what_is_no_form_or_too_long_reaches_no_engine(
    headers: dict[str, str], body: bytes, status: int
) -> None:
    async with hearing(max_body_mb=1) as pair:
        got, answer = await send(pair.service, body, **headers)
        assert (got, answer["error"]["code"]) == (status, status)
        assert not pair.engines.decode[0].asked[HEARD]


async def test_another_instance_gets_it_if_the_first_cannot_be_connected_to() -> None:
    async with hearing(2, policy=InOrder()) as pair:
        await pair.engines.decode[0].refuse()
        status, answer = await send(pair.service, FORM)
        assert (status, answer["text"]) == (200, hashlib.sha256(FORM).hexdigest())


async def test_what_was_sent_is_not_sent_again() -> None:
    async with hearing(2, policy=InOrder()) as pair:
        bad, good = pair.engines.decode
        bad.faults.add(Fault(kind="cut", path=HEARD))
        assert (await send(pair.service, FORM))[0] == 502
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")
        assert not good.asked[HEARD]


async def test_a_client_that_leaves_halfway_frees_the_instance() -> None:
    async with hearing() as pair:
        async with connection(pair.service) as (_, writer):
            writer.write(HEAD + FORM[: len(FORM) // 2])
            await wait_until(lambda: pair.service.claims == 1, "the claim")
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")
        assert not pair.engines.decode[0].seen


async def test_a_client_that_sends_too_slowly_is_to_blame_and_not_its_engine() -> None:
    hasty = Patience(body_grace_s=0.2, body_stall_s=0.2)
    async with hearing(patience=hasty) as pair, connection(pair.service) as (reader, writer):
        writer.write(HEAD + FORM[: len(FORM) // 2])
        assert (await reader.readline()).split()[1] == b"408"
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")
        (instance,) = [i for i in pair.service.fleet if i.address == pair.engines.decode[0].address]
        assert instance.why_unusable() is None


async def test_a_form_that_takes_too_long_gets_504() -> None:
    async with hearing(retries=Retries(max_attempts=1)) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="hang", path=HEARD))
        status, answer = await send(pair.service, FORM, X_Request_Timeout_Ms="300")
        assert (status, answer["error"]["code"]) == (504, 504)
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")


async def test_a_shutdown_tells_its_client() -> None:
    async with hearing() as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path=HEARD))
        asking = asyncio.get_running_loop().create_task(send(pair.service, FORM))
        await wait_until(lambda: bool(engine.seen), "the leg")
        await shut_down(pair.service.runner, 0.0, asyncio.Event())
        status, answer = await asking
        assert (status, answer["error"]["message"]) == (503, "kvproxy is shutting down")
