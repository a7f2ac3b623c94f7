"""Dead, frozen and failing engines are left alone soon, busy ones are not, and one that comes back is tried
gently.
"""

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
from collections import Counter
from typing import Any

import pytest

from proxy.config import Config, Health, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Instance, Status
from proxy.fleet.circuit import Circuit
from proxy.fleet.load import Load
from proxy.phases import Phase, Role
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.tuning import Tuning
from scripts.workshop.engines.fleet import plan
from scripts.workshop.engines.stand_in import StandInFleet
from tests.helpers.service import (
    ADMIN_KEY,
    UNHURRIED,
    Engines,
    InOrder,
    Pair,
    Rather,
    Service,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)

QUICK = Health(interval_s=0.1, timeout_s=2.0, slow_start_s=0.0)
IMPATIENT = Health(interval_s=0.1, timeout_s=0.4, slow_start_s=0.0)
LEGS = "/v1/c"


def of(pair: Pair, engine: StandIn) -> Instance:
    instance = pair.service.fleet.get(engine.address)
    assert instance is not None
    return instance


def eject_for_long(pair: Pair) -> None:
    """Who is ejected stays so for the whole test, however slow the machine."""
    for instance in pair.service.fleet:
        instance.breaker.ejected_first_s = instance.breaker.max_ejected_s = 600.0


def fail(engine: StandIn, kind: Any = "status", path: str = LEGS, **fault: Any) -> None:
    engine.faults.add(Fault(kind=kind, path=path, **{"status": 500} | fault))


def legs(engine: StandIn) -> list[str]:
    """The request ids of the legs an engine has seen, releases left out."""
    return [
        s.headers["X-Request-Id"]
        for s in engine.seen
        if s.path.startswith(LEGS) and b"kvproxy-release" not in s.body
    ]


async def circuit(service: Service, address: str) -> tuple[str, str | None]:
    """The state of an instance's circuit and what went wrong, as `/status` shows them."""
    shown = (await service.ask("/status")).json["instances"]
    return next((i["circuit"], i["why"]) for i in shown if i["instance"] == address)


async def why(service: Service, address: str, phase: str = "prefill") -> str | None:
    candidates = (await service.explain({"prompt": "x"}))[phase]["candidates"]
    found: str | None = next(c["why"] for c in candidates if c["instance"] == address)
    return found


def first_of(made: Engines) -> Rather:
    """A policy: the first of each role gets the legs while it may have any."""
    return Rather(made.prefill[0].address, made.decode[0].address)


# -- frozen engines ------------------------------------------------------------------------------------------


async def test_a_frozen_process_is_found_with_the_default_settings_and_its_legs_move(
    tmp_path: pathlib.Path,
) -> None:
    with StandInFleet(plan(prefill=2, decode=2), tmp_path, say=lambda _: None) as stand_ins:
        stand_ins.start()
        await asyncio.to_thread(stand_ins.wait_healthy, None, 60)
        config = Config(
            model="tiny",
            admin_api_key=ADMIN_KEY,
            instances=tuple(
                parse_instance(spec.address, Role(role))
                for role in ("prefill", "decode")
                for spec in stand_ins.of_role(role)
            ),
            policy="cache_affinity",
        )
        async with kvproxy(config) as service:
            frozen = [stand_ins["prefill-0"].address, stand_ins["decode-0"].address]
            for name in ("prefill-0", "decode-0"):
                os.kill(stand_ins.pid(name), signal.SIGSTOP)
            async with asyncio.timeout(40):
                answers = await asyncio.gather(*[service.complete(prose(20, n)) for n in range(16)])
            assert [answer.status for answer in answers] == [200] * 16
            # A first missed check already keeps further legs away, so all may be answered before the third.
            await wait_until(
                lambda: all(i.status is Status.DOWN for i in service.fleet if i.address in frozen),
                "both are found",
            )
            for address in frozen:
                assert (await circuit(service, address))[0] == "open"
                assert await service.metric("kvproxy_instance_up", instance=address) == 0
                assert await service.metric("kvproxy_checks_total", instance=address, finding="missed") >= 3
            assert await service.metric("kvproxy_retries_total") <= 2 * 16
            await service.settled()
            for name in ("prefill-0", "decode-0"):
                os.kill(stand_ins.pid(name), signal.SIGCONT)
            await wait_until(
                lambda: all(i.status is Status.UP for i in service.fleet), "the return of what thawed"
            )


