"""An engine that says it is full is not broken: other engines serve meanwhile, and if all are full requests
wait.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest

from proxy.config import Admission, Health, Retries
from proxy.edge.app_keys import SERVICE
from proxy.fleet import ModelCard
from proxy.fleet.circuit import Circuit
from proxy.fleet.fullness import MIN_RETRY_AFTER_S, Fullness
from proxy.serving.healing import Healing
from proxy.serving.waits import Waits
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import (
    QUICK,
    UNHURRIED,
    Answer,
    Engines,
    InOrder,
    Pair,
    ask,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)

PATH = "/v1/completions"
FULL = [503, 429]


def legs(engine: StandIn) -> int:
    """Generating requests an engine has seen, releases left out."""
    return sum(1 for s in engine.seen if s.path == PATH and b"kvproxy-release" not in s.body)


def full(engine: StandIn, status: int = 503, **more: Any) -> None:
    """Have it say so to all that comes, requests that give blocks back included, as a gateway would."""
    fault: dict[str, Any] = {"kind": "status", "path": PATH, "status": status} | more
    engine.faults.add(Fault(**fault))


def in_order(engines: list[StandIn]) -> list[StandIn]:
    return sorted(engines, key=lambda engine: engine.address)


async def nobody_is_blamed(pair: Pair) -> None:
    await pair.service.settled()
    for instance in pair.service.fleet:
        assert (instance.breaker.state, instance.last_failure) == (Circuit.CLOSED, None)
        assert instance.fullness.legs == 0
        assert not instance.breaker.failing(0.0)
    budget = pair.service.app[SERVICE].director._budget
    assert (budget.requests, budget.retries % 1000) == (0, 0)
    metric = pair.service.metric
    assert await metric("kvproxy_circuit_transitions_total") == 0
    assert await metric("kvproxy_retries_refused_total") == 0


async def no_hold_is_left(pair: Pair) -> None:
    await pair.service.settled()
    await wait_until(lambda: pair.engines.holds == 0, "the end of all holds")
    assert await pair.service.metric("kvproxy_holds_total", end="stranded") == 0


@contextlib.asynccontextmanager
async def crowd(pair: Pair, count: int, **members: Any) -> AsyncIterator["list[asyncio.Task[Answer]]"]:
    """So many requests at once."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        url, loop = pair.service.url, asyncio.get_running_loop()
        bodies = [{"prompt": prose(20, n), "max_tokens": 4} | members for n in range(count)]
        tasks = [loop.create_task(ask(session, url, PATH, body)) for body in bodies]
        yield tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- another one has room -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", FULL)
@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_another_instance_serves_at_once_free_and_without_blame(
    role: str, status: int, stream: bool
) -> None:
    one_attempt = Retries(max_attempts=1, budget=0.0)
    async with fleet(policy=InOrder(), retries=one_attempt, kv_events=False) as pair:
        pair.service.app[SERVICE].director._budget.retries += 1000
        engine, other = in_order(getattr(pair.engines, role))
        full(engine, status, retry_after="5")
        for n in range(5):
            assert (await pair.service.complete(prose(20, n), stream=stream)).status == 200
        assert legs(engine) == 1  # it is not asked again for five seconds
        assert legs(other) == 5
        assert (
            await pair.service.metric("kvproxy_engine_full_total", instance=engine.address, phase=role) == 1
        )
        assert await pair.service.metric("kvproxy_retries_total", reason="full", phase=role) == 1
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


@pytest.mark.parametrize("status", FULL)
async def test_an_engine_that_says_it_is_full_in_its_stream_is_left_likewise(status: int) -> None:
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        full(engine, status, kind="error")
        answer = await pair.service.complete("hello", stream=True)
        assert (answer.status, answer.events[-1]) == (200, "[DONE]")
        assert (legs(engine), legs(other)) == (1, 1)
        assert await pair.service.metric("kvproxy_engine_full_total", instance=engine.address) == 1
        await nobody_is_blamed(pair)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_is_always_full_is_left_ever_longer(*, stream: bool) -> None:
    waits = msgspec.structs.replace(QUICK, release_s=0.5)  # it is full for them, too
    admission = Admission(queue_timeout_s=2.5)
    async with fleet(prefill=1, decode=1, admission=admission, kv_events=False, waits=waits) as pair:
        [engine] = pair.engines.decode
        full(engine, 503, kind="error" if stream else "status")
        assert (await pair.service.complete("hello", stream=stream)).status == 503
        assert 2 <= legs(engine) <= 6  # 0.1, 0.2, 0.4 and 0.8 s


