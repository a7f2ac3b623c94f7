"""A sleeping engine gets no legs and no blame, is back as soon as it is awake, and is known to have lost its
cache."""

import asyncio
import json
import logging
from typing import Any

import aiohttp
import pytest

from proxy.config import Health, Retries
from proxy.edge.app_keys import SERVICE
from proxy.errors import LegBrokenError
from proxy.fleet import Instance, Status
from proxy.fleet.circuit import Circuit
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.metrics import Depth, read_depth
from tests.helpers.service import (
    DEADLINE_S,
    UNHURRIED,
    InOrder,
    Pair,
    Service,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)

QUICK = Health(interval_s=0.1, timeout_s=2.0, slow_start_s=0.0)


async def post(service: Service, engine: StandIn, path: str) -> Any:
    async with service.session.post(engine.url + path) as answer:
        assert answer.status == 200
        return json.loads(await answer.read())


def of(pair: Pair, engine: StandIn) -> Instance:
    instance = pair.service.fleet.get(engine.address)
    assert instance is not None
    return instance


async def is_in(pair: Pair, engine: StandIn, status: Status) -> None:
    await wait_until(lambda: of(pair, engine).status is status, f"that it is {status}")


def asked(engine: StandIn) -> int:
    """How many legs it got; no releases."""
    return sum(s.path == "/v1/completions" and b"kvproxy-release" not in s.body for s in engine.seen)


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_a_sleeping_engine_gets_no_legs_and_no_blame_and_is_back_at_once(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(health=QUICK) as pair:
        for sleeper in (pair.engines.prefill[0], pair.engines.decode[0]):
            caplog.clear()
            caplog.set_level(logging.INFO)
            await post(pair.service, sleeper, f"/sleep?level={level}")
            await is_in(pair, sleeper, Status.ASLEEP)
            before = asked(sleeper)
            for n in range(4):
                assert (await pair.service.complete(prose(20, n))).status == 200
            assert asked(sleeper) == before
            [shown] = [
                i
                for i in (await pair.service.ask("/status")).json["instances"]
                if i["instance"] == sleeper.address
            ]
            assert (shown["state"], shown["up"], shown["circuit"], shown["why"]) == (
                "asleep",
                False,
                "closed",
                "it was sent to sleep",
            )
            explained = await pair.service.explain({"prompt": "x"})
            whys = {
                c["instance"]: c["why"] for p in ("prefill", "decode") for c in explained[p]["candidates"]
            }
            assert whys[sleeper.address] == "asleep"
            await post(pair.service, sleeper, "/wake_up")
            await is_in(pair, sleeper, Status.UP)
            assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
            said = [r.getMessage() for r in caplog.records if r.name == "proxy.watching.health"]
            assert [words.partition(" is ")[2] for words in said] == [
                "asleep: it gets no legs until it is awake",
                "awake",
            ]


@pytest.mark.parametrize(("level", "left"), [(0, 96), (1, 0), (2, 0)])
async def test_the_index_starts_anew_if_the_sleeper_dropped_its_cache(level: int, left: int) -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED, health=QUICK) as pair:
        (prefill,) = pair.engines.prefill
        prompt = list(range(100, 201))

        async def cached() -> int | None:
            explained = await pair.service.explain({"prompt": prompt})
            found: int | None = explained["prefill"]["candidates"][0]["cached_tokens"]
            return found

        await pair.service.complete(prompt)
        assert await cached() == 96
        await pair.service.settled()
        await post(pair.service, prefill, f"/sleep?level={level}")
        await is_in(pair, prefill, Status.ASLEEP)
        if not left:
            await wait_until(lambda: of(pair, prefill).index_state(0) == "partial", "a new index")
        await post(pair.service, prefill, "/wake_up")
        await is_in(pair, prefill, Status.UP)
        assert await cached() == left
        answer = await pair.service.complete(prompt)
        assert answer.status == 200
        await wait_until(lambda: of(pair, prefill).index_state(0) == "exact", "that all is known again")
        assert await cached() == 96
        assert await pair.service.metric("kvproxy_prediction_misses_total") == 0


async def test_a_request_that_only_sleeping_engines_could_serve_waits() -> None:
    async with fleet(prefill=1, decode=1, health=QUICK) as pair:
        (decode,) = pair.engines.decode
        await post(pair.service, decode, "/sleep")
        await is_in(pair, decode, Status.ASLEEP)
        assert (await pair.service.ask("/ready")).status == 503
        clients = TaskOwner("clients")
        waiting = clients.create(pair.service.complete("hello"), name="waits")
        await wait_until(lambda: len(pair.service.gate) == 1, "its wait")
        await post(pair.service, decode, "/wake_up")
        assert (await waiting).status == 200


