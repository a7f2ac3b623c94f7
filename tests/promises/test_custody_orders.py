"""Every order of events a hold can meet, end to end: what the client is told, and that nothing stays held or
counted.

The same stories as the transcripts of test_custody.py, on real sockets, with engines whose holds can be
looked at.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest

from proxy.config import LEASE_MARGIN_S, Deadlines
from proxy.edge.app import shut_down
from proxy.edge.app_keys import SERVICE
from proxy.serving.waits import Waits
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import Pair, fleet, prose, wait_until

PATH = "/v1/completions"
LATE_S = 0.3
SHORT = 1.0
"""A deadline that only what never comes misses, on a busy machine too."""
ENDS = ("pulled", "released", "stranded", "unknown")


WAITS = Waits(first_contact_pauses_s=(0.1, 0.1), abandoned_prefill_s=1.0)
"""Stand-ins meet within milliseconds, and no client that left needs five seconds of patience."""


def fault(kind: Any, **more: Any) -> Fault:
    return Fault(kind=kind, path="/v1/c", times=1, **more)


def asked(engine: StandIn) -> bool:
    return any(seen.path == PATH for seen in engine.seen)


def in_prefill(pair: Pair) -> bool:
    return asked(pair.engines.prefill[0])


def prefilled(pair: Pair) -> bool:
    return pair.engines.holds == 1


def in_decode(pair: Pair) -> bool:
    return asked(pair.engines.decode[0])


def in_tokenizing(pair: Pair) -> bool:
    return any(seen.path == "/tokenize" for engine in pair.engines.all for seen in engine.seen)


async def nothing_is_left(pair: Pair, ends: dict[str, int], held: int = 0) -> None:
    """Each hold ended as told, the engines hold `held` prompts, and nothing is claimed or running."""
    await pair.service.settled()
    await wait_until(lambda: pair.engines.holds == held, f"{held} holds")
    samples = pair.service.app[SERVICE].registry.get_sample_value
    got = {end: int(samples("kvproxy_holds_total", {"end": end}) or 0) for end in ENDS}
    assert {end: count for end, count in got.items() if count} == ends
    assert sum(pair.service.fleet.holds.values()) == 0
    assert all(not i.running_legs() and not i.running_tokens() for i in pair.service.fleet)
    assert all(i.fullness.legs == 0 for i in pair.service.fleet)


class Order(NamedTuple):
    """One order of events before a client that waits for its answer."""

    status: int
    ends: dict[str, int]
    prefill: Fault | None = None
    decode: Fault | None = None
    held: int = 0
    """What nobody can give back: the engines free it when its lease ends."""
    stream: bool = False
    cut: bool = False
    """The answer has begun, so the client is told in it."""
    settings: dict[str, Any] | None = None


IMPATIENT = {"deadlines": Deadlines(prefill_s=SHORT, first_byte_s=SHORT, chunk_s=SHORT)}
ORDERS = {
    "nothing happens": Order(200, {"pulled": 1}),
    "prefill fails": Order(200, {"pulled": 1}, prefill=fault("status", status=500)),
    "prefill refuses": Order(400, {}, prefill=fault("status", status=400)),
    "prefill breaks before it answers": Order(200, {"unknown": 1, "pulled": 1}, prefill=fault("cut")),
    "prefill is cut within its answer": Order(
        200, {"stranded": 1, "pulled": 1}, prefill=fault("cut", after_bytes=20), held=1
    ),
    "prefill answers late": Order(200, {"pulled": 1}, prefill=fault("stall", delay_s=LATE_S)),
    "prefill never begins": Order(
        200, {"unknown": 1, "pulled": 1}, prefill=fault("hang"), settings=IMPATIENT
    ),
    "prefill finishes and never answers": Order(
        200, {"unknown": 1, "pulled": 1}, prefill=fault("stall"), held=1, settings=IMPATIENT
    ),
    "decode fails": Order(200, {"released": 1, "pulled": 1}, decode=fault("status", status=500)),
    "decode refuses": Order(400, {"released": 1}, decode=fault("status", status=400)),
    "decode cannot do it": Order(501, {"released": 1}, decode=fault("status", status=501)),
    "decode dies before its first byte": Order(200, {"released": 1, "pulled": 1}, decode=fault("cut")),
    "decode is cut within its whole answer": Order(
        200, {"released": 1, "pulled": 1}, decode=fault("cut", after_bytes=20)
    ),
    "decode dies within its first event": Order(
        200, {"released": 1, "pulled": 1}, decode=fault("cut", after_bytes=20), stream=True
    ),
    "decode stalls before its first byte": Order(
        200, {"released": 1, "pulled": 1}, decode=fault("hang"), settings=IMPATIENT
    ),
    "decode stalls after its head": Order(
        200, {"released": 1, "pulled": 1}, decode=fault("stall"), stream=True, settings=IMPATIENT
    ),
    "decode dies in its stream": Order(
        200, {"pulled": 1}, decode=fault("cut", after_bytes=1500), stream=True, cut=True
    ),
    "decode stalls in its stream": Order(
        200, {"pulled": 1}, decode=fault("stall", after_bytes=1500), stream=True, cut=True, settings=IMPATIENT
    ),
    "the lease is nearly over": Order(502, {"released": 3}, settings={"kv_lease_s": LEASE_MARGIN_S + 1e-6}),
}


@pytest.mark.parametrize("story", ORDERS)
async def test_a_client_that_waits_is_told_and_nothing_is_left(story: str) -> None:
    order = ORDERS[story]
    async with fleet(prefill=1, decode=1, **(order.settings or {}), waits=WAITS) as pair:
        for engine, spoiled in (
            (pair.engines.prefill[0], order.prefill),
            (pair.engines.decode[0], order.decode),
        ):
            if spoiled is not None:
                engine.faults.add(spoiled)
        if order.cut:
            await told_in_the_stream(pair)
        else:
            answer = await pair.service.complete(prose(40), stream=order.stream)
            assert answer.status == order.status
            assert answer.streamed is (order.stream and order.status == 200)
            if answer.streamed:
                assert answer.events[-1] == "[DONE]"
        await nothing_is_left(pair, order.ends, order.held)
        outcome = {2: "ok", 4: "client_error", 5: "engine_error"}[order.status // 100]
        if order.cut:
            outcome = "timeout" if order.settings is IMPATIENT else "cut"
        assert await pair.service.metric("kvproxy_requests_total", outcome=outcome) == 1


async def told_in_the_stream(pair: Pair) -> None:
    reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
    body = b'{"prompt": "hello", "max_tokens": 100, "ignore_eos": true, "stream": true}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b"[DONE]" not in data
    assert not data.endswith(b"0\r\n\r\n")
    assert data.count(b"data: ") > 2
    assert b"\n\n" in data.rpartition(b'data: {"error":')[0][-40:]  # the error stands between events


async def test_a_dead_prefill_instance_takes_its_hold_along_and_another_serves_the_request() -> None:
    async with fleet(prefill=2, decode=1, waits=WAITS) as pair:
        decode = pair.engines.decode[0]
        decode.faults.add(fault("hang"))
        running = asyncio.get_running_loop().create_task(pair.service.complete(prose(40)))
        await wait_until(lambda: asked(decode), "a decode leg")
        (dead,) = [engine for engine in pair.engines.prefill if len(engine.model.holds)]
        (other,) = [engine for engine in pair.engines.prefill if engine is not dead]
        await dead.stop()
        decode.faults.release()
        assert (await running).status == 200
        await pair.service.settled()
        assert asked(other)
        assert len(other.model.holds) == 0
        assert sum(pair.service.fleet.holds.values()) == 0


async def test_a_decode_instance_that_hangs_does_not_keep_others_from_giving_a_hold_back() -> None:
    waits = msgspec.structs.replace(WAITS, release_ask_s=0.3)
    async with fleet(prefill=1, decode=2, waits=waits) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="hang", path="/v1/c", times=2))
        decode = pair.engines.decode
        task = asyncio.get_running_loop().create_task(pair.service.complete(prose(40)))
        await wait_until(lambda: any(asked(engine) for engine in decode), "a decode leg")
        (other,) = [engine for engine in decode if not asked(engine)]
        other.faults.clear()
        task.cancel()
        await nothing_is_left(pair, {"released": 1})


# -- clients that leave --------------------------------------------------------------------------------------


class Leaving(NamedTuple):
    """One order of events whose client leaves at a certain moment."""

    when: Callable[[Pair], bool]
    ends: dict[str, int]
    prefill: Fault | None = None
    decode: Fault | None = None
    held: int = 0
    engine_dies: bool = False


LEAVING = {
    "during tokenizing": Leaving(in_tokenizing, {}),
    "during prefill, which answers": Leaving(
        in_prefill, {"released": 1}, prefill=fault("slow", delay_s=LATE_S)
    ),
    "after prefill, which answers late": Leaving(
        prefilled, {"released": 1}, prefill=fault("stall", delay_s=LATE_S)
    ),
    "during prefill, which hangs": Leaving(in_prefill, {"unknown": 1}, prefill=fault("hang")),
    "during prefill, which is cut within its answer": Leaving(
        in_prefill, {"stranded": 1}, prefill=fault("stall", after_bytes=20), held=1
    ),
    "during prefill, whose engine dies": Leaving(
        in_prefill, {"unknown": 1}, prefill=fault("hang"), engine_dies=True
    ),
    "before the first byte of decode": Leaving(in_decode, {"released": 1}, decode=fault("hang")),
    "before the first event of decode": Leaving(in_decode, {"released": 1}, decode=fault("stall")),
    "in the stream": Leaving(in_decode, {"pulled": 1}, decode=fault("stall", after_bytes=1500)),
}


@contextlib.asynccontextmanager
async def client_at(
    pair: Pair, when: Callable[[Pair], bool], prefill: Fault | None, decode: Fault | None, *, begun: bool
) -> AsyncIterator["asyncio.Task[None]"]:
    """A client whose request has come so far; `begun`: it has a piece of the answer."""
    if when is in_tokenizing:
        for engine in pair.engines.all:
            engine.faults.add(Fault(kind="hang", path="/tokenize"))
    for engine, spoiled in ((pair.engines.prefill[0], prefill), (pair.engines.decode[0], decode)):
        if spoiled is not None:
            engine.faults.add(spoiled)
    got = asyncio.Event()

    async def client() -> None:
        body = {"prompt": prose(40), "max_tokens": 100, "ignore_eos": True, "stream": True}
        async with pair.service.session.post(f"{pair.service.url}{PATH}", json=body) as response:
            await response.content.readany()
            got.set()
            await response.read()

    task = asyncio.get_running_loop().create_task(client())
    try:
        await wait_until(lambda: when(pair) and (got.is_set() or not begun), "that moment")
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            await task


@pytest.mark.parametrize("story", LEAVING)
async def test_a_client_that_leaves_leaves_nothing(story: str) -> None:
    order = LEAVING[story]
    async with fleet(prefill=1, decode=1, waits=WAITS) as pair:
        begun = story == "in the stream"
        async with client_at(pair, order.when, order.prefill, order.decode, begun=begun) as client:
            client.cancel()
        if order.engine_dies:
            await pair.engines.prefill[0].stop()
        await nothing_is_left(pair, order.ends, order.held)
        assert await pair.service.metric("kvproxy_requests_total", outcome="client_left") == 1
        await wait_until(lambda: all(not e.model.unfinished for e in pair.engines.all), "idle engines")


# -- a stop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "story",
    [
        "during tokenizing",
        "during prefill, which answers",
        "after prefill, which answers late",
        "during prefill, which hangs",
        "before the first byte of decode",
        "before the first event of decode",
        "in the stream",
    ],
)
async def test_a_stop_gives_everything_back(story: str) -> None:
    order = LEAVING[story]
    async with fleet(prefill=1, decode=1, waits=WAITS) as pair:
        begun = story == "in the stream"
        async with client_at(pair, order.when, order.prefill, order.decode, begun=begun) as client:
            await shut_down(pair.service.runner, 0.0, asyncio.Event())
            assert pair.service.running_tasks == 0
            await asyncio.wait({client})
            assert (
                isinstance(client.exception(), aiohttp.ClientError) is begun
            )  # else it was answered with 503
        await nothing_is_left(pair, order.ends, order.held)
