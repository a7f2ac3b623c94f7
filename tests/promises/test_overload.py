"""Requests that the engines should not get yet wait their turn or are refused with a reason, and waiting or
slow reading costs little memory.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.admission import weigh
from proxy.config import Admission, Deadlines, WhenNoPrefill
from proxy.edge.access.clients import MAX_CLIENT_CHARS, client_of, holder_of
from proxy.edge.app import shut_down
from proxy.edge.app_keys import SERVICE
from proxy.edge.patience import Patience
from proxy.edge.relay import relay_stream
from proxy.edge.stall import StallWatch
from proxy.edge.visit import visit_of
from proxy.errors import LegBrokenError
from proxy.fair_queue import ANONYMOUS
from proxy.phases import Phase
from proxy.request.dialects import CHAT
from proxy.request.outline import signs_of
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.upstream import client as upstream
from tests.helpers.service import UNHURRIED, Answer, Pair, ask, engines, fleet, kvproxy, prose, wait_until

ONE_AT_A_TIME: dict[str, Any] = {"max_decode_tokens": 1, "client_header": "X-Client"}
"""An idle engine takes any request, and then no other."""


def queue_length(pair: Pair) -> int:
    return len(pair.service.app[SERVICE].gate)


class Crowd:
    """Clients before a decode engine that serves one request at a time and hangs with the first."""

    def __init__(self, pair: Pair, session: aiohttp.ClientSession) -> None:
        self.pair = pair
        self._session = session
        self._tasks: list[asyncio.Task[Answer]] = []

    async def occupy(self, client: str = "") -> "asyncio.Task[Answer]":
        self.pair.engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c", times=1))
        first = self.start("first", client)
        await wait_until(lambda: len(self.decoded()) == 1, "the first decode leg")
        return first

    def start(
        self, name: str, client: str = "", header: dict[str, str] | None = None, **members: Any
    ) -> "asyncio.Task[Answer]":
        body = {"prompt": "hello", "max_tokens": 3, "user": name} | members
        url = self.pair.service.url
        asking = ask(self._session, url, "/v1/completions", body, X_Client=client, **(header or {}))
        task = asyncio.get_running_loop().create_task(asking)
        self._tasks.append(task)
        return task

    async def line_up(
        self, name: str, client: str = "", header: dict[str, str] | None = None, **members: Any
    ) -> "asyncio.Task[Answer]":
        """Ask, and come back when the request is in the queue."""
        before = queue_length(self.pair)
        task = self.start(name, client, header, **members)
        await wait_until(lambda: queue_length(self.pair) > before, "the queue")
        return task

    def decoded(self) -> list[str]:
        """Who has got a decode leg, in order."""
        seen = self.pair.engines.decode[0].seen
        return [s.json()["user"] for s in seen if s.path == "/v1/completions" and b'"user"' in s.body]


@contextlib.asynccontextmanager
async def crowd(**admission: Any) -> AsyncIterator[Crowd]:
    limits = Admission(**(ONE_AT_A_TIME | admission))
    async with (
        fleet(prefill=1, decode=1, kv_events=False, admission=limits) as pair,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Crowd(pair, session)


async def gone(task: "asyncio.Task[Answer]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


# -- the queue ----------------------------------------------------------------------------------------------


async def test_clients_take_turns_and_priorities_hold_within_a_client() -> None:
    async with crowd() as them:
        first = await them.occupy()
        waiting = [await them.line_up(f"a{n}", "a", priority=[0, 0, -1, 0][n]) for n in range(4)]
        waiting += [await them.line_up("b", "b"), await them.line_up("c", "c")]
        status = (await them.pair.service.ask("/status")).json["queue"]
        assert (status["waiting"], status["waiting_clients"]) == (6, 3)
        assert await them.pair.service.metric("kvproxy_queued_requests") == 6
        await gone(first)
        assert {(await task).status for task in waiting} == {200}
        order = them.decoded()[1:]
        assert [name for name in order if name.startswith("a")] == ["a2", "a0", "a1", "a3"]
        assert set(order[:3]) == {"a2", "b", "c"}
        assert await them.pair.service.metric("kvproxy_queue_wait_seconds_count") == 6
        assert await them.pair.service.metric("kvproxy_queued_requests") == 0
        await them.pair.service.settled()


async def test_a_priority_in_the_header_wins_over_the_member_and_reaches_the_engine() -> None:
    async with crowd() as them:
        first = await them.occupy()
        said = [{"X_Vllm_Priority": "1"}, {"X_Vllm_Priority": "soon"}, {"X_Vllm_Priority": "-5"}, {}]
        waiting = [await them.line_up(f"a{n}", "a", said[n], priority=[-9, -2, 3, 0][n]) for n in range(4)]
        await gone(first)
        assert {(await task).status for task in waiting} == {200}
        assert them.decoded()[1:] == ["a2", "a1", "a3", "a0"]
        legs = [leg for leg in them.pair.engines.decode[0].seen if b'"user"' in leg.body]
        sent = {leg.json()["user"]: leg.headers.get("X-Vllm-Priority") for leg in legs}
        assert [sent[f"a{n}"] for n in range(4)] == ["1", "soon", "-5", None]
        await them.pair.service.settled()


async def test_a_client_claims_no_better_priority_than_it_may_here_and_at_engines() -> None:
    async with crowd(max_client_priority=-1) as them:
        first = await them.occupy()
        said = [{"X_Vllm_Priority": "-1"}, {"X_Vllm_Priority": "-99"}, {"X_Vllm_Priority": "5"}, {}, {}]
        members = [{}, {}, {"priority": -99}, {"priority": -99}, {"priority": -1}]
        waiting = [await them.line_up(f"a{n}", "a", said[n], **members[n]) for n in range(5)]
        assert (await them.pair.service.ask("/status")).json["queue"]["max_client_priority"] == -1
        await gone(first)
        assert {(await task).status for task in waiting} == {200}
        assert them.decoded()[1:] == ["a0", "a1", "a3", "a4", "a2"]
        for engine in them.pair.engines.all:
            legs = {leg.json()["user"]: leg for leg in engine.seen if b'"user"' in leg.body}
            headers = [legs[f"a{n}"].headers.get("X-Vllm-Priority") for n in range(5)]
            assert headers == ["-1", "-1", "5", None, None]
            assert [legs[f"a{n}"].json().get("priority") for n in range(5)] == [None, None, -1, -1, -1]
        await them.pair.service.settled()


async def test_many_answers_to_one_prompt_are_no_small_request() -> None:
    async with crowd(max_decode_tokens=16_000) as them:
        first = await them.occupy()
        alike = [them.start(f"plain{n}", max_tokens=4000) for n in range(3)]
        assert {(await task).status for task in alike} == {200}  # beside the first one
        waiting = [await them.line_up(f"heavy{n}", n=32, max_tokens=4000, stop=["a"]) for n in range(3)]
        status = (await them.pair.service.ask("/status")).json
        assert status["queue"]["expected_answer_tokens"] == 512
        weights = {i["role"]: i["weight_tokens"] for i in status["instances"]}
        assert 3 < weights["decode"] < 100  # the prompt and three tokens of the first
        assert await them.pair.service.metric("kvproxy_in_flight_weight_tokens") == sum(weights.values())
        await gone(first)
        assert {(await task).status for task in waiting} == {200}
        await them.pair.service.settled()
        assert await them.pair.service.metric("kvproxy_in_flight_weight_tokens") == 0


async def test_a_client_has_so_many_requests_served_at_once_and_the_rest_waits_or_is_refused() -> None:
    async with crowd(max_decode_tokens=0, max_client_requests=1, max_queue=2) as them:
        first = await them.occupy("a")
        waiting = [await them.line_up(f"a{n}", "a", prompt=["x", "y"]) for n in range(2)]
        refused = await them.start("a2", "a")
        assert (refused.status, refused.json["error"]["type"]) == (429, "RateLimitError")
        assert (await them.start("b", "b", prompt=["x", "y"])).status == 200
        status = (await them.pair.service.ask("/status")).json["queue"]
        told = {
            name: status[name] for name in ("running_clients", "clients_held_back", "max_client_requests")
        }
        assert told == {"running_clients": 1, "clients_held_back": 1, "max_client_requests": 1}
        assert await them.pair.service.metric("kvproxy_clients_held_back") == 1
        await gone(first)
        assert [(await task).status for task in waiting] == [200, 200]
        await them.pair.service.settled()
        assert await them.pair.service.metric("kvproxy_clients_held_back") == 0
        assert them.pair.service.app[SERVICE].gate.status().running_clients == 0


async def test_a_prefill_leg_whose_client_has_left_still_counts_for_it() -> None:
    async with crowd(max_decode_tokens=0, max_client_requests=1) as them:
        engine = them.pair.engines.prefill[0]
        engine.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        leaver = them.start("leaver", "a")
        await wait_until(lambda: len(engine.seen) == 1, "its prefill leg")
        await gone(leaver)
        await them.line_up("next", "a")
        assert len(engine.seen) == 1
        engine.faults.release()
        await wait_until(lambda: "next" in them.decoded(), "the next one")
        await them.pair.service.settled()


async def test_a_full_queue_is_answered_429_with_retry_after() -> None:
    async with crowd(max_queue=2) as them:
        first = await them.occupy()
        waiting = [await them.line_up(f"a{n}", "a") for n in range(2)]
        refused = await them.start("a2", "a")
        assert refused.status == 429
        assert refused.json["error"]["type"] == "RateLimitError"
        assert refused.json["error"]["code"] == 429
        assert int(refused.headers["Retry-After"]) >= 1
        modest = them.start("b", "b")
        shed = await waiting[1]
        assert shed.status == 429
        assert await them.pair.service.metric("kvproxy_refused_requests_total", reason="shed") == 1
        assert await them.pair.service.metric("kvproxy_refused_requests_total", reason="queue_full") == 1
        assert await them.pair.service.metric("kvproxy_requests_total", outcome="unavailable") == 2
        await gone(first)
        assert [(await task).status for task in (waiting[0], modest)] == [200, 200]


async def test_a_client_that_leaves_the_queue_is_not_served() -> None:
    async with crowd() as them:
        first = await them.occupy()
        leaver, stayer = await them.line_up("leaver"), await them.line_up("stayer")
        await gone(leaver)
        await wait_until(lambda: queue_length(them.pair) == 1, "the queue")
        await gone(first)
        assert (await stayer).status == 200
        assert them.decoded() == ["first", "stayer"]
        await them.pair.service.settled()


async def test_a_request_that_waited_too_long_is_answered_503_with_retry_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvproxy.access")
    async with crowd(queue_timeout_s=0.2) as them:
        first = await them.occupy()
        answer = await them.start("late")
        assert answer.status == 503
        assert "--queue-timeout" in answer.json["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 1
        await wait_until(lambda: "queued=" in caplog.text, "the access log")
        assert re.search(r"503 .* queued=\d+ms", caplog.text)
        await gone(first)


async def test_a_stop_answers_waiting_requests_at_once_and_lets_running_ones_end() -> None:
    async with crowd() as them:
        engine = them.pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        first = them.start("first")
        await wait_until(lambda: len(them.decoded()) == 1, "the first decode leg")
        waiting = [await them.line_up(f"w{n}") for n in range(3)]
        stopping = asyncio.get_running_loop().create_task(
            shut_down(them.pair.service.runner, 20, asyncio.Event())
        )
        for task in waiting:
            answer = await task
            assert answer.status == 503
            assert answer.headers["Connection"] == "close"
        assert not first.done()
        engine.faults.release()
        assert (await first).status == 200
        await stopping


async def test_affinity_chooses_among_the_instances_that_have_room() -> None:
    limits = Admission(max_prefill_tokens=400)
    async with fleet(prefill=2, decode=1, admission=limits, stand_in=UNHURRIED) as pair:
        prefix = list(range(1000, 1640))
        await pair.service.complete(prefix)
        body = {"prompt": [*prefix, 1]}
        chosen = (await pair.service.explain(body))["prefill"]["chosen"]
        with pair.service.fleet.claim(chosen, 0, Phase.PREFILL, 400):
            decision = (await pair.service.explain(body))["prefill"]
            whys = {c["instance"]: c["why"] for c in decision["candidates"]}
            assert whys[chosen] == "full"
            assert decision["chosen"] not in {None, chosen}
            assert (await pair.service.complete([*prefix, 1])).status == 200
        await pair.service.settled()


def test_a_client_is_what_the_header_names_else_its_key_else_nobody() -> None:
    def client(header: str | None, key: str = "", **headers: str) -> str:
        request = make_mocked_request("POST", "/", {name.replace("_", "-"): v for name, v in headers.items()})
        visit = visit_of(request)
        visit.client = key or None
        return client_of(request, visit, header)

    assert client("X-Client", X_Client="a") == "a"
    assert client("X-Client", "key", X_Client="a") == "a"
    assert client("X-Client", "key") == "key"
    assert client(None, "key", X_Client="a") == "key"
    assert client("X-Client") == client(None) == client("X-Client", X_Client="") == ANONYMOUS
    long = [client("X-Client", X_Client="x" * 5000 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) <= MAX_CLIENT_CHARS


# -- nothing usable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_attempt_that_finds_its_only_engine_dead_waits_until_it_is_back(role: str) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        engine: StandIn = getattr(pair.engines, role)[0]
        await engine.refuse()
        asking = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: queue_length(pair) == 1, "the queue")
        await engine.accept()
        assert (await asking).status == 200
        counted = await pair.service.metric("kvproxy_no_prefill_total", action="wait")
        assert counted == (1 if role == "prefill" else 0)
        await pair.service.settled()


async def test_draining_the_last_instance_makes_requests_wait_until_it_is_undone() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        body = {"type": "decode", "instance": pair.engines.decode[0].address}
        await pair.service.admin("/instances/drain", body)
        asking = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: queue_length(pair) == 1, "the queue")
        await pair.service.admin("/instances/drain", body | {"undo": True})
        assert (await asking).status == 200


async def test_while_engines_start_requests_wait_for_them() -> None:
    async with engines(prefill=1, decode=1) as made:
        await made.prefill[0].refuse()
        async with kvproxy(made.config(), ready=False) as service:
            asking = asyncio.get_running_loop().create_task(service.complete("hello"))
            await wait_until(lambda: len(service.app[SERVICE].gate) == 1, "the queue")
            await made.prefill[0].accept()
            assert (await asking).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_without_prefill_a_decode_engine_may_serve_it_all(stream: bool) -> None:
    limits = Admission(when_no_prefill=WhenNoPrefill.DECODE)
    async with fleet(prefill=1, decode=1, admission=limits) as pair:
        expected = (await pair.service.complete("hello")).text
        await pair.engines.prefill[0].refuse()
        for _ in range(2):
            answer = await pair.service.complete("hello", stream=stream)
            assert (answer.status, answer.text) == (200, expected)
        assert await pair.service.metric("kvproxy_no_prefill_total", action="decode") == 2
        assert await pair.service.metric("kvproxy_bypassed_requests_total", reason="no_prefill") == 2
        await pair.service.settled()


async def test_without_prefill_requests_may_fail_at_once() -> None:
    limits = Admission(when_no_prefill=WhenNoPrefill.FAIL)
    async with fleet(prefill=1, decode=1, kv_events=False, admission=limits) as pair:
        body = {"type": "prefill", "instance": pair.engines.prefill[0].address}
        await pair.service.admin("/instances/drain", body)
        answer = await pair.service.complete("hello")
        assert answer.status == 503
        assert "no prefill instance" in answer.json["error"]["message"]
        assert await pair.service.metric("kvproxy_no_prefill_total", action="fail") == 1


# -- memory -------------------------------------------------------------------------------------------------


def test_a_body_is_weighed_with_what_is_made_of_it() -> None:
    def weight(members: dict[str, Any]) -> float:
        """How many times its text."""
        data = json.dumps(members, separators=(",", ":")).encode()
        signs = signs_of(data)
        assert signs is not None
        return weigh(data, signs) / len(data)

    assert weight({"prompt": prose(20_000)}) < 4
    assert 5 < weight({"prompt": list(range(10_000))}) < 12
    assert 12 < weight({str(n): 1 for n in range(10_000)}) < 30


async def send_part(
    pair: Pair, announced_bytes: int, sent: bytes, source: str = "127.0.0.1"
) -> tuple[Any, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        pair.service.host, pair.service.port, local_addr=(source, 0)
    )
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (announced_bytes, sent)
    )
    await writer.drain()
    return reader, writer


async def test_bodies_beyond_the_memory_for_them_are_refused_and_it_comes_back() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, admission=Admission(max_bodies_mb=1)) as pair:
        budget = pair.service.app[SERVICE].bodies
        part = b'{"prompt": "' + b"x" * (1 << 19)
        reader, writer = await send_part(pair, 700_000, part)
        await wait_until(lambda: budget.held_bytes >= len(part), "the first half of a body")
        assert await pair.service.metric("kvproxy_body_bytes") >= len(part)
        big = b'{"prompt": "hi", "max_tokens": 1, "user": "%s"}' % (b"x" * 600_000)
        refused = await pair.service.ask("/v1/completions", big)
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "1"
        assert "--max-bodies-mb" in refused.json["error"]["message"]

        async def unannounced() -> AsyncIterator[bytes]:
            for at in range(0, len(big), 50_000):
                yield big[at : at + 50_000]

        headers = {"Content-Type": "application/json"}
        url = f"{pair.service.url}/v1/completions"
        async with pair.service.session.post(url, data=unannounced(), headers=headers) as response:
            assert response.status == 503
        unread, unsent = await send_part(pair, 600_000, b"{")
        assert b" 503 " in await unread.readline()  # before it is sent
        unsent.close()
        await unsent.wait_closed()
        assert await pair.service.metric("kvproxy_refused_requests_total", reason="no_memory") == 3
        assert (await pair.service.complete("small ones are still served")).status == 200
        writer.close()
        await writer.wait_closed()
        del reader
        await wait_until(lambda: budget.held_bytes == 0, "the end of the lease")
        assert (await pair.service.ask("/v1/completions", big)).status == 200
        assert budget.held_bytes == 0


async def test_a_client_that_only_announces_a_large_body_takes_nothing_from_others() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, admission=Admission(max_bodies_mb=1)) as pair:
        holders = [await send_part(pair, 1 << 20, b"{") for _ in range(20)]
        assert (await pair.service.complete(prose(2000))).status == 200
        for _, writer in holders:
            writer.close()
            await writer.wait_closed()
        await wait_until(lambda: pair.service.app[SERVICE].bodies.held_bytes == 0, "the end of the leases")


async def test_a_client_that_withholds_the_end_of_large_bodies_locks_nobody_out() -> None:
    patience = Patience(body_stall_s=4.0, body_look_every_s=0.1)
    limits = Admission(max_bodies_mb=8)
    async with fleet(prefill=1, decode=1, kv_events=False, admission=limits, patience=patience) as pair:
        budget = pair.service.app[SERVICE].bodies
        part = b'{"prompt": "' + b"x" * (2 << 20)
        held = [await send_part(pair, len(part) + 9, part) for _ in range(4)]
        await wait_until(lambda: budget.held_bytes >= 2 * len(part), "bodies without their ends")
        assert (await pair.service.complete("small ones of the same address are served")).status == 200
        large = b'{"prompt": "hi", "max_tokens": 1, "user": "%s"}' % (b"x" * 300_000)
        reader, writer = await send_part(pair, len(large), large, "127.0.0.2")
        assert b" 200 " in await reader.readline()  # so are large ones of another
        assert budget.held_bytes >= 2 * len(part)
        async with asyncio.timeout(20):
            statuses = {(await reader.readline()).split()[1] for reader, _ in held}
        assert statuses <= {b"408", b"503"}
        assert b"408" in statuses
        await wait_until(lambda: budget.held_bytes == 0, "the end of the leases")
        assert (await pair.service.ask("/v1/completions", large)).status == 200
        for each in (writer, *(writer for _, writer in held)):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()


def test_bodies_are_shared_between_addresses_where_no_client_has_a_name() -> None:
    def holder(header: str | None, peer: str, key: str = "", **headers: str) -> str:
        transport = mock.Mock()
        transport.get_extra_info.side_effect = {"peername": (peer, 1)}.get
        request = make_mocked_request(
            "POST",
            "/",
            {name.replace("_", "-"): v for name, v in headers.items()},
            transport=transport,
        )
        visit = visit_of(request)
        visit.client = key or None
        return holder_of(request, visit, header)

    assert holder(None, "10.0.0.1", "key") == holder(None, "10.0.0.2", "key") == "key"
    assert holder("X-Client", "10.0.0.1", X_Client="a") == "a"
    assert holder(None, "10.0.0.1") == holder("X-Client", "10.0.0.1") != holder(None, "10.0.0.2")
    assert holder(None, "::ffff:10.0.0.1") == holder(None, "10.0.0.1")
    assert holder(None, "2001:db8::1") == holder(None, "2001:db8::ffff:1") != holder(None, "2001:db8:0:1::1")


async def test_the_body_counts_while_its_request_waits_or_runs() -> None:
    async with crowd() as them:
        first = await them.occupy()
        budget = them.pair.service.app[SERVICE].bodies
        one = budget.held_bytes
        assert one > 0
        waiting = await them.line_up("w", filler="x" * 100_000)
        assert budget.held_bytes >= one + 200_000
        await gone(first)
        await waiting
        await them.pair.service.settled()
        assert budget.held_bytes == 0


async def test_an_answer_beyond_all_reason_is_a_failed_leg() -> None:
    async with StandIn() as engine, upstream.EngineClient() as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 4000, "ignore_eos": True}
        answer = await client.post(engine.address, "/v1/completions", json.dumps(body).encode(), [])
        with answer, pytest.raises(LegBrokenError, match="longer than 9 KiB"):
            await answer.read(10_000)


# -- clients that do not read -------------------------------------------------------------------------------

EVENT = b"data: " + b"x" * 8000 + b"\n\n"


class EndlessSource:
    """A server that relays streams without end and notes what it had to produce."""

    def __init__(self, stall_s: float) -> None:
        self.produced_bytes = 0
        self.stalled = 0
        self.ended = 0
        self.transports: list[asyncio.Transport] = []
        self._stall_s = stall_s

    async def _events(self) -> AsyncIterator[bytes]:
        while True:
            self.produced_bytes += len(EVENT)
            yield EVENT

    def _count(self) -> None:
        self.stalled += 1

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.transports.append(request.transport)
        response = web.StreamResponse()
        try:
            with StallWatch(request, self._stall_s, self._count):
                await relay_stream(request, response, self._events(), CHAT, asyncio.Event())
        finally:
            self.ended += 1
        return response

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_get("/", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        try:
            await web.SockSite(runner, listener).start()
            yield listener.getsockname()[1]
        finally:
            await runner.cleanup()


def deaf(port: int) -> socket.socket:
    """A client that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


