"""An engine's error inside a stream is a failed attempt if nothing was generated before, and otherwise an
answer that is cut.
"""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from proxy.config import Retries
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Status
from proxy.fleet.circuit import Circuit
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from tests.helpers.dialects import Spoken, each_dialect
from tests.helpers.raw import send
from tests.helpers.service import DEADLINE_S, QUICK, UNHURRIED, InOrder, Pair, ask, fleet, prose, wait_until

PATHS = ("/v1/completions", "/v1/chat/completions")
EVENT = b'data: {"error":{"message":"a fault","type":"InternalServerError","param":null,"code":500}}\n\n'


def body_of(path: str, text: str, **members: Any) -> dict[str, Any]:
    asked = {"prompt": text} if path == PATHS[0] else {"messages": [{"role": "user", "content": text}]}
    return {"model": "tiny", "max_tokens": 8, "temperature": 0} | asked | members


async def right(pair: Pair, path: str, body: dict[str, Any]) -> str:
    """What an engine alone answers."""
    async with StandIn() as plain:
        return (await ask(pair.service.session, plain.url, path, body)).text


async def alone(pair: Pair, spoken: Spoken, body: dict[str, Any]) -> str:
    """What an engine alone says."""
    async with StandIn() as plain:
        return spoken.text((await ask(pair.service.session, plain.url, spoken.path, body)).body)