async def test_legs_and_streams_of_an_engine_that_stopped_answering_are_given_up() -> None:
    async with fleet(health=IMPATIENT) as pair:
        frozen = pair.engines.prefill[0]
        fail(frozen, "hang")
        loop = asyncio.get_running_loop()
        asking = [loop.create_task(pair.service.complete(prose(30, n))) for n in range(6)]
        await wait_until(lambda: bool(legs(frozen)), "a leg that hangs")
        fail(frozen, "hang", "/")
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*asking)
        assert {answer.status for answer in answers} == {200}
        assert max(Counter(legs(frozen)).values()) == 1
        await pair.service.settled()


async def test_an_engine_that_missed_a_check_gets_no_legs_while_others_can_take_them() -> None:
    async with fleet(health=Health(interval_s=0.1, timeout_s=2.0)) as pair:
        doubtful, other = pair.engines.prefill
        fail(doubtful, "hang", "/")
        await wait_until(lambda: of(pair, doubtful).breaker.doubtful, "a missed check")
        assert await why(pair.service, doubtful.address) == "not answering"
        assert (await pair.service.complete("hello")).status == 200
        assert not legs(doubtful)
        await pair.service.admin("/instances/drain", {"instance": other.address})
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello again"))
        await wait_until(lambda: bool(legs(doubtful)), "a leg where nothing else is left")
        await pair.service.admin("/instances/drain", {"instance": other.address, "undo": True})
        assert (await running).status == 200  # it moved when its engine was given up


async def test_a_busy_engine_that_misses_its_checks_is_not_ejected_while_it_is_heard() -> None:
    async with fleet(prefill=1, decode=1, health=IMPATIENT, stand_in=UNHURRIED) as pair:
        busy = pair.engines.decode[0]
        instance = of(pair, busy)
        body = {"prompt": "hello", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        async with pair.service.session.post(f"{pair.service.url}/v1/completions", json=body) as response:
            await response.content.readany()
            fail(busy, "hang", "/health")
            checks = 0.0
            async with asyncio.timeout(20):
                while checks < 5:
                    await response.content.readany()
                    assert instance.status is Status.UP
                    checks = await pair.service.metric(
                        "kvproxy_checks_total", instance=busy.address, finding="busy"
                    )
        # Once nothing is heard of it any more, the same checks say that it is gone.
        await wait_until(lambda: instance.status is Status.DOWN, "down")


async def test_an_engine_that_says_it_is_dead_is_down_at_once() -> None:
    async with fleet(health=QUICK) as pair:
        dead = pair.engines.prefill[0]
        fail(dead, path="/health", status=503)
        await wait_until(lambda: of(pair, dead).status is Status.DOWN, "down")
        assert await circuit(pair.service, dead.address) == ("open", "status 503 for /health")
        assert await why(pair.service, dead.address) == "down"
        told = {"instance": dead.address, "finding": "unhealthy"}
        assert await pair.service.metric("kvproxy_checks_total", **told) >= 1
        for n in range(4):
            assert (await pair.service.complete(prose(5, n))).status == 200
        assert not legs(dead)


# -- what a dead instance costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "status"])
async def test_a_failing_instance_costs_a_request_at_most_one_attempt(kind: str) -> None:
    async with engines() as made, kvproxy(made.config(), first_of(made)) as service:
        pair = Pair(made, service)
        failing = [made.prefill[0], made.decode[0]]
        for engine in failing:
            fail(engine, kind)
        answers = await asyncio.gather(*[pair.service.complete(prose(20, n)) for n in range(20)])
        assert {answer.status for answer in answers} == {200}
        for engine in failing:
            seen = Counter(legs(engine))
            assert seen
            assert max(seen.values()) == 1


async def test_an_engine_that_is_gone_costs_one_attempt_and_then_none() -> None:
    async with engines() as made, kvproxy(made.config(), first_of(made)) as service:
        pair = Pair(made, service)
        gone = made.decode[0]
        await gone.stop()
        answers = [await pair.service.complete(prose(5, n)) for n in range(10)]
        assert {answer.status for answer in answers} == {200}
        assert await pair.service.metric("kvproxy_retries_total", instance=gone.address) <= 1


# -- engines that answer and fail ----------------------------------------------------------------------------


async def test_an_engine_whose_legs_others_make_good_is_ejected_and_tried_again() -> None:
    async with engines() as made, kvproxy(made.config(health=QUICK), first_of(made)) as service:
        pair = Pair(made, service)
        eject_for_long(pair)
        failing = made.prefill[0]
        instance = of(pair, failing)
        fail(failing)
        for n in range(4):
            assert (await pair.service.complete(prose(5, n))).status == 200
        state, words = await circuit(pair.service, failing.address)
        assert state == "open"
        assert "another instance served" in (words or "")
        assert len(legs(failing)) == 3
        assert await why(pair.service, failing.address) == "circuit open"
        failing.faults.clear()
        instance.breaker._open_until = 0.0  # as if the time were over
        await wait_until(lambda: instance.breaker.state is Circuit.HALF_OPEN, "half-open")
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[1].address})
        assert (await pair.service.complete("hello")).status == 200
        assert await circuit(pair.service, failing.address) == ("closed", None)
        for state, count in (("open", 1), ("half_open", 1), ("closed", 1)):
            to = {"instance": failing.address, "to": state}
            assert await pair.service.metric("kvproxy_circuit_transitions_total", **to) == count
        assert await pair.service.metric("kvproxy_circuit_state", instance=failing.address) == 1
        closed = {"instance": failing.address, "state": "closed"}
        assert await pair.service.metric("kvproxy_circuit_state", **closed) == 1