async def test_legs_that_came_too_late_go_elsewhere_and_nobody_is_blamed() -> None:
    slow = Health(interval_s=0.5, timeout_s=2.0, slow_start_s=0.0)
    async with fleet(policy=InOrder(), stand_in=UNHURRIED, health=slow) as pair:
        sleeper = min(pair.engines.prefill, key=lambda engine: engine.address)
        running = TaskOwner("clients")
        clients = [running.create(pair.service.complete(prose(900, n)), name=str(n)) for n in range(6)]
        await wait_until(lambda: sleeper.model.unfinished >= 4, "prefill legs")
        await post(pair.service, sleeper, "/sleep")
        late = [running.create(pair.service.complete(prose(30, 50 + n)), name=f"late {n}") for n in range(4)]
        for client in clients + late:
            assert (await client).status == 200
        await is_in(pair, sleeper, Status.ASLEEP)
        assert await pair.service.metric("kvproxy_circuit_transitions_total", instance=sleeper.address) == 0
        await post(pair.service, sleeper, "/wake_up")
        await is_in(pair, sleeper, Status.UP)
        await pair.service.settled()
        await wait_until(lambda: pair.engines.holds == 0, "the end of all holds")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_sleeper_drops_comes_from_another_or_fails(*, stream: bool) -> None:
    async with fleet(policy=InOrder(), stand_in=UNHURRIED, health=QUICK) as pair:
        sleeper, other = sorted(pair.engines.decode, key=lambda engine: engine.address)
        clients = TaskOwner("clients")
        members = {"max_tokens": 120, "ignore_eos": True, "stream": stream}
        running = clients.create(pair.service.complete("hello", **members), name="runs")
        await wait_until(lambda: sleeper.model.stats.generated_tokens > 20, "an answer half made")
        await post(pair.service, sleeper, "/sleep")
        if stream:
            with pytest.raises(aiohttp.ClientPayloadError):
                await running
            await wait_until(lambda: not pair.service.claims, "its end")
            assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 1
        else:
            answer = await running
            assert (answer.status, answer.json["choices"][0]["finish_reason"]) == (200, "length")
            assert answer.json["usage"]["completion_tokens"] == 120
            assert asked(other) == 1
        assert await pair.service.metric("kvproxy_circuit_transitions_total", instance=sleeper.address) == 0
        await post(pair.service, sleeper, "/wake_up")


async def test_an_engine_that_sleeps_from_the_start_is_asleep_and_a_stopped_one_is_down() -> None:
    async with engines(prefill=1, decode=2) as made:
        sleeper = made.decode[0]
        async with kvproxy(made.config(health=QUICK), ready=False) as service:
            pair = Pair(made, service)
            await post(service, sleeper, "/sleep")
            await is_in(pair, sleeper, Status.ASLEEP)
            assert of(pair, sleeper).models == {"tiny"}
            assert (await service.complete("hello")).status == 200
            await sleeper.restart()
            await is_in(pair, sleeper, Status.UP)
            await post(service, sleeper, "/sleep")
            await is_in(pair, sleeper, Status.ASLEEP)
            await sleeper.refuse()
            await is_in(pair, sleeper, Status.DOWN)


async def test_a_start_in_front_of_sleepers_is_a_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with engines(prefill=1, decode=1) as made, aiohttp.ClientSession() as session:
        (decode,) = made.decode
        async with session.post(decode.url + "/sleep?level=1") as slept:
            assert slept.status == 200
        config = made.config(health=QUICK, startup_timeout_s=4.0)
        async with kvproxy(config, ready=False) as service:
            await wait_until(lambda: any("started, but not" in m for m in caplog.messages), "its word")
            [words] = [m for m in caplog.messages if "started, but not" in m]
            assert words.endswith("started, but not ready: no usable decode instance (1 of 1 asleep)")
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wait(
                    {service.app[SERVICE].watch.fatal}, timeout=5.0
                )  # longer than a start may take
            assert not service.app[SERVICE].watch.fatal.done()
            async with session.post(decode.url + "/wake_up") as woken:
                assert woken.status == 200
            assert (await service.complete("hello")).status == 200


async def test_an_engine_that_cannot_sleep_is_asked_once() -> None:
    async with fleet(prefill=1, decode=1, health=QUICK, stand_in={"dev_mode": False}) as pair:
        (prefill,) = pair.engines.prefill
        checks = await pair.service.metric("kvproxy_checks_total", instance=prefill.address)
        questions = prefill.asked["/is_sleeping"]
        assert questions in {1, 2}  # its sources were not known when it was asked first

        async def checked() -> bool:
            now = await pair.service.metric("kvproxy_checks_total", instance=prefill.address)
            return now >= checks + 5

        while not await checked():
            await prefill_rests(pair)
        assert prefill.asked["/is_sleeping"] == questions


async def prefill_rests(pair: Pair) -> None:
    """One request more, while time passes."""
    assert (await pair.service.complete("hello")).status == 200


LINE = 'vllm:engine_sleep_state{{engine="{}",model_name="tiny",sleep_state="{}"}} {}\n'


