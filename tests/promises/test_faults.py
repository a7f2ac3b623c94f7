"""A failure before the first byte is tried again by the rules of custody, and no hold, claim or task is left
behind.
"""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import aiohttp
import pytest

from proxy.config import Admission
from proxy.fleet import Status
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import UNHURRIED, Pair, fleet, prose, wait_until

PATHS = ("/v1/completions", "/v1/chat/completions")


def legs(engine: StandIn) -> int:
    """Generating requests an engine has seen, releases left out."""
    return sum(1 for s in engine.seen if s.path in PATHS and b"kvproxy-release" not in s.body)


async def nothing_is_left(pair: Pair, *, stranded: int = 0) -> None:
    await pair.service.settled()
    await wait_until(lambda: pair.engines.holds == stranded, "the end of all holds")
    assert await pair.service.metric("kvproxy_holds_total", end="stranded") == stranded
    assert await pair.service.metric("kvproxy_in_flight_requests") == 0
    assert await pair.service.metric("kvproxy_in_flight_tokens") == 0


def bad(engine: StandIn, **fault: Any) -> None:
    engine.faults.add(Fault(**({"path": "/v1/c"} | fault)))


# -- the client's own errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [{"temperature": -1}, {"logprobs": "x"}, {"max_tokens": 10**6}])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_refusal_reaches_the_client_and_ejects_nobody(
    members: dict[str, Any], stream: bool
) -> None:
    async with fleet(prefill=1, decode=1) as pair, StandIn() as plain, aiohttp.ClientSession() as session:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 3, "stream": stream} | members
        async with session.post(f"{plain.url}/v1/completions", json=body) as response:
            expected = response.status, await response.json()
        for _ in range(5):
            answer = await pair.service.ask("/v1/completions", body)
            assert (answer.status, answer.json) == expected
        assert expected[0] == 400
        assert all(i.status is Status.UP for i in pair.service.fleet)
        assert (await pair.service.complete("hello")).status == 200
        await nothing_is_left(pair)