async def test_what_every_instance_fails_is_charged_to_none() -> None:
    async with fleet(health=QUICK) as pair:
        for engine in pair.engines.all:
            fail(engine)
        for n in range(6):
            assert (await pair.service.complete(prose(5, n))).status == 500
        assert {i.breaker.state for i in pair.service.fleet} == {Circuit.CLOSED}
        for engine in pair.engines.all:
            engine.faults.clear()
        assert (await pair.service.complete("hello")).status == 200


async def test_an_ejected_instance_serves_when_there_is_no_other() -> None:
    async with fleet(health=QUICK) as pair:
        eject_for_long(pair)
        ejected, other = pair.engines.decode
        for _ in range(3):
            pair.service.app[SERVICE].watch.legs.others_served([ejected.address])
        assert await why(pair.service, ejected.address, "decode") == "circuit open"
        for n in range(5):
            await pair.service.complete(prose(5, n))
        assert not legs(ejected)
        await other.stop()
        assert (await pair.service.complete("hello")).status == 200
        assert legs(ejected)


async def test_a_broken_stream_has_its_engine_checked_at_once() -> None:
    async with fleet(prefill=1, decode=1, health=Health(interval_s=600.0)) as pair:
        decode = pair.engines.decode[0]
        before = await pair.service.metric("kvproxy_checks_total", instance=decode.address)
        fail(decode, "cut", after_bytes=1500)
        with contextlib.suppress(Exception):
            await pair.service.complete("hello", max_tokens=100, ignore_eos=True, stream=True)
        async with asyncio.timeout(20):
            checks = before
            while checks == before:
                checks = await pair.service.metric("kvproxy_checks_total", instance=decode.address)


# -- coming back ---------------------------------------------------------------------------------------------


async def test_one_leg_at_a_time_tries_an_engine_that_came_back() -> None:
    seldom = Health(interval_s=1.0, timeout_s=2.0, slow_start_s=0.0)  # a trial is over after five checks
    async with fleet(health=seldom) as pair:
        back, other = pair.engines.decode
        await back.refuse()
        await wait_until(lambda: of(pair, back).status is Status.DOWN, "down")
        fail(back, "slow", delay_s=2.0)
        await back.accept()
        await wait_until(lambda: of(pair, back).breaker.state is Circuit.HALF_OPEN, "half-open")
        answers = await asyncio.gather(*[pair.service.complete(prose(20, n)) for n in range(12)])
        assert {answer.status for answer in answers} == {200}
        assert len(legs(back)) == 1
        assert len(legs(other)) == 11
        assert of(pair, back).breaker.state is Circuit.CLOSED


async def test_while_one_leg_tries_it_the_only_instance_takes_the_others_too() -> None:
    async with fleet(prefill=1, decode=1, health=QUICK) as pair:
        only = pair.engines.decode[0]
        await only.refuse()
        await wait_until(lambda: of(pair, only).status is Status.DOWN, "down")
        await only.accept()
        await wait_until(lambda: of(pair, only).breaker.state is Circuit.HALF_OPEN, "half-open")
        fail(only, "slow", delay_s=0.3)
        answers = await asyncio.gather(*[pair.service.complete(prose(20, n)) for n in range(6)])
        assert {answer.status for answer in answers} == {200}