@pytest.mark.parametrize(
    ("states", "depth"),
    [
        (
            [("0", "awake", "1.0"), ("0", "weights_offloaded", "0.0"), ("0", "discard_all", "0.0")],
            Depth.LIGHT,
        ),
        (
            [("0", "awake", "0.0"), ("0", "weights_offloaded", "0.0"), ("0", "discard_all", "0.0")],
            Depth.LIGHT,
        ),
        ([("0", "awake", "0.0"), ("0", "weights_offloaded", "1.0")], Depth.DEEP),
        ([("0", "awake", "1.0"), ("1", "awake", "0.0"), ("1", "discard_all", "1")], Depth.DEEP),
        ([], Depth.UNTOLD),
    ],
)
def test_the_metrics_tell_how_deeply_an_engine_sleeps(
    states: list[tuple[str, str, str]], depth: Depth
) -> None:
    page = "# HELP vllm:engine_sleep_state x\n" + "".join(LINE.format(*state) for state in states)
    assert read_depth(page) is depth


async def test_a_later_kvproxy_does_not_believe_what_was_cached_before_the_sleep() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED, health=QUICK) as pair:
        (prefill,) = pair.engines.prefill
        prompt = list(range(100, 201))
        assert (await pair.service.complete(prompt)).status == 200
        await pair.service.settled()
        await post(pair.service, prefill, "/sleep")
        prefill.publisher.freeze()
        pages = prefill.asked["/metrics"]
        async with kvproxy(pair.engines.config(health=QUICK), ready=False) as service:
            later = Pair(pair.engines, service)
            await is_in(later, prefill, Status.ASLEEP)
            await wait_until(
                lambda: prefill.asked["/metrics"] >= pages + 3, "that it was asked how it sleeps"
            )
            prefill.publisher.thaw()  # only now its replay tells what it had cached
            await wait_until(lambda: of(later, prefill).index_state(0) == "partial", "a new index")
            await post(service, prefill, "/wake_up")
            await is_in(later, prefill, Status.UP)
            await wait_until(lambda: service.fleet.ready, "readiness")
            explained = await service.explain({"prompt": prompt})
            assert explained["prefill"]["candidates"][0]["cached_tokens"] == 0
            assert (await service.complete(prompt)).status == 200
            await wait_until(lambda: of(later, prefill).index_state(0) == "exact", "that all is known again")


@pytest.mark.parametrize("level", [0, 1])
async def test_an_engine_asleep_since_the_prefill_is_not_sent_the_decode_leg(level: int) -> None:
    """At level 0 nobody would break it off before --first-byte-timeout is over."""
    async with fleet(prefill=1, policy=InOrder(), health=QUICK, kv_events=False) as pair:
        (prefill,) = pair.engines.prefill
        sleeper, other = sorted(pair.engines.decode, key=lambda engine: engine.address)
        prefill.faults.add(Fault(kind="hang", path="/v1/completions", times=1))
        clients = TaskOwner("clients")
        running = clients.create(pair.service.complete("hello"), name="runs")
        await wait_until(lambda: asked(prefill) == 1, "the prefill leg")
        await post(pair.service, sleeper, f"/sleep?level={level}")
        await is_in(pair, sleeper, Status.ASLEEP)
        prefill.faults.release()
        assert (await running).status == 200
        assert (asked(sleeper), asked(other), asked(prefill)) == (0, 1, 1)
        await pair.service.settled()
        await wait_until(lambda: pair.engines.holds == 0, "the end of all holds")


async def test_if_no_other_is_awake_the_request_waits_and_its_blocks_are_not_offered_to_the_sleeper() -> None:
    one_attempt = Retries(max_attempts=1, budget=0.0)
    async with fleet(prefill=1, decode=1, retries=one_attempt, health=QUICK, kv_events=False) as pair:
        (prefill,), (decode,) = pair.engines.prefill, pair.engines.decode
        prefill.faults.add(Fault(kind="hang", path="/v1/completions", times=1))
        clients = TaskOwner("clients")
        running = clients.create(pair.service.complete("hello"), name="runs")
        await wait_until(lambda: asked(prefill) == 1, "the prefill leg")
        await post(pair.service, decode, "/sleep?level=0")
        await is_in(pair, decode, Status.ASLEEP)
        prefill.faults.release()
        await wait_until(lambda: len(pair.service.gate) == 1, "its wait")
        assert asked(decode) == 0
        await post(pair.service, decode, "/wake_up")
        assert (await running).status == 200
        assert (asked(decode), asked(prefill)) == (1, 2)
        assert (of(pair, decode).breaker.state, of(pair, decode).last_failure) == (Circuit.CLOSED, None)


async def test_whatever_reaches_a_deep_sleeper_later_is_broken_off_too() -> None:
    async with fleet(prefill=1, health=QUICK, kv_events=False) as pair:
        sleeper = pair.engines.decode[0]
        await post(pair.service, sleeper, "/sleep?level=1")
        await is_in(pair, sleeper, Status.ASLEEP)
        client = pair.service.app[SERVICE].watch._engines
        body = json.dumps({"prompt": "late", "max_tokens": 1}).encode()
        for _ in range(2):
            with pytest.raises(LegBrokenError, match="stopped answering"):
                async with asyncio.timeout(DEADLINE_S):
                    await client.post(  # type: ignore[attr-defined]  # the watch needs less of it
                        sleeper.address, "/v1/completions", body, [("Content-Type", "application/json")]
                    )