async def test_an_engine_that_does_both_and_requests_in_one_leg() -> None:
    async with fleet(prefill=0, decode=0, both=2, policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.both))
        full(engine)
        assert (await pair.service.complete("hello")).status == 200
        assert (legs(engine), legs(other)) == (1, 1)
        await nobody_is_blamed(pair)
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        full(engine)
        assert (await pair.service.complete("hello", echo=True, logprobs=1)).status == 200
        assert (legs(engine), legs(other)) == (1, 1)
        assert sum(legs(e) for e in pair.engines.prefill) == 0
        await nobody_is_blamed(pair)


async def test_no_prefill_is_wasted_on_a_decode_engine_that_is_known_to_be_full() -> None:
    async with fleet(prefill=1, policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        full(engine, retry_after="5")
        for n in range(4):
            assert (await pair.service.complete(prose(40, n))).status == 200
        assert legs(pair.engines.prefill[0]) == 5  # the first hold was spent, so it is prefilled once more
        assert (legs(engine), legs(other)) == (1, 4)
        await no_hold_is_left(pair)


async def test_a_decode_engine_that_became_full_meanwhile_is_not_sent_the_hold() -> None:
    async with fleet(prefill=1, policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        [prefill] = pair.engines.prefill
        full(engine, retry_after="5")
        prefill.faults.add(Fault(kind="hang", path=PATH, times=3))
        async with crowd(pair, 3) as tasks:
            await wait_until(lambda: legs(prefill) == 3, "three prefill legs")
            instance = pair.service.fleet.get(engine.address)
            assert instance is not None
            now = asyncio.get_running_loop().time()
            instance.fullness.said(now, 0, now, come_back_s=5.0)
            prefill.faults.release()
            assert [(await task).status for task in tasks] == [200] * 3
        assert (legs(engine), legs(other), legs(prefill)) == (0, 3, 3)
        await no_hold_is_left(pair)


async def test_a_leg_that_asks_for_a_report_and_is_refused_for_want_of_room_is_not_sent_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[object] = []
    monkeypatch.setattr(Healing, "asking", lambda _self, call, _chosen, _question: call.request.body)
    monkeypatch.setattr(Healing, "refused", lambda _self, chosen: refused.append(chosen))
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.prefill))
        full(engine, 429, times=1)
        assert (await pair.service.complete("hello")).status == 200
        assert (legs(engine), legs(other), refused) == (1, 1, [])


async def test_explain_and_status_show_which_instances_say_they_are_full() -> None:
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.prefill))
        full(engine, retry_after="5")
        assert (await pair.service.complete("hello")).status == 200
        explained = await pair.service.explain({"prompt": "hello"})
        whys = {c["instance"]: (c["usable"], c["why"]) for c in explained["prefill"]["candidates"]}
        assert whys == {engine.address: (False, "says it is full"), other.address: (True, None)}
        told = {i["instance"]: i for i in (await pair.service.ask("/status")).json["instances"]}
        assert 0 < told[engine.address]["full_for_s"] <= 5
        assert told[engine.address]["most_legs"] == 0
        assert (told[engine.address]["state"], told[engine.address]["circuit"]) == ("up", "closed")
        assert (told[other.address]["full_for_s"], told[other.address]["most_legs"]) == (0, None)
        assert (await pair.service.ask("/ready")).status == 200