async def test_a_leg_that_breaks_on_trial_opens_the_circuit_again() -> None:
    async with fleet(health=QUICK) as pair:
        eject_for_long(pair)
        back = pair.engines.decode[0]
        await back.refuse()
        await wait_until(lambda: of(pair, back).status is Status.DOWN, "down")
        fail(back, "cut")
        await back.accept()
        await wait_until(lambda: of(pair, back).breaker.state is Circuit.HALF_OPEN, "half-open")
        answers = await asyncio.gather(*[pair.service.complete(prose(20, n)) for n in range(8)])
        assert {answer.status for answer in answers} == {200}
        assert len(legs(back)) == 1
        assert of(pair, back).breaker.state is Circuit.OPEN
        assert of(pair, back).status is Status.UP  # it answers checks, and serves if nothing else can


async def test_a_trial_that_breaks_with_nobody_to_make_it_good_opens_the_circuit_all_the_same() -> None:
    async with fleet(prefill=1, decode=1, health=QUICK) as pair:
        eject_for_long(pair)
        only = pair.engines.decode[0]
        await only.refuse()
        await wait_until(lambda: of(pair, only).status is Status.DOWN, "down")
        fail(only, "cut")
        await only.accept()
        await wait_until(lambda: of(pair, only).breaker.state is Circuit.HALF_OPEN, "half-open")
        assert (await pair.service.complete("hello")).status == 502
        assert of(pair, only).breaker.state is Circuit.OPEN
        only.faults.clear()
        assert (await pair.service.complete("hello")).status == 200  # nothing else could
        assert of(pair, only).breaker.state is Circuit.HALF_OPEN
        assert (await pair.service.complete("hello")).status == 200
        assert of(pair, only).breaker.state is Circuit.CLOSED


async def test_an_instance_that_came_back_gets_fewer_legs_at_first() -> None:
    async with fleet(health=Health(interval_s=0.1, timeout_s=2.0, slow_start_s=600.0)) as pair:
        back, other = pair.engines.decode
        await back.refuse()
        await wait_until(lambda: of(pair, back).status is Status.DOWN, "down")
        await back.accept()
        await wait_until(lambda: of(pair, back).breaker.state is Circuit.HALF_OPEN, "half-open")
        await pair.service.admin("/instances/drain", {"instance": other.address})
        assert (await pair.service.complete("hello")).status == 200
        assert of(pair, back).breaker.state is Circuit.CLOSED
        await pair.service.admin("/instances/drain", {"instance": other.address, "undo": True})
        before = len(legs(back)), len(legs(other))
        for engine in pair.engines.decode:
            fail(engine, "hang")
        running = [
            asyncio.get_running_loop().create_task(pair.service.complete(prose(20, n))) for n in range(20)
        ]
        await wait_until(lambda: len(legs(back)) + len(legs(other)) == sum(before) + 20, "all legs")
        assert await why(pair.service, back.address, "decode") == "slow start"
        assert 1 <= len(legs(back)) - before[0] <= 4  # a tenth of the other's 17 or so at a time: two
        for engine in pair.engines.decode:
            engine.faults.release()
        assert {answer.status for answer in await asyncio.gather(*running)} == {200}
        shown = (await pair.service.ask("/status")).json["instances"]
        assert [i["share"] for i in shown if i["role"] == "decode"] == [0.1, 1.0]


async def test_an_instance_that_was_there_from_the_start_and_never_failed_does_not_start_slowly() -> None:
    async with engines() as made:
        late = made.prefill[0]
        await late.refuse()
        async with kvproxy(made.config(health=QUICK), ready=False) as service:
            instance = service.fleet.get(late.address)
            assert instance is not None
            await wait_until(lambda: instance.status is Status.DOWN, "down")
            await late.accept()
            await wait_until(lambda: instance.status is Status.UP, "up")
            assert instance.breaker.state is Circuit.CLOSED


# -- checks --------------------------------------------------------------------------------------------------


async def test_checks_are_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(Load, "count", lambda *change: counted.append(change))
    async with fleet(health=Health(interval_s=0.02)) as pair:

        async def checked() -> float:
            return await pair.service.metric("kvproxy_checks_total", finding="answered")

        async with asyncio.timeout(20):
            while await checked() < 4 * 10:  # noqa: ASYNC110  # asked over HTTP
                await asyncio.sleep(0.02)
        assert not counted
        assert not any(
            instance.load.on(phase, 0).last_pick for instance in pair.service.fleet for phase in Phase
        )
        assert await pair.service.metric("kvproxy_in_flight_requests") == 0
        assert await pair.service.metric("kvproxy_in_flight_tokens") == 0
        assert {i.breaker.state for i in pair.service.fleet} == {Circuit.CLOSED}


