"""With --stream-keepalive a client that waits hears comments; a failure after them is an event and a cut,
never a clean end.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.config import Admission, Deadlines, Retries
from proxy.edge.middlewares import IN_FLIGHT_KEY
from proxy.request.sse import KEEP_ALIVE
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.raw import POST, connection
from tests.helpers.service import (
    UNHURRIED,
    Answer,
    Engines,
    Pair,
    ask,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)

PATH = "/v1/completions"
EVERY_S = 0.1


def slow(times: int | None = None) -> Fault:
    return Fault(kind="slow", path=PATH, delay_s=0.5, times=times)


def body(**members: Any) -> dict[str, Any]:
    return {"prompt": prose(40), "max_tokens": 8, "temperature": 0, "stream": True} | members


@contextlib.asynccontextmanager
async def asking(pair: Pair, asked: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
    """What comes back, to be read within 20 s."""
    data = json.dumps(asked).encode()
    async with asyncio.timeout(20), connection(pair.service) as (reader, writer):
        writer.write(POST + b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        yield reader


async def posted(pair: Pair, asked: dict[str, Any]) -> bytes:
    """All that comes back until kvproxy closes the connection."""
    async with asking(pair, asked) as reader:
        return await reader.read()


async def heard(
    pair: Pair, engine: StandIn, asked: dict[str, Any], comments: int, turns: tuple[int, ...] = (1,)
) -> Answer:
    """The answer to a request of which so many legs hang at `engine` in each turn, until so many more
    comments have come.
    """
    for legs in turns:
        engine.faults.add(Fault(kind="hang", path=PATH, times=legs))
    asks = {"X-Request-Id": "mine"}
    due = engine.asked[PATH]
    said = b""
    async with (
        asyncio.timeout(20),
        pair.service.session.post(pair.service.url + PATH, json=asked, headers=asks) as response,
    ):
        for turn, legs in enumerate(turns, 1):
            while said.count(KEEP_ALIVE) < comments * turn:
                piece = await response.content.readany()
                assert piece
                said += piece
            due += legs
            await wait_until(lambda due=due: engine.asked[PATH] >= due, "legs that hang")  # type: ignore[misc]  # as many as now
            engine.faults.release()
        return Answer(response.status, response.headers, said + await response.read())


def events(data: bytes) -> list[Any]:
    """The data of the events in an answer with chunks, as far as it is JSON."""
    return [json.loads(said) for said in re.findall(rb"data: (\{.*\})", data)]


def is_cut(data: bytes) -> bool:
    return data.startswith(b"HTTP/1.1 200") and b"[DONE]" not in data and not data.endswith(b"0\r\n\r\n")


async def nothing_is_left(pair: Pair) -> None:
    await pair.service.settled()
    await wait_until(lambda: not pair.engines.holds, "the end of all holds")
    assert await pair.service.metric("kvproxy_in_flight_requests") == 0


@pytest.mark.parametrize("prompt", ["hello", ["hello", "there"]])
async def test_a_client_that_waits_hears_comments_and_then_all_of_the_answer(prompt: Any) -> None:
    async with fleet(prefill=1, decode=1, stream_keepalive_s=EVERY_S, decision_headers=True) as pair:
        async with StandIn() as plain:
            expected = await ask(pair.service.session, plain.url, PATH, body(prompt=prompt))
        [prefill] = pair.engines.prefill
        began_at = asyncio.get_running_loop().time()
        answer = await heard(pair, prefill, body(prompt=prompt), 2, (1 if isinstance(prompt, str) else 2,))
        took_s = asyncio.get_running_loop().time() - began_at
        comments = len(re.match(rb"(: keep-alive\n\n)*", answer.body).group(0)) // len(KEEP_ALIVE)  # type: ignore[union-attr]  # none matches, too
        assert 2 <= comments <= took_s / EVERY_S
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert (answer.headers["X-Accel-Buffering"], answer.headers["X-Request-Id"]) == ("no", "mine")
        assert "X-Kvproxy-Prefill" not in answer.headers
        said = answer.body.replace(KEEP_ALIVE, b"")
        assert said.endswith(b"data: [DONE]\n\n")
        texts: dict[int, str] = {}
        for choice in (choice for event in events(said) for choice in event["choices"]):
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == expected.by_choice
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 1
        await nothing_is_left(pair)


async def test_a_stream_that_has_begun_is_its_engines_alone() -> None:
    async with fleet(prefill=1, decode=1, stream_keepalive_s=0.02, stand_in=UNHURRIED) as pair:
        [prefill] = pair.engines.prefill
        answer = await heard(pair, prefill, body(max_tokens=100, ignore_eos=True), 6)
        waiting, begun, said = answer.body.partition(b"data: ")
        assert waiting.count(KEEP_ALIVE) > 5
        assert begun
        assert KEEP_ALIVE not in said
        assert said.count(b"data: ") >= 100


@pytest.mark.parametrize(("every_s", "stream"), [(0.0, True), (EVERY_S, False), (30.0, True)])
async def test_without_the_setting_or_in_time_an_answer_is_unchanged(every_s: float, stream: bool) -> None:
    async with fleet(prefill=1, decode=1, stream_keepalive_s=every_s, decision_headers=True) as pair:
        pair.engines.prefill[0].faults.add(slow(1))
        answer = await pair.service.ask(PATH, body(stream=stream))
        assert answer.status == 200
        assert KEEP_ALIVE not in answer.body
        assert answer.headers["X-Kvproxy-Prefill"] == pair.engines.prefill[0].address
        pair.engines.decode[0].faults.add(Fault(kind="status", path=PATH, status=400, times=1))
        assert (await pair.service.ask(PATH, body(stream=stream))).status == 400
        await nothing_is_left(pair)


async def test_attempts_go_on_while_comments_are_sent() -> None:
    async with fleet(prefill=1, decode=2, stream_keepalive_s=EVERY_S) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=PATH, status=500, times=1))
        [prefill] = pair.engines.prefill
        answer = await heard(pair, prefill, body(), 2, (1, 1, 1))
        assert answer.body.count(KEEP_ALIVE) > 5
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"error" not in answer.body
        assert await pair.service.metric("kvproxy_retries_total", phase="decode") == 2
        await nothing_is_left(pair)


@pytest.mark.parametrize(("status", "outcome"), [(400, "client_error"), (500, "engine_error")])
async def test_an_engines_answer_that_comes_too_late_is_an_event_and_a_cut(
    status: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kvproxy.access")
    once = Retries(max_attempts=1)
    async with fleet(prefill=1, decode=1, stream_keepalive_s=EVERY_S, retries=once) as pair:
        pair.engines.prefill[0].faults.add(slow())
        pair.engines.decode[0].faults.add(Fault(kind="status", path=PATH, status=status, times=1))
        data = await posted(pair, body())
        assert is_cut(data)
        assert KEEP_ALIVE in data
        [event] = events(data)
        assert event["error"]["code"] == status
        assert await pair.service.metric("kvproxy_requests_total", outcome=outcome) == 1
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 0
        [line] = [r.getMessage() for r in caplog.records if PATH in r.getMessage()]
        assert line.startswith(f"POST {PATH} 200 ")
        assert "cut=" in line
        assert line.endswith(f"outcome={outcome}")
        await nothing_is_left(pair)


async def test_time_that_is_up_is_an_event_and_a_cut() -> None:
    limited = Deadlines(request_s=2.0)
    async with fleet(prefill=1, decode=1, stream_keepalive_s=EVERY_S, deadlines=limited) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="hang", path=PATH, times=1))
        data = await posted(pair, body())
        assert is_cut(data)
        assert [event["error"]["code"] for event in events(data)] == [504]
        assert await pair.service.metric("kvproxy_requests_total", outcome="timeout") == 1
        await nothing_is_left(pair)


async def test_a_request_that_waits_in_vain_hears_comments_and_then_why() -> None:
    async with fleet(
        prefill=1, decode=1, stream_keepalive_s=EVERY_S, admission=Admission(queue_timeout_s=1.5)
    ) as pair:
        await pair.engines.prefill[0].refuse()
        data = await posted(pair, body())
        assert is_cut(data)
        assert [event["error"]["code"] for event in events(data)] == [503]
        assert await pair.service.metric("kvproxy_requests_total", outcome="unavailable") == 1
        await nothing_is_left(pair)


async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind() -> None:
    async with fleet(prefill=1, decode=1, stream_keepalive_s=EVERY_S) as pair:
        [decode] = pair.engines.decode
        decode.faults.add(Fault(kind="hang", path=PATH, times=1))
        async with asking(pair, body()) as reader:
            await reader.readuntil(KEEP_ALIVE)
            await reader.readuntil(KEEP_ALIVE)
            await wait_until(lambda: pair.service.claims > 0, "a leg")
        await nothing_is_left(pair)
        assert await pair.service.metric("kvproxy_requests_total", outcome="client_left") == 1


async def test_a_shutdown_meanwhile_is_an_event_and_a_cut() -> None:
    async with engines(prefill=1, decode=1) as made:
        await shut_down(made)


async def shut_down(made: Engines) -> None:
    async with kvproxy(made.config(stream_keepalive_s=EVERY_S)) as service:
        pair = Pair(made, service)
        made.decode[0].faults.add(Fault(kind="hang", path=PATH, times=1))
        async with asking(pair, body()) as reader:
            data = await reader.readuntil(KEEP_ALIVE)
            await wait_until(lambda: service.claims > 0, "a leg")
            service.app[IN_FLIGHT_KEY].cut()
            data += await reader.read()
        assert is_cut(data)
        assert [event["error"]["message"] for event in events(data)] == ["kvproxy is shutting down"]
        assert await service.metric("kvproxy_requests_total", outcome="cut") == 1
        await nothing_is_left(pair)