async def test_fifty_clients_that_do_not_read_hold_little_and_their_engine_is_not_read_either() -> None:
    source = EndlessSource(stall_s=60)
    async with source.serving() as port:
        clients = [deaf(port) for _ in range(50)]
        await wait_until(lambda: len(source.transports) == 50, "all streams")
        before, still = 0, 0
        async with asyncio.timeout(20):
            while still < 10:  # turns of the loop in which nothing more was taken from the engine
                still = still + 1 if source.produced_bytes == before else 0
                before = source.produced_bytes
                await asyncio.sleep(0.01)
        waiting = [transport.get_write_buffer_size() for transport in source.transports]
        assert max(waiting) <= 2 * (64 << 10) + len(EVENT)
        assert source.produced_bytes <= 50 * (300 << 10)
        assert source.stalled == 0
        for client in clients:
            client.close()
        await wait_until(lambda: source.ended == 50, "the end of all streams")


async def test_a_client_that_takes_nothing_is_cut_and_one_that_reads_slowly_is_not() -> None:
    source = EndlessSource(stall_s=3.0)
    async with source.serving() as port:
        client = deaf(port)
        slow = deaf(port)
        slow.setblocking(False)
        while source.stalled == 0:
            with contextlib.suppress(BlockingIOError):
                slow.recv(4000)
            await asyncio.sleep(0.02)
        await wait_until(lambda: source.ended == 1, "the end of the deaf client's stream")
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                assert slow.recv(4000)
            await asyncio.sleep(0.02)
        assert (source.stalled, source.ended) == (1, 1)
        client.close()
        slow.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stalled_client_holds_no_claim_for_ever(stream: bool) -> None:
    deadlines = Deadlines(client_stall_s=0.4)
    async with fleet(prefill=1, decode=1, deadlines=deadlines) as pair:
        for site in pair.service.runner.sites:
            server = site._server
            assert isinstance(server, asyncio.Server)
            for listener in server.sockets:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = json.dumps(
            {"prompt": "x", "max_tokens": 4000, "logprobs": 5, "ignore_eos": True, "stream": stream}
        ).encode()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((pair.service.host, pair.service.port))
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        async with asyncio.timeout(20):
            while not await pair.service.metric("kvproxy_stalled_clients_total"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await pair.service.settled()
        assert pair.service.app[SERVICE].bodies.held_bytes == 0
        client.close()


async def test_each_prompt_of_a_list_is_let_in_by_itself_and_none_waits_for_ever() -> None:
    async with crowd() as them:
        answer = await them.start("list", prompt=["a", "b", "c", "d"])
        assert answer.status == 200
        assert len(answer.json["choices"]) == 4
        assert len(them.decoded()) == 4
        assert await them.pair.service.metric("kvproxy_queue_wait_seconds_count") == 3
        await them.pair.service.settled()


async def test_a_list_of_more_prompts_than_the_queue_has_places_is_served() -> None:
    async with fleet(admission=Admission(max_prefill_tokens=20, max_queue=2)) as pair:
        answer = await pair.service.complete([prose(20, n) for n in range(12)])
        assert answer.status == 200
        assert len(answer.by_choice) == 12
        await pair.service.settled()