# -- all are full -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", FULL)
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_where_all_are_full_a_request_waits_and_is_served(role: str, status: int) -> None:
    async with fleet(retries=Retries(max_attempts=1, budget=0.0), kv_events=False) as pair:
        for engine in getattr(pair.engines, role):
            full(engine, status, times=3)
        answer = await pair.service.complete("hello")
        assert answer.status == 200
        assert await pair.service.metric("kvproxy_engine_full_total", phase=role) >= 2
        assert await pair.service.metric("kvproxy_queue_wait_seconds_count") > 0
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("told", ["7", None])
async def test_at_the_deadline_the_client_is_told_to_come_back(
    role: str, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kvproxy.access")
    admission = Admission(queue_timeout_s=0.3)  # soon, so that much is left of the 5 s that are believed
    async with fleet(admission=admission, kv_events=False) as pair:
        for engine in getattr(pair.engines, role):
            full(engine, 429, retry_after=told)
        answer = await pair.service.complete("hello")
        assert answer.status == 503
        assert "--queue-timeout" in answer.json["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= (4 if told else 1)
        assert await pair.service.metric("kvproxy_refused_requests_total", reason="engines_full") == 1
        assert await pair.service.metric("kvproxy_requests_total", outcome="unavailable") == 1
        # 0.1, 0.2, 0.4 and 0.8 s: whoever is always full is asked a few times.
        most = 2 if told else 10
        assert sum(legs(engine) for engine in getattr(pair.engines, role)) <= most
        assert " 503 " in caplog.text
        assert ":full" in caplog.text
        assert "reason=engines_full" in caplog.text
        await nobody_is_blamed(pair)


async def test_a_later_request_waits_without_being_sent_anywhere() -> None:
    async with fleet(prefill=1, decode=1, admission=Admission(queue_timeout_s=0.3), kv_events=False) as pair:
        [engine] = pair.engines.decode
        full(engine, retry_after="5")
        assert (await pair.service.complete("hello")).status == 503
        before = legs(pair.engines.prefill[0])
        answer = await pair.service.complete("hello")
        assert (answer.status, answer.headers["Retry-After"] != "") == (503, True)
        assert legs(pair.engines.prefill[0]) == before
        assert await pair.service.metric("kvproxy_refused_requests_total", reason="engines_full") == 2


async def test_an_engine_that_failed_before_does_not_hide_that_all_are_full() -> None:
    async with fleet(prefill=1, decode=1, admission=Admission(queue_timeout_s=2.0), kv_events=False) as pair:
        [engine] = pair.engines.prefill
        full(engine, 500, times=1)
        full(engine)
        answer = await pair.service.complete("hello")
        assert (answer.status, "full" in answer.json["error"]["message"]) == (503, True)
        assert answer.headers["Retry-After"]


async def test_a_client_that_leaves_while_all_are_full_leaves_nothing() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        [engine] = pair.engines.decode
        full(engine, retry_after="5")
        async with crowd(pair, 3) as tasks:
            await wait_until(lambda: len(pair.service.app[SERVICE].gate) == 3, "the queue")
            for task in tasks:
                task.cancel()
            await wait_until(lambda: len(pair.service.app[SERVICE].gate) == 0, "the queue")
        assert pair.service.app[SERVICE].gate._reopening is None
        engine.faults.clear()
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


async def test_waiting_requests_do_not_come_all_at_once_when_the_pause_is_over() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        [engine] = pair.engines.prefill
        for instance in pair.service.fleet:
            instance.fullness = Fullness(unrefused_s=1000.0)
        full(engine, retry_after="2", times=1)
        async with crowd(pair, 1) as first:
            await wait_until(lambda: len(pair.service.app[SERVICE].gate) == 1, "the first in the queue")
            engine.faults.add(Fault(kind="hang", path=PATH, times=1))
            async with crowd(pair, 40) as others:
                await wait_until(lambda: legs(engine) == 2, "the leg that tries it")
                await wait_until(lambda: len(pair.service.app[SERVICE].gate) == 40, "the others in the queue")
                for _ in range(20):
                    await pair.service.ask("/status")
                    assert (legs(engine), len(pair.service.app[SERVICE].gate)) == (2, 40)
                engine.faults.release()
                assert {(await task).status for task in [*first, *others]} == {200}
        assert legs(engine) == 42


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_instance_that_failed_once_serves_while_the_other_is_full_for_ever(role: str) -> None:
    async with fleet(policy=InOrder(), admission=Admission(queue_timeout_s=5.0), kv_events=False) as pair:
        engine, other = in_order(list(getattr(pair.engines, role)))
        full(engine, 500, times=1)
        full(other)
        answer = await pair.service.complete("hello")
        assert (answer.status, legs(engine)) == (200, 2)
        await no_hold_is_left(pair)


@pytest.mark.parametrize("role", ["decode", "both"])
async def test_a_waiting_request_follows_a_leg_that_was_not_refused_though_nothing_else_happens(
    role: str,
) -> None:
    shape = {"prefill": 0, "decode": 0, "both": 1} if role == "both" else {"prefill": 1, "decode": 1}
    unchecked = Health(interval_s=600.0)
    async with fleet(**shape, health=unchecked, kv_events=False) as pair:  # type: ignore[arg-type]  # a dict of settings
        [engine] = getattr(pair.engines, role)
        full(engine, retry_after="1", times=1)
        async with crowd(pair, 1):
            await wait_until(lambda: len(pair.service.gate) == 1, "the first in the queue")
            engine.faults.add(Fault(kind="slow", path=PATH, delay_s=60.0))
            async with crowd(pair, 20):
                await wait_until(lambda: legs(engine) == 1 + 21, "all of them")
                assert len(pair.service.gate) == 0
            engine.faults.clear()


async def test_of_many_that_were_prefilled_together_those_that_are_refused_come_back_by_and_by() -> None:
    async with AsyncExitStack() as stack:
        profile = UNHURRIED["profile"]
        limited = await stack.enter_async_context(engines(0, 1, max_queued_requests=4, profile=profile))
        others = await stack.enter_async_context(engines(1, 0, profile=profile))
        made = Engines(others.prefill, limited.decode, [])
        admission = Admission(queue_timeout_s=60.0)
        service = await stack.enter_async_context(kvproxy(made.config(kv_events=False, admission=admission)))
        pair = Pair(made, service)
        [prefill] = made.prefill
        prefill.faults.add(Fault(kind="slow", path=PATH, delay_s=0.5))
        async with crowd(pair, 30, max_tokens=30, ignore_eos=True) as tasks:
            assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
        assert legs(prefill) < 3 * 30  # all come once, what was refused once more, and few a third time
        await no_hold_is_left(pair)


async def test_a_long_prefill_does_not_count_as_waiting_so_an_idle_decode_engine_is_still_tried() -> None:
    admission = Admission(queue_timeout_s=1.0)
    async with fleet(prefill=1, policy=InOrder(), admission=admission, kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        pair.engines.prefill[0].faults.add(Fault(kind="slow", path=PATH, delay_s=1.5))
        full(engine, retry_after="5")
        assert (await pair.service.complete("hello")).status == 200
        assert (legs(engine), legs(other)) == (1, 1)
        await no_hold_is_left(pair)


async def test_waiting_ends_though_each_prefill_takes_longer_than_the_engines_pause() -> None:
    waits = msgspec.structs.replace(QUICK, release_s=0.5)  # it is full for them, too
    admission = Admission(queue_timeout_s=1.0)
    async with fleet(prefill=1, decode=1, admission=admission, kv_events=False, waits=waits) as pair:
        [prefill], [decode] = pair.engines.prefill, pair.engines.decode
        prefill.faults.add(Fault(kind="slow", path=PATH, delay_s=0.9))
        full(decode, retry_after="0", times=50)
        answer = await pair.service.complete("hello")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert 2 <= legs(prefill) <= 3


# -- engines with a limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode", "both"])
async def test_engines_with_a_limit_serve_a_crowd_without_loss_or_blame(role: str) -> None:
    shape = {"both": 2, "prefill": 0, "decode": 0} if role == "both" else {}
    limit = {"max_queued_requests": 4, **UNHURRIED}
    async with fleet(**shape, stand_in=limit, kv_events=False) as pair:  # type: ignore[arg-type]  # a dict of settings
        async with crowd(pair, 120, max_tokens=8, ignore_eos=True) as tasks:
            answers = await asyncio.gather(*tasks)
        assert {answer.status for answer in answers} == {200}
        refused = await pair.service.metric("kvproxy_engine_full_total")
        assert 0 < refused < 2 * 120  # a herd would be refused hundreds of times
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


async def test_a_list_of_prompts_is_served_by_engines_with_a_limit() -> None:
    async with fleet(stand_in={"max_queued_requests": 3, **UNHURRIED}, kv_events=False) as pair:
        answer = await pair.service.complete([prose(10, n) for n in range(24)], max_tokens=4)
        assert answer.status == 200
        assert len(answer.by_choice) == 24
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


# -- not full, but dead or wrong ----------------------------------------------------------------------------


async def test_a_full_engine_whose_health_fails_as_well_is_dead() -> None:
    seldom = Health(interval_s=60.0)  # so it is not found by chance
    async with fleet(policy=InOrder(), kv_events=False, health=seldom) as pair:
        engine, _ = in_order(list(pair.engines.prefill))
        full(engine)
        full(engine, path="/health")
        assert (await pair.service.complete("hello")).status == 200
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        await wait_until(lambda: instance.status == "down", "the check that a 503 calls for")
        engine.faults.clear()
        await wait_until(lambda: instance.status == "up", "its return")
        assert instance.fullness.left_s(asyncio.get_running_loop().time()) <= MIN_RETRY_AFTER_S


# -- a model that is not here -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_model_that_one_engine_does_not_have_is_asked_of_another(role: str) -> None:
    one_attempt = Retries(max_attempts=1, budget=0.0)
    loras = {"loras": ("alpha",)}
    async with fleet(policy=InOrder(), stand_in=loras, retries=one_attempt, kv_events=False) as pair:
        engine, other = in_order(getattr(pair.engines, role))
        engine.checker._loras = ()  # it was unloaded, and its list was read before
        engine.faults.add(Fault(kind="hang", path="/v1/models"))
        answer = await pair.service.complete("hello", model="alpha")
        assert (answer.status, answer.json["model"]) == (200, "alpha")
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        assert instance.models == {"tiny"}
        assert (await pair.service.complete("hello", model="alpha")).status == 200
        assert (legs(engine), legs(other)) == (1, 2)
        assert await pair.service.metric("kvproxy_retries_total", reason="not_here", phase=role) == 1
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)


async def test_an_instance_that_dropped_the_model_during_the_prefill_is_not_sent_the_decode_leg() -> None:
    async with fleet(prefill=1, policy=InOrder(), stand_in={"loras": ("alpha",)}, kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        [prefill] = pair.engines.prefill
        prefill.faults.add(Fault(kind="slow", path=PATH, delay_s=1.0, times=1))
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        async with crowd(pair, 1, model="alpha") as [task]:
            await wait_until(lambda: legs(prefill) == 1, "the prefill leg")
            engine.faults.add(Fault(kind="hang", path="/v1/models"))
            instance.listed([ModelCard("tiny")], 0.0)
            assert (await task).status == 200
        assert (legs(engine), legs(other), legs(prefill)) == (0, 1, 1)
        await no_hold_is_left(pair)


async def test_after_a_404_the_instances_list_is_read_anew_at_once() -> None:
    async with fleet(policy=InOrder(), stand_in={"loras": ("alpha",)}, kv_events=False) as pair:
        engine, _ = in_order(list(pair.engines.decode))
        full(engine, 404, times=1)  # a glitch: its list still has it
        assert (await pair.service.complete("hello", model="alpha")).status == 200
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        await wait_until(lambda: "alpha" in instance.models, "the list")


async def test_an_instance_that_lists_a_model_and_answers_404_again_and_again_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet(policy=InOrder(), stand_in={"loras": ("alpha",)}, kv_events=False) as pair:
        engine, other = in_order(list(pair.engines.decode))
        full(engine, 404)  # say, its path is another
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        for n in range(2):
            assert (await pair.service.complete(prose(9, n), model="alpha")).status == 200
            asked = engine.asked["/v1/models"]
            await wait_until(lambda asked=asked: engine.asked["/v1/models"] > asked, "the list")  # type: ignore[misc]
            if n == 0:
                await wait_until(lambda: "alpha" in instance.models, "that it is believed")
        assert (legs(engine), legs(other)) == (2, 2)
        for n in range(3):
            assert (await pair.service.complete(prose(9, 9 + n), model="alpha")).status == 200
            pair.service.app[SERVICE].watch.legs.suspect(instance)
            asked = engine.asked["/v1/models"]
            await wait_until(lambda asked=asked: engine.asked["/v1/models"] > asked, "the list")  # type: ignore[misc]
        assert (legs(engine), legs(other)) == (2, 5)
        assert sum("answers 404 for it again" in m for m in caplog.messages) == 1
        assert "tiny" in instance.models


async def test_a_release_that_a_full_gateway_turns_away_the_second_time_is_told_again() -> None:
    waits = Waits(first_contact_pauses_s=(1.0, 0.1))
    async with fleet(prefill=1, decode=1, kv_events=False, waits=waits) as pair:
        [engine] = pair.engines.decode
        engine.faults.add(Fault(kind="status", path=PATH, status=400, times=1))
        assert (await pair.service.complete("hello")).status == 400

        def told() -> int:
            return sum(b"kvproxy-release" in seen.body for seen in engine.seen)

        await wait_until(lambda: told() == 1, "the first release")
        full(engine, times=1)
        await no_hold_is_left(pair)
        assert told() == 1 + 1 + 3  # that was refused with 503, and then as to one that was never spoken to
        assert await pair.service.metric("kvproxy_holds_total", end="released") == 1


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_if_no_instance_has_the_model_the_engines_404_is_answered(role: str) -> None:
    async with fleet(stand_in={"loras": ("alpha",)}, kv_events=False) as pair:
        for engine in getattr(pair.engines, role):
            engine.checker._loras = ()
        answer = await pair.service.complete("hello", model="alpha")
        assert (answer.status, answer.json["error"]["param"]) == (404, "model")
        assert sum(legs(engine) for engine in getattr(pair.engines, role)) == 2
        await nobody_is_blamed(pair)
        await no_hold_is_left(pair)