async def posted(pair: Pair, path: str, body: dict[str, Any]) -> bytes:
    """All that comes back, on a connection of its own that is cut or closed at the end."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    received = await send(pair.service, head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
    assert received.closed
    return received.data


async def nothing_is_left(pair: Pair) -> None:
    await pair.service.settled()
    await wait_until(lambda: not pair.engines.holds, "the end of all holds")
    assert await pair.service.metric("kvproxy_in_flight_requests") == 0


def legs(engine: StandIn, *paths: str) -> int:
    return sum(1 for s in engine.seen if s.path in (paths or PATHS) and b"kvproxy-release" not in s.body)


@each_dialect
@pytest.mark.parametrize("stream", [False, True])
async def test_blocks_that_died_before_they_were_fetched_are_prefilled_elsewhere(
    spoken: Spoken, stream: bool
) -> None:
    path = spoken.path
    async with fleet(prefill=2, decode=1, policy=InOrder()) as pair:
        [decode] = pair.engines.decode
        dying, other = sorted(pair.engines.prefill, key=lambda e: e.address)
        body = spoken.body(prose(60), stream=stream)
        expected = await alone(pair, spoken, body)
        decode.faults.add(Fault(kind="hang", path=path, times=1))
        asked = asyncio.get_running_loop().create_task(pair.service.ask(path, body))
        await wait_until(lambda: legs(decode, path) == 1, "the decode leg")
        await dying.stop()
        decode.faults.release()
        answer = await asked
        assert (answer.status, spoken.text(answer.body)) == (200, expected)
        assert b"error" not in answer.body
        assert spoken.is_complete(answer.body) is stream
        assert decode.model.stats.failed_transfers == 1
        assert (legs(decode, path), legs(other, path)) == (2, 1)
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason="status") == 1
        assert await pair.service.metric("kvproxy_holds_total", end="pulled") == 1
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 1
        await pair.service.settled()


@pytest.mark.parametrize(("path", "after"), [(PATHS[0], 0), (PATHS[1], 0), (PATHS[1], 1)])
async def test_an_error_before_anything_was_generated_is_tried_again(path: str, after: int) -> None:
    async with fleet() as pair:
        body = body_of(path, prose(60), stream=True)
        expected = await right(pair, path, body)
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=path, status=500, after_chunks=after, times=1))
        answer = await pair.service.ask(path, body)
        assert (answer.status, answer.text) == (200, expected)
        assert b"error" not in answer.body
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason="status") == 2
        assert await pair.service.metric("kvproxy_holds_total", end="pulled") == 1
        await nothing_is_left(pair)


async def test_when_all_fail_so_the_client_gets_their_words_and_status() -> None:
    async with fleet(retries=Retries(max_attempts=2)) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=PATHS[1], status=500, after_chunks=1))
        answer = await pair.service.chat("hello", stream=True)
        assert (answer.status, answer.json) == (500, json.loads(EVENT[6:]))
        assert answer.headers["Content-Type"] == "application/json"
        assert await pair.service.metric("kvproxy_requests_total", outcome="engine_error") == 1
        await pair.service.settled()


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_that_is_full_says_so_in_a_stream_as_well(status: int) -> None:
    async with fleet(prefill=1, decode=2) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=PATHS[1], status=status, after_chunks=1, times=1))
        answer = await pair.service.chat("hello", stream=True)
        assert answer.status == 200
        assert b"error" not in answer.body
        assert await pair.service.metric("kvproxy_engine_full_total") == 2
        assert all(i.breaker.state is Circuit.CLOSED for i in pair.service.fleet)
        await nothing_is_left(pair)


@pytest.mark.parametrize("after", [0, 1])
async def test_a_clients_own_error_in_a_stream_is_answered_as_if_it_were_none(after: int) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        for _ in range(5):
            pair.engines.decode[0].faults.add(
                Fault(kind="error", path=PATHS[1], status=400, after_chunks=after, times=1)
            )
            answer = await pair.service.chat("hello", stream=True)
            assert (answer.status, answer.json["error"]["code"]) == (400, 400)
        assert await pair.service.metric("kvproxy_retries_total") == 0
        assert all(i.status is Status.UP and i.breaker.state is Circuit.CLOSED for i in pair.service.fleet)
        await pair.service.settled()
        assert (await pair.service.chat("hello", stream=True)).status == 200


@pytest.mark.parametrize(("path", "after"), [(PATHS[0], 3), (PATHS[1], 3), (PATHS[1], 2)])
async def test_an_error_later_reaches_the_client_and_cuts_it_without_an_end(
    path: str, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kvproxy.access")
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        [decode] = pair.engines.decode
        decode.faults.add(Fault(kind="error", path=path, status=500, after_chunks=after, times=1))
        data = await posted(pair, path, body_of(path, prose(60), stream=True, ignore_eos=True))
        assert data.startswith(b"HTTP/1.1 200")
        assert data.count(b"data: {") == after + 1
        assert data.count(EVENT) == 1
        assert b"[DONE]" not in data
        assert not data.endswith(b"0\r\n\r\n")
        instance = pair.service.fleet.get(decode.address)
        assert instance is not None
        assert instance.last_failure == "the engine failed in the middle of its answer (status 500)"
        metric = pair.service.metric
        assert await metric("kvproxy_requests_total", outcome="cut") == 1
        assert await metric("kvproxy_requests_total", outcome="ok") == 0
        assert await metric("kvproxy_retries_total") == 0
        [line] = [r.getMessage() for r in caplog.records if path in r.getMessage()]
        assert 'cut="the engine failed in the middle of its answer (status 500)" outcome=cut' in line
        await nothing_is_left(pair)


async def test_an_engine_whose_streams_break_one_after_the_other_is_set_aside() -> None:
    async with fleet(prefill=1, decode=2, policy=InOrder(), stand_in=UNHURRIED) as pair:
        bad, good = sorted(pair.engines.decode, key=lambda e: e.address)
        bad.faults.add(Fault(kind="error", path=PATHS[0], status=500, after_chunks=2))
        body = body_of(PATHS[0], "hello", stream=True, ignore_eos=True)
        for _ in range(3):
            assert EVENT in await posted(pair, PATHS[0], body)
        assert EVENT not in await posted(pair, PATHS[0], body)
        assert (legs(bad), legs(good)) == (3, 1)
        await nothing_is_left(pair)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_answer_with_status_200_that_is_an_error_is_a_failed_attempt(
    role: str, stream: bool
) -> None:
    async with fleet() as pair:
        body = body_of(PATHS[0], prose(60), stream=stream)
        expected = await right(pair, PATHS[0], body)
        failing: list[StandIn] = getattr(pair.engines, role)
        for engine in failing:
            engine.faults.add(Fault(kind="status", path=PATHS[0], status=200, times=1))
        answer = await pair.service.ask(PATHS[0], body)
        assert (answer.status, answer.text) == (200, expected)
        assert await pair.service.metric("kvproxy_retries_total", phase=role, reason="status") == 2
        await nothing_is_left(pair)


async def test_answers_that_are_about_errors_are_none() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        for stream in (False, True):
            answer = await pair.service.complete('"error"', echo=True, stream=stream, max_tokens=1)
            assert answer.status == 200
            assert "error" in answer.text
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 2
        assert await pair.service.metric("kvproxy_retries_total") == 0


@pytest.mark.parametrize("path", [*PATHS, "a list"])
@pytest.mark.parametrize("stream", [False, True])
async def test_transfer_params_of_a_decode_engine_stay_here(path: str, stream: bool) -> None:
    several = path == "a list"
    path = PATHS[0] if several else path
    body = body_of(path, prose(60), stream=stream)
    if several:
        body["prompt"] = [prose(60), prose(50)]
    async with fleet(prefill=1, decode=1, stand_in={"bidirectional": True}) as pair:
        async with StandIn(StandInConfig(bidirectional=True)) as plain:
            told = await ask(pair.service.session, plain.url, path, body)
        assert b'"kv_transfer_params":{' in told.body
        answer = await pair.service.ask(path, body)
        assert answer.status == 200
        if several:
            assert answer.by_choice == told.by_choice
        else:
            assert answer.text == told.text
        assert b'transfer_params":{' not in answer.body
        assert (b'"ec_transfer_params":null' in answer.body) is not stream
        await nothing_is_left(pair)


# -- lists of prompts ---------------------------------------------------------------------------------------


async def test_one_prompt_of_a_list_that_fails_before_the_others_begin_is_served_anew() -> None:
    async with fleet(prefill=1, decode=2) as pair:
        body = {
            "model": "tiny",
            "prompt": ["hello", "there"],
            "max_tokens": 50,
            "temperature": 0,
            "stream": True,
        }
        async with StandIn() as plain:
            expected = await ask(pair.service.session, plain.url, PATHS[0], body)
        pair.engines.decode[0].faults.add(
            Fault(kind="error", path=PATHS[0], status=500, after_chunks=4, times=1)
        )
        pair.engines.decode[1].faults.add(Fault(kind="hang", path=PATHS[0], times=1))
        asked = asyncio.get_running_loop().create_task(pair.service.ask(PATHS[0], body))
        await pair.service.counts(1, "kvproxy_retries_total", phase="decode")
        await wait_until(lambda: not pair.engines.decode[1].faults.active(), "a leg that hangs")
        pair.engines.decode[1].faults.release()
        answer = await asked
        assert (answer.status, answer.by_choice) == (200, expected.by_choice)
        assert await pair.service.metric("kvproxy_retries_total", phase="decode") == 1
        await nothing_is_left(pair)


async def test_one_prompt_of_a_list_that_fails_later_cuts_all_with_the_engines_words() -> None:
    async with fleet(prefill=1, decode=2, stand_in=UNHURRIED) as pair:
        pair.engines.decode[0].faults.add(
            Fault(kind="error", path=PATHS[0], status=500, after_chunks=20, times=1)
        )
        body = {"prompt": ["hello", "there", "you"], "max_tokens": 2000, "ignore_eos": True, "stream": True}
        data = await posted(pair, PATHS[0], body)
        assert data.count(EVENT) == data.count(b'"error"') == 1
        assert b"[DONE]" not in data
        assert not data.endswith(b"0\r\n\r\n")
        assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 1
        await nothing_is_left(pair)


async def test_without_budget_an_error_before_anything_is_the_answer() -> None:
    waits = msgspec.structs.replace(QUICK, budget_wait_s=0.1)
    async with fleet(prefill=1, decode=1, retries=Retries(budget=0.0), waits=waits) as pair:
        pair.service.app[SERVICE].director._budget.retries += 1000
        pair.engines.decode[0].faults.add(
            Fault(kind="error", path=PATHS[1], status=500, after_chunks=1, times=1)
        )
        answer = await pair.service.chat("hello", stream=True)
        assert (answer.status, answer.json) == (500, json.loads(EVENT[6:]))
        assert await pair.service.metric("kvproxy_retries_refused_total", phase="decode") == 1
        await nothing_is_left(pair)


@pytest.mark.parametrize("keeps", ["", "Connection: keep-alive\r\n"])
async def test_a_stream_of_the_old_protocol_ends_with_its_connection(keeps: str) -> None:
    """HTTP/1.0 has no chunks: a client that keeps connections would wait for more."""
    body = b'{"model": "tiny", "prompt": "hello", "max_tokens": 4, "stream": true}'
    async with fleet(1, 1) as pair:
        reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
        head = f"POST /v1/completions HTTP/1.0\r\n{keeps}Content-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(DEADLINE_S):
            said = await reader.read()
        writer.close()
        assert said.startswith(b"HTTP/1.0 200")
        assert said.endswith(b"data: [DONE]\n\n")
