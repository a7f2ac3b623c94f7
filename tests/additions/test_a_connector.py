"""One class adds a connector whose legs run at once, for engines that move KV while it is still computed. No
other room is touched.

The first half is all that it takes. The second half drives it, in front of stand-ins whose decode engines
wait for the blocks of the prefill engine that their request names.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.config import Deadlines, Retries
from proxy.connectors import Connector, Handoff
from proxy.connectors.hand_over import judged
from proxy.connectors.handoff import read_params
from proxy.connectors.plans import AtOnce, Pair, Plan, Whole
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.doctor import Doctor, Report
from proxy.edge.app_keys import SERVICE
from proxy.findings import Finding, Status, warned
from proxy.phases import Phase
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage
from proxy.request.generation import GenerationRequest
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from proxy.tasks import TaskOwner
from proxy.upstream.client import EngineClient
from tests.helpers.service import Answer, Engines, InOrder, Service, ask, kvproxy, prose, wait_until

# -- the connector -----------------------------------------------------------------------------------------


class Rendezvous:
    """Both engines are told of one transfer, and meet by its id; implements Connector and LegsAtOnce."""

    name = "rendezvous"
    how = "sends both legs at once, for engines that meet by an id"

    def plan(self, request: GenerationRequest) -> Plan:
        return AtOnce(self) if request.sequences == 1 else Whole()  # each sequence would take the blocks

    def request_id(self, pair: Pair) -> str:
        return f"{pair.attempt_id}--{pair.prefill}--{pair.decode}"

    def prefill_body(self, first: Body, pair: Pair) -> Encoded:
        told = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": pair.attempt_id}
        return first.changed({"kv_transfer_params": told}).to_send()

    def decode_body(self, body: Body, pair: Pair) -> Encoded:
        told = {"do_remote_decode": False, "do_remote_prefill": True, "transfer_id": pair.attempt_id}
        return body.changed({"kv_transfer_params": told | {"prefill": pair.prefill}}).to_send()

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        return read_params(answer, usage)

    def judge_pair(self, tried: TriedPair) -> list[Finding]:
        return [
            judged(tried, unreachable="open the port they meet on", itself=(": they never met", "let them"))
        ]

    def judge_fleet(self, engines: Sequence[SeenEngine]) -> list[Finding]:
        return [warned("rendezvous", f"{len(engines)} engines may meet", "this is but an example")]


# -- engines for it ----------------------------------------------------------------------------------------


class Place:
    """Where stand-ins meet: a decode leg waits until the prefill leg of its transfer has been answered."""

    def __init__(self) -> None:
        self.computed: dict[str, asyncio.Event] = {}
        self.running: Counter[Phase] = Counter()
        self.cancelled: Counter[Phase] = Counter()
        """Legs whose connection was closed while they ran."""
        self.may_compute = asyncio.Event()
        """Prefill legs wait for it."""
        self.may_compute.set()
        self.failures = 0
        """How many prefill legs fail once they may compute."""
        self.waits = True
        """Whether decode legs wait."""

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read() or b"{}")
        told = body.get("kv_transfer_params") or {} if isinstance(body, dict) else {}
        if not told:
            return await handler(request)
        phase = Phase.PREFILL if told["do_remote_decode"] else Phase.DECODE
        met = self.computed.setdefault(told["transfer_id"], asyncio.Event())
        self.running[phase] += 1
        try:
            if phase is Phase.PREFILL:
                await self.may_compute.wait()
                if self.failures:
                    self.failures -= 1
                    return web.json_response({"error": {"message": "out of order"}}, status=500)
            elif self.waits:
                await met.wait()
            answer = await handler(request)
        except asyncio.CancelledError:
            self.cancelled[phase] += 1
            raise
        finally:
            self.running[phase] -= 1
        if phase is Phase.PREFILL and answer.status == 200:
            met.set()
        return answer

    def both_run(self) -> bool:
        return self.running == {Phase.PREFILL: 1, Phase.DECODE: 1}


class Scene:
    """Engines that meet, and the kvproxy in front of them."""

    def __init__(self, place: Place, engines: Engines, service: Service) -> None:
        self.place, self.engines, self.service = place, engines, service
        self.clients = TaskOwner("clients")

    def ask(self, seed: int = 0, **members: Any) -> "asyncio.Task[Answer]":
        """A client that waits for its answer until it is cancelled."""
        return self.clients.create(self.service.complete(prose(60, seed), **members), name="client")

    async def over(self, **ends: int) -> None:
        """Nothing runs, is claimed or waits, and the blocks of all attempts ended like this."""
        await self.service.settled()
        await wait_until(lambda: not +self.place.running, "the end of all legs")
        samples = self.service.app[SERVICE].registry.get_sample_value
        told = {end: samples("kvproxy_holds_total", {"end": end}) or 0
                for end in ("pulled", "released", "stranded", "unknown")}  # fmt: skip
        assert {end: count for end, count in told.items() if count} == ends
        assert sum(self.service.fleet.holds.values()) == 0
        assert all(not i.running_legs() and not i.running_tokens() for i in self.service.fleet)
        assert self.work_tokens == [0] * len(list(self.service.fleet))
        assert all(i.fullness.legs == 0 for i in self.service.fleet)

    @property
    def work_tokens(self) -> list[int]:
        """What is still to be computed, by instance."""
        return [instance.running_prefill_tokens() for instance in self.service.fleet]

    def legs(self, engine: StandIn) -> list[dict[str, Any]]:
        """The `kv_transfer_params` of the legs that it was sent."""
        return [s.json()["kv_transfer_params"] for s in engine.seen if s.path.startswith("/v1/")]


@contextlib.asynccontextmanager
async def meeting(prefill: int = 1, decode: int = 1) -> AsyncIterator[tuple[Place, Engines]]:
    place = Place()
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                StandIn(StandInConfig(connector=False), before=[place.middleware])
            )
            for _ in range(prefill + decode)
        ]
        made.sort(key=lambda engine: engine.address)  # as the policy goes
        yield place, Engines(made[:prefill], made[prefill:], [])


@contextlib.asynccontextmanager
async def serving(prefill: int = 1, decode: int = 1, **settings: Any) -> AsyncIterator[Scene]:
    async with (
        meeting(prefill, decode) as (place, engines),
        kvproxy(engines.config(**settings), InOrder(), connector=Rendezvous()) as service,
    ):
        scene = Scene(place, engines, service)
        yield scene
        await scene.clients.close()


# -- what it does ------------------------------------------------------------------------------------------


def test_the_class_is_a_connector() -> None:
    connector: Connector = Rendezvous()
    assert connector.name == "rendezvous"


@pytest.mark.parametrize("stream", [False, True])
async def test_both_legs_run_at_once_and_the_answer_is_the_decode_engines(stream: bool) -> None:
    async with serving() as scene:
        place, service = scene.place, scene.service
        place.may_compute.clear()
        body = {"model": "tiny", "prompt": prose(60), "max_tokens": 8, "temperature": 0, "stream": stream}
        asked = scene.clients.create(service.ask("/v1/completions", body), name="client")
        await wait_until(place.both_run, "both legs")
        assert service.claims == 2
        place.may_compute.set()
        answer = await asked
        assert (answer.status, answer.streamed) == (200, stream)
        async with StandIn() as alone:
            assert answer.text == (await ask(service.session, alone.url, "/v1/completions", body)).text != ""
        [first], [second] = map(scene.legs, scene.engines.all)
        assert first["transfer_id"] == second["transfer_id"]
        assert second["prefill"] == scene.engines.prefill[0].address
        for engine in scene.engines.all:
            [leg] = [seen for seen in engine.seen if seen.path == "/v1/completions"]
            pair = f"--{scene.engines.prefill[0].address}--{scene.engines.decode[0].address}"
            assert leg.headers["X-Request-Id"] == first["transfer_id"] + pair
        await scene.over(pulled=1)
        assert (await service.ask("/status")).json["connector"] == "rendezvous"


async def test_a_prefill_leg_that_fails_ends_the_decode_leg_and_another_pair_is_tried() -> None:
    async with serving(prefill=2) as scene:
        place, other = scene.place, scene.engines.prefill[1]
        place.may_compute.clear()
        place.failures = 1
        asked = scene.ask()
        await wait_until(place.both_run, "both legs")
        place.may_compute.set()
        assert (await asked).status == 200
        assert len(scene.legs(other)) == 1
        ids = {leg["transfer_id"] for engine in scene.engines.all for leg in scene.legs(engine)}
        assert len(ids) == 2
        await scene.over(pulled=1)
        assert place.cancelled == {Phase.DECODE: 1}
        assert await scene.service.metric("kvproxy_retries_total", phase="prefill", reason="status") == 1


async def test_a_decode_leg_that_fails_ends_the_prefill_leg_and_another_pair_is_tried() -> None:
    async with serving(decode=2) as scene:
        place, (bad, good) = scene.place, scene.engines.decode
        place.may_compute.clear()
        bad.faults.add(Fault(kind="status", path="/v1/c", status=500, times=1))
        asked = scene.ask()
        await wait_until(lambda: len(scene.legs(good)) == 1, "the second attempt")
        await wait_until(lambda: place.cancelled[Phase.PREFILL] == 1, "the end of the first")
        place.may_compute.set()
        assert (await asked).status == 200
        await scene.over(pulled=1, unknown=1)
        assert await scene.service.metric("kvproxy_retries_total", phase="decode", reason="status") == 1


async def test_a_decode_leg_that_breaks_after_its_prefill_leg_leaves_blocks_to_the_engines() -> None:
    async with serving(decode=2) as scene:
        scene.engines.decode[0].faults.add(Fault(kind="cut", path="/v1/c", times=1))
        answer = await scene.service.complete(prose(60))
        assert answer.status == 200
        assert len(scene.legs(scene.engines.prefill[0])) == 2
        await scene.over(pulled=1, stranded=1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_both_legs(stream: bool) -> None:
    async with serving() as scene:
        scene.place.may_compute.clear()
        asked = scene.ask(stream=stream)
        await wait_until(scene.place.both_run, "both legs")
        asked.cancel()
        await asyncio.wait({asked})
        await wait_until(lambda: scene.place.cancelled == {Phase.PREFILL: 1, Phase.DECODE: 1}, "both ends")
        await scene.over(unknown=1)


async def test_a_client_that_leaves_between_the_answers_ends_the_decode_leg() -> None:
    async with serving() as scene:
        scene.engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c"))
        asked = scene.ask()
        await wait_until(lambda: sum(scene.service.fleet.holds.values()) == 1, "the prefill leg's answer")
        asked.cancel()
        await asyncio.wait({asked})
        await scene.over(stranded=1)


async def test_a_stream_that_begins_before_its_prefill_leg_is_answered_does_not_wait_for_it() -> None:
    async with serving() as scene:
        scene.place.waits = False
        scene.place.may_compute.clear()
        answer = await scene.service.complete(prose(60), stream=True)
        assert (answer.status, answer.events[-1]) == (200, "[DONE]")
        assert scene.place.running[Phase.PREFILL] == 1
        assert [tokens > 0 for tokens in scene.work_tokens] == [True, False]
        scene.place.may_compute.set()
        await scene.over(pulled=1)
        assert not scene.place.cancelled  # it had a moment to end by itself


@pytest.mark.parametrize(("prefill_s", "status"), [(20.0, 200), (0.1, 504)])
async def test_a_decode_leg_has_the_time_of_both(prefill_s: float, status: int) -> None:
    deadlines = Deadlines(prefill_s=prefill_s, first_byte_s=0.1)
    async with serving(deadlines=deadlines, retries=Retries(max_attempts=1)) as scene:
        scene.place.may_compute.clear()
        asked = scene.ask()
        if status == 200:
            await asyncio.wait({asked}, timeout=0.5)
            scene.place.may_compute.set()
        assert (await asked).status == status
        await scene.service.settled()


async def test_an_engines_refusal_reaches_the_client_and_is_not_tried_again() -> None:
    async with serving(prefill=2, decode=2) as scene:
        answer = await scene.service.complete(prose(60), temperature=-1)
        assert answer.status == 400
        assert sum(len(scene.legs(engine)) for engine in scene.engines.all) <= 2
        await scene.service.settled()
        assert await scene.service.metric("kvproxy_retries_total") == 0


async def test_requests_that_it_cannot_split_are_served_whole_and_lists_go_prompt_by_prompt() -> None:
    async with serving() as scene:
        answer = await scene.service.complete(prose(60), n=2, temperature=0.5)
        assert sorted(answer.by_choice) == [0, 1]
        [leg] = [seen for seen in scene.engines.decode[0].seen if seen.path == "/v1/completions"]
        assert "kv_transfer_params" not in leg.json()
        told = await scene.service.explain({"model": "tiny", "prompt": "hi", "n": 2})
        assert told["prefill"]["chosen"] == told["decode"]["chosen"] == scene.engines.decode[0].address
        answer = await scene.service.complete([prose(60, 1), prose(60, 2)])
        assert sorted(answer.by_choice) == [0, 1]
        await scene.over(pulled=2)


async def test_a_crowd_of_clients_that_come_and_go_leaves_nothing() -> None:
    async with serving(prefill=2, decode=2) as scene:
        scene.place.may_compute.clear()
        asked = [scene.ask(n, stream=n % 2 == 0) for n in range(12)]
        await wait_until(lambda: scene.place.running[Phase.DECODE] == 12, "all decode legs")
        for task in asked[::3]:
            task.cancel()
        scene.place.may_compute.set()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        served = [end for end in ends if not isinstance(end, BaseException)]
        assert len(served) >= 8
        assert {answer.status for answer in served} == {200}
        await scene.service.settled()
        assert scene.service.claims == sum(scene.service.fleet.holds.values()) == 0


async def examined(engines: Engines) -> Report:
    config = engines.config()
    async with EngineClient() as client:
        for spec in config.instances:
            client.reach(spec)
        doctor = Doctor(config, client, Rendezvous(), limit_s=60.0)
        try:
            return await doctor.examine(config.instances, None)
        finally:
            await doctor.close()


def words(report: Report, step: str) -> tuple[Status, str, str | None]:
    [finding] = [finding for finding in report.findings if finding.step == step]
    return finding.status, finding.words, finding.remedy


async def test_the_doctor_sends_both_legs_and_says_what_the_connector_finds() -> None:
    async with meeting() as (place, engines):
        report = await examined(engines)
        assert report.connector == "rendezvous"
        assert words(report, "rendezvous") == (Status.WARN, "2 engines may meet", "this is but an example")
        status, told, remedy = words(report, "hand_over")
        assert (status, remedy) == (Status.FAIL, "let them")  # these stand-ins move nothing
        assert told.endswith(" prompt tokens itself: they never met")
        assert len(place.computed) >= 1
        assert all(met.is_set() for met in place.computed.values())


async def test_the_doctor_ends_a_leg_that_waits_in_vain() -> None:
    async with meeting() as (place, engines):
        engines.prefill[0].faults.add(Fault(kind="status", path="/v1/completions", status=500))
        report = await examined(engines)
        status, told, _ = words(report, "hand_over")
        assert status is Status.FAIL
        assert told.startswith("the prefill leg failed: status 500")
        await wait_until(lambda: not +place.running, "the end of all legs")