# -- failing engines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 500}, {"kind": "status", "status": 502}, {"kind": "cut"}]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_prefill_leg_goes_to_another_instance(fault: dict[str, Any], stream: bool) -> None:
    async with fleet() as pair:
        for engine in pair.engines.prefill:
            bad(engine, times=1, **fault)
        answer = await pair.service.complete("hello", stream=stream)
        assert answer.status == 200
        assert sum(legs(e) for e in pair.engines.prefill) == 3
        assert await pair.service.metric("kvproxy_retries_total", phase="prefill") == 2
        await nothing_is_left(pair)


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 500}, {"kind": "cut"}, {"kind": "cut", "after_bytes": 20}]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_spent_hold_is_never_used_again(fault: dict[str, Any], stream: bool) -> None:
    async with fleet() as pair, StandIn() as plain, aiohttp.ClientSession() as session:
        text = prose(100)
        body = {"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0}
        async with session.post(f"{plain.url}/v1/completions", json=body) as response:
            expected = (await response.json())["choices"][0]["text"]
        for engine in pair.engines.decode:
            bad(engine, times=1, **fault)
        answer = await pair.service.complete(text, stream=stream)
        assert (answer.status, answer.text) == (200, expected)
        # Three decode legs, each with a prefill leg of its own: one more on the instance that has the prefix,
        # then on the other, for two decode legs that fail may be the fault of the one they were to fetch
        # from.
        assert sorted(legs(e) for e in pair.engines.prefill) == [1, 2]
        carried = [
            s.json()["kv_transfer_params"]["remote_request_id"]
            for e in pair.engines.decode
            for s in e.seen
            if s.path in PATHS and b"kvproxy-release" not in s.body
        ]
        assert len(carried) == len(set(carried))
        await nothing_is_left(pair)


async def test_an_unspent_hold_goes_to_the_next_decode_instance() -> None:
    async with fleet() as pair:
        await pair.engines.decode[0].refuse()
        for n in range(6):
            assert (await pair.service.complete(prose(50, n))).status == 200
        assert sum(legs(e) for e in pair.engines.prefill) == 6  # no prefill leg was repeated
        assert await pair.service.metric("kvproxy_retries_total", phase="decode") <= 1
        await nothing_is_left(pair)


async def test_an_instance_that_cannot_be_reached_is_down_until_it_is_back() -> None:
    async with fleet() as pair:
        engine = pair.engines.prefill[0]
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        await engine.refuse()
        for n in range(4):
            assert (await pair.service.complete(prose(5, n))).status == 200
        await wait_until(lambda: instance.status is Status.DOWN, "down")
        explained = await pair.service.explain({"prompt": "x"})
        why = {c["instance"]: (c["usable"], c["why"]) for c in explained["prefill"]["candidates"]}
        assert why[engine.address] == (False, "down")
        await engine.accept()
        await wait_until(lambda: instance.status is Status.UP, "up")
        await nothing_is_left(pair)


async def test_when_every_attempt_fails_the_client_gets_the_engines_words() -> None:
    async with fleet() as pair:
        for engine in pair.engines.prefill:
            bad(engine, kind="status", status=500)
        answer = await pair.service.complete("hello")
        assert answer.status == 500
        assert answer.json["error"]["message"] == "a fault"
        assert sum(legs(e) for e in pair.engines.prefill) == 3
        assert all(i.status is Status.UP for i in pair.service.fleet)
        await nothing_is_left(pair)


async def test_without_words_from_an_engine_the_error_is_ours() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        bad(pair.engines.decode[0], kind="cut")
        answer = await pair.service.complete("hello")
        assert answer.status == 502
        assert answer.json["error"]["type"] == "BadGatewayError"
        await nothing_is_left(pair, stranded=3)  # the one engine that could give them back does not answer


async def test_with_no_instance_left_the_client_is_told_to_come_back() -> None:
    async with fleet(prefill=1, decode=1, admission=Admission(queue_timeout_s=0.2)) as pair:
        await pair.engines.prefill[0].refuse()
        statuses = [(await pair.service.complete("hello")) for _ in range(2)]
        assert statuses[1].status == 503
        assert "prefill" in statuses[1].json["error"]["message"]
        assert statuses[1].headers["Retry-After"] == "1"
        assert (await pair.service.ask("/ready")).status == 503
        await nothing_is_left(pair)


@pytest.mark.parametrize("removed", [False, True])
async def test_blocks_are_given_back_by_a_draining_decode_engine_and_to_a_removed_prefill_engine(
    removed: bool,
) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        assert (await pair.service.complete("hello")).status == 200
        decode = pair.engines.decode[0]
        bad(decode, kind="hang", times=1)
        leaver = asyncio.get_running_loop().create_task(pair.service.complete(prose(30)))
        await wait_until(lambda: legs(decode) == 2, "the decode leg")
        if removed:
            body = {"instance": pair.engines.prefill[0].address, "force": True}
            assert (await pair.service.admin("/instances/remove", body)).status == 200
        else:
            assert (await pair.service.admin("/instances/drain", {"instance": decode.address})).status == 200
        leaver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaver
        await nothing_is_left(pair)


async def test_501_is_an_answer_not_a_failure() -> None:
    async with fleet() as pair:
        for engine in pair.engines.prefill:
            bad(engine, kind="status", status=501)
        assert (await pair.service.complete("hello")).status == 501
        assert sum(legs(e) for e in pair.engines.prefill) == 1


async def test_a_prefill_answer_without_params_names_the_remedy() -> None:
    async with fleet(prefill=1, decode=1, stand_in={"connector": False}) as pair:
        answer = await pair.service.complete("hello")
        assert answer.status == 502
        assert "--kv-transfer-config" in answer.json["error"]["message"]


# -- streams that are cut -----------------------------------------------------------------------------------


async def test_a_cut_stream_ends_with_an_error_event_and_no_clean_end() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        bad(pair.engines.decode[0], kind="cut", after_bytes=1500)
        reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
        body = b'{"prompt": "hello", "max_tokens": 100, "stream": true}'
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b"HTTP/1.1 200" in data
        assert b"[DONE]" not in data
        assert not data.endswith(b"0\r\n\r\n")
        events = data.partition(b"\r\n\r\n")[2]
        assert events.count(b"data: ") > 2
        assert b'data: {"error":' in events
        assert b"\n\n" in events.rpartition(b'data: {"error":')[0][-40:]  # it stands between events
        assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 1
        await nothing_is_left(pair)


# -- clients that leave -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", ["/tokenize", "prefill", "decode", "nothing"])
async def test_a_client_that_leaves_in_any_phase_leaves_nothing_behind(stream: bool, slow: str) -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        [prefill], [decode] = pair.engines.prefill, pair.engines.decode
        path = slow if slow == "/tokenize" else "/v1/completions"
        engines = {"/tokenize": [prefill, decode], "prefill": [prefill], "decode": [decode]}.get(slow, [])
        for each in engines:
            each.faults.add(Fault(kind="hang", path=path))
        body = {"prompt": prose(30), "max_tokens": 4000, "ignore_eos": True, "stream": stream}
        before = sum(each.asked[path] for each in engines)
        leaver = asyncio.get_running_loop().create_task(pair.service.ask("/v1/completions", body))
        if engines:
            await wait_until(lambda: sum(each.asked[path] for each in engines) > before, slow)
        else:
            await wait_until(lambda: decode.model.stats.generated_tokens > 3, "some of the answer")
        leaver.cancel()
        await pair.service.counts(1, "kvproxy_requests_total", outcome="client_left")
        for each in engines:
            each.faults.clear()
            each.faults.release()
        await nothing_is_left(pair)
        for each in pair.engines.all:
            assert each.model.unfinished == 0


async def test_many_clients_leaving_at_random_leave_nothing_behind() -> None:
    async with fleet() as pair:
        rng = random.Random(7)
        ended: Counter[str] = Counter()

        async def one(seed: int) -> None:
            body = {
                "prompt": prose(rng.choice([3, 50, 300]), seed),
                "max_tokens": rng.choice([1, 50, 500]),
                "stream": rng.random() < 0.5,
            }
            patience_s = rng.choice([0.001, 0.005, 0.02, 0.05, 0.2, 5])
            try:
                async with (
                    asyncio.timeout(patience_s),
                    session.post(f"{pair.service.url}/v1/completions", json=body) as response,
                ):
                    await response.read()
                    ended[str(response.status)] += 1
            except TimeoutError:
                ended["left"] += 1

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=40)) as session:
            await asyncio.gather(*[one(n) for n in range(300)])
        assert set(ended) == {"200", "left"}
        await nothing_is_left(pair)


# -- engines that restart -----------------------------------------------------------------------------------


async def test_a_restarted_engine_is_known_to_have_an_empty_cache() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        prompt = list(range(100, 300))
        body = {"prompt": [*prompt, 5]}
        await pair.service.complete(prompt)

        async def cached() -> int | None:
            explained = await pair.service.explain(body)
            (candidate,) = explained["prefill"]["candidates"]
            return candidate["cached_tokens"] if candidate["usable"] else None

        assert await cached() == 192
        await pair.engines.prefill[0].restart()
        async with asyncio.timeout(20):
            while await cached() != 0:  # noqa: ASYNC110  # what is waited for is asked over HTTP
                await asyncio.sleep(0.02)
        answer = await pair.service.complete([*prompt, 5])
        assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert await cached() == 192
        await nothing_is_left(pair)
