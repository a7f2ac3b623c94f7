"""The death of an instance loses no request; failures of live engines are tried again within a budget."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from proxy.config import Admission, Deadlines, Health, Retries
from proxy.edge.app_keys import SERVICE
from proxy.scheduling.policies import RoundRobin
from proxy.serving.waits import Waits
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import UNHURRIED, Answer, InOrder, Pair, ask, fleet, prose, wait_until

PATH = "/v1/completions"


def legs(engine: StandIn) -> int:
    """Generating requests an engine has seen, releases left out."""
    return sum(1 for s in engine.seen if s.path == PATH and b"kvproxy-release" not in s.body)


def spend_the_budget(pair: Pair) -> None:
    """As if more retries were running than ever may."""
    pair.service.app[SERVICE].director._budget.retries += 1000


async def in_order(pair: Pair) -> None:
    await pair.service.settled()
    budget = pair.service.app[SERVICE].director._budget
    assert (budget.requests, budget.retries % 1000) == (0, 0)


WAITS = Waits(first_contact_pauses_s=(0.1, 0.1), abandoned_prefill_s=0.5)
"""Stand-ins meet within milliseconds, and no client that left needs five seconds of patience."""


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("death", ["killed", "engine dead"])
async def test_the_death_of_one_of_four_instances_under_200_requests_loses_none(
    role: str, death: str
) -> None:
    waits = msgspec.structs.replace(WAITS, budget_wait_s=20.0)  # a busy machine is slow to find out
    patient = Deadlines(connect_s=10.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        fleet(
            prefill=4, decode=4, stand_in=UNHURRIED, kv_events=False, deadlines=patient, waits=waits
        ) as pair,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        spend_the_budget(pair)  # whatever is retried now is free
        bodies = [{"prompt": prose(30, n), "max_tokens": 8, "ignore_eos": True} for n in range(200)]
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(ask(session, pair.service.url, PATH, body)) for body in bodies]
        dying: StandIn = getattr(pair.engines, role)[0]
        await wait_until(lambda: legs(dying) > 10 and dying.model.unfinished > 5, "legs on the one that dies")
        if death == "killed":
            await dying.stop()
        else:
            dying.die()
        answers: list[Answer] = await asyncio.gather(*tasks)
        assert {answer.body for answer in answers if answer.status != 200} == set()
        assert {answer.json["usage"]["completion_tokens"] for answer in answers} == {8}
        assert await pair.service.metric("kvproxy_retries_refused_total") == 0
        assert await pair.service.metric("kvproxy_retries_total") > 0
        await in_order(pair)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_fails_at_once_does_not_draw_all_requests_to_itself(role: str) -> None:
    """An engine that fails fast is always the least loaded one."""
    async with fleet(prefill=4, decode=4, stand_in=UNHURRIED, kv_events=False, waits=WAITS) as pair:
        bad: StandIn = getattr(pair.engines, role)[0]
        bad.faults.add(Fault(kind="status", path=PATH, status=500))
        spend_the_budget(pair)
        bodies = [{"prompt": prose(30, n), "max_tokens": 8} for n in range(200)]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            url = pair.service.url
            answers = await asyncio.gather(*(ask(session, url, PATH, body) for body in bodies))
        assert {answer.status for answer in answers} == {200}
        assert await pair.service.metric("kvproxy_retries_refused_total") == 0
        await in_order(pair)


async def test_without_budget_the_client_gets_the_engines_words() -> None:
    waits = msgspec.structs.replace(WAITS, budget_wait_s=2.0)
    async with fleet(prefill=1, decode=1, retries=Retries(budget=0.0), waits=waits) as pair:
        engine = pair.engines.prefill[0]
        spend_the_budget(pair)
        engine.faults.add(Fault(kind="status", path=PATH, status=500, times=10))
        engine.faults.add(Fault(kind="hang", path=PATH))
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(pair.service.complete(prose(5, n))) for n in range(10)]
        await wait_until(lambda: legs(engine) == 10, "ten first legs")
        pair.service.app[SERVICE].director._budget.retries -= 1000
        await wait_until(lambda: sum(task.done() for task in tasks) == 7, "seven answers")
        assert {task.result().status for task in tasks if task.done()} == {500}
        assert legs(engine) == 13  # three may be in a retry at one moment
        metric = pair.service.metric
        assert await metric("kvproxy_retries_total", phase="prefill", reason="status") == 3
        assert await metric("kvproxy_retries_refused_total", phase="prefill") == 7
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await wait_until(
            lambda: not pair.service.app[SERVICE].director._budget.requests, "the end of all requests"
        )
        await in_order(pair)


async def test_a_request_waits_for_budget_before_it_fails() -> None:
    async with fleet(prefill=1, decode=1, waits=WAITS) as pair:
        spend_the_budget(pair)
        pair.engines.prefill[0].faults.add(Fault(kind="status", path=PATH, status=500, times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: legs(pair.engines.prefill[0]) == 1, "a first leg")
        pair.service.app[SERVICE].director._budget.retries -= 1000
        assert (await running).status == 200
        await in_order(pair)


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_attempts_at_live_engines_are_limited(most: int) -> None:
    async with fleet(retries=Retries(max_attempts=most), waits=WAITS) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="status", path=PATH, status=502))
        answer = await pair.service.complete("hello")
        assert (answer.status, answer.json["error"]["message"]) == (502, "a fault")
        assert sum(legs(engine) for engine in pair.engines.decode) == most
        await pair.service.settled()


async def test_leaving_a_dead_instance_is_no_attempt() -> None:
    async with fleet(
        prefill=3, decode=1, retries=Retries(max_attempts=1), policy=InOrder(), waits=WAITS
    ) as pair:
        for engine in sorted(pair.engines.prefill, key=lambda e: e.address)[:2]:
            await engine.refuse()
        assert (await pair.service.complete("hello")).status == 200
        assert await pair.service.metric("kvproxy_retries_total", reason="connect") == 2
        await in_order(pair)


async def test_a_request_that_kills_its_engines_does_not_kill_them_all() -> None:
    async with fleet(prefill=6, decode=1, policy=InOrder(), waits=WAITS) as pair:
        for engine in pair.engines.prefill:
            engine.faults.add(Fault(kind="cut", path=PATH, times=1))
            engine.faults.add(Fault(kind="status", path="/health", status=503))  # its core is dead
        assert (await pair.service.complete("hello")).status in {502, 503}
        assert sum(legs(engine) for engine in pair.engines.prefill) <= 3
        await in_order(pair)


async def test_the_last_answer_that_an_engine_gave_reaches_the_client() -> None:
    async with fleet(prefill=1, decode=1, waits=WAITS) as pair:
        engine = pair.engines.prefill[0]
        engine.faults.add(Fault(kind="status", path=PATH, status=507, times=1))
        engine.faults.add(Fault(kind="cut", path=PATH))
        answer = await pair.service.complete("hello")
        assert (answer.status, answer.json["error"]["message"]) == (507, "a fault")
        assert legs(engine) == 3
        await in_order(pair)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_the_clients_own_errors_are_never_tried_again(role: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, waits=WAITS) as pair:
        engine: StandIn = getattr(pair.engines, role)[0]
        for tries, status in enumerate([400, 401, 404, 409, 413, 422, 501], 1):
            engine.faults.add(Fault(kind="status", path=PATH, status=status, times=1))
            assert (await pair.service.complete("hello")).status == status
            assert legs(engine) == tries
            await pair.service.settled()


async def test_a_rank_that_is_gone_is_our_error_and_tried_elsewhere() -> None:
    health = Health(interval_s=600.0)  # no check tells of the ranks there are before a leg does
    async with fleet(
        prefill=2, decode=1, stand_in={"ranks": 2}, policy=RoundRobin(), waits=WAITS, health=health
    ) as pair:
        engine = pair.engines.prefill[0]
        await engine.ranks.pop().stop()
        for n in range(12):
            assert (await pair.service.complete(prose(5, n))).status == 200
        assert await pair.service.metric("kvproxy_retries_total", phase="prefill", reason="status") > 0
        await in_order(pair)


@pytest.mark.parametrize("ranks", [1, 2])
async def test_a_client_that_quotes_the_words_of_that_error_has_made_its_own(ranks: int) -> None:
    async with fleet(prefill=2, decode=1, stand_in={"ranks": ranks}, waits=WAITS) as pair:
        quoted = '"data_parallel_rank 0 is out of range [0, 1).'
        for _ in range(4):
            assert (await pair.service.complete("hello", temperature=quoted)).status == 400
        assert sum(legs(engine) for engine in pair.engines.prefill) == 4
        assert await pair.service.metric("kvproxy_retries_total") == 0
        await in_order(pair)


async def test_an_unspent_hold_avoids_instances_that_failed_before() -> None:
    async with fleet(prefill=1, decode=3, policy=InOrder(), waits=WAITS) as pair:
        failing, refusing, good = sorted(pair.engines.decode, key=lambda e: e.address)
        failing.faults.add(Fault(kind="status", path=PATH, status=500, times=1))
        await refusing.refuse()
        assert (await pair.service.complete(prose(40))).status == 200
        assert (legs(failing), legs(good)) == (1, 1)
        await in_order(pair)


async def test_an_unspent_hold_goes_to_an_instance_that_failed_before_if_no_other_is_left() -> None:
    async with fleet(prefill=1, decode=2, policy=InOrder(), waits=WAITS) as pair:
        failing, refusing = sorted(pair.engines.decode, key=lambda e: e.address)
        failing.faults.add(Fault(kind="status", path=PATH, status=500, times=1))
        await refusing.refuse()
        assert (await pair.service.complete(prose(40))).status == 200
        assert legs(failing) == 2
        assert legs(pair.engines.prefill[0]) == 2  # the second hold was not thrown away
        await in_order(pair)


async def test_with_nothing_left_the_client_is_told_what_is_missing() -> None:
    async with fleet(prefill=1, decode=1, admission=Admission(queue_timeout_s=1.0), waits=WAITS) as pair:
        await pair.engines.decode[0].refuse()
        answer: Any = await pair.service.complete("hello")
        assert answer.status == 503
        assert "no decode instance" in answer.json["error"]["message"]
        await pair.service.settled()