async def test_every_transition_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with fleet(health=QUICK) as pair:
        engine = pair.engines.prefill[0]
        caplog.clear()
        await engine.refuse()
        await wait_until(lambda: of(pair, engine).status is Status.DOWN, "down")
        await engine.accept()
        await wait_until(lambda: of(pair, engine).breaker.state is Circuit.HALF_OPEN, "half-open")
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[1].address})
        assert (await pair.service.complete("hello")).status == 200
        assert of(pair, engine).breaker.state is Circuit.CLOSED
        lines = [
            m for m in caplog.messages if m.startswith(f"prefill {engine.address}") and " rank " not in m
        ]
        assert [line.partition(engine.address)[2] for line in lines] == [
            " is down: connection refused",
            " is up",
            ": circuit half-open: one leg at a time tries it",
            ": circuit closed: it serves",
        ]


async def test_an_engine_too_busy_to_list_its_models_stays_up() -> None:
    async with fleet(prefill=1, decode=1, health=QUICK) as pair:
        engine = pair.engines.prefill[0]
        fail(engine, path="/v1/models", status=503, times=4)
        while engine.faults.active():
            pair.service.app[SERVICE].watch._rounds.wake(engine.address)
            await asyncio.sleep(0.02)
            assert of(pair, engine).status is Status.UP
        assert (await pair.service.complete("hello")).status == 200


# -- instances that come and go ------------------------------------------------------------------------------


async def test_no_request_fails_while_instances_are_drained_and_added_under_load() -> None:
    async with fleet() as pair, StandIn() as prefill, StandIn() as decode:
        answers: Counter[tuple[int, bool]] = Counter()
        stop = asyncio.Event()

        async def client(number: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                answer = await pair.service.complete(prose(20, number * 1000 + n), stream=bool(n % 2))
                whole = answer.events[-1] == "[DONE]" if answer.streamed else bool(answer.text)
                answers[answer.status, whole] += 1

        async def some_more() -> None:
            at_least = answers.total() + 20
            await wait_until(lambda: answers.total() >= at_least, "more answers")

        clients = [asyncio.get_running_loop().create_task(client(n)) for n in range(8)]
        for added, role in ((prefill, "prefill"), (decode, "decode")):
            body = {"type": role, "instance": added.address}
            assert (await pair.service.admin("/instances/add", body)).status == 200
            await some_more()
            assert legs(added)  # it takes part
        for engine in (pair.engines.prefill[0], pair.engines.decode[0]):
            for undo in (False, True):
                drain = {"instance": engine.address, "undo": undo}
                assert (await pair.service.admin("/instances/drain", drain)).status == 200
                if not undo:
                    instance = of(pair, engine)
                    await wait_until(lambda i=instance: not i.running_legs(), "the end of its legs")  # type: ignore[misc]
                    before = len(legs(engine))
                    await some_more()
                    assert len(legs(engine)) == before
        stop.set()
        await asyncio.gather(*clients)
        assert set(answers) == {(200, True)}
        await pair.service.settled()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
async def test_the_series_of_a_removed_instance_end(force: bool, breaks: bool) -> None:
    async with fleet() as pair:
        gone = pair.engines.prefill[0]
        fail(gone, "slow", delay_s=0.2)
        running = [
            asyncio.get_running_loop().create_task(pair.service.complete(prose(20, n))) for n in range(6)
        ]
        await wait_until(lambda: bool(legs(gone)), "a leg")
        assert gone.address in (await pair.service.ask("/metrics")).body.decode()
        await pair.service.admin("/instances/remove", {"instance": gone.address, "force": force})
        if breaks:
            await gone.stop()
        assert {answer.status for answer in await asyncio.gather(*running)} == {200}
        await wait_until(lambda: pair.service.fleet.get(gone.address) is None, "removal")
        await pair.service.settled()
        metrics = (await pair.service.ask("/metrics")).body.decode()
        assert gone.address not in metrics
        assert pair.engines.prefill[1].address in metrics


async def test_legs_leave_an_engine_whose_port_is_closed_though_their_connections_stand() -> None:
    """Whoever closed them may have been cut off before telling."""
    idle = {"keep_alive_s": 0.2}  # shorter than the pause between two checks, which then have to connect
    async with fleet(
        prefill=1,
        decode=2,
        policy=InOrder(),
        kv_events=False,
        stand_in=idle,
        tuning=Tuning(gone_s=0.5),
    ) as pair:
        engine = min(pair.engines.decode, key=lambda e: e.address)
        engine.faults.add(Fault(kind="hang", path="/v1/completions"))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: any(s.path == "/v1/completions" for s in engine.seen), "the decode leg")
        assert engine._site is not None
        server = engine._site._server
        assert server is not None
        server.close()  # the port alone
        assert (await running).status == 200
