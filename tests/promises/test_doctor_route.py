"""`GET /doctor` examines the running service's engines for operators, one at a time, and disturbs nothing."""

import asyncio
from typing import Any

from proxy.config import Security
from proxy.edge.app_keys import SERVICE
from proxy.simulation.live.faults import Fault
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import ADMIN_KEY, Pair, ask, fleet, kvproxy, wait_until
from tests.helpers.service import engines as stand_ins


async def report(pair: Pair) -> Any:
    answer = await pair.service.ask("/doctor", X_API_Key=ADMIN_KEY)
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_healthy_service_passes() -> None:
    async with fleet(prefill=2, decode=2) as pair:
        told = await report(pair)
        assert (told["verdict"], told["exit_code"]) == ("pass", 0), told
        assert [i["instance"] for i in told["instances"]] == [e.address for e in pair.engines.all]
        assert len(told["pairs"]) == 4
        assert pair.engines.holds == 0
        [step] = [f for f in told["instances"][0]["findings"] if f["step"] == "accuracy"]
        assert step["words"].startswith("not sampled")


async def test_each_fault_is_named_with_its_remedy() -> None:
    async with fleet(prefill=1, decode=1, stand_in={"replay": None}, kv_events=False) as pair:
        assert (await report(pair))["verdict"] == "pass"
    async with stand_ins(1, 1, replay=None) as made, kvproxy(made.config(), ready=False) as service:
        await wait_until(lambda: all(i.model_cards for i in service.fleet), "the first checks")
        told = (await service.ask("/doctor", X_API_Key=ADMIN_KEY)).json
        [step] = [f for f in told["instances"][0]["findings"] if f["step"] == "replay"]
        assert step["status"] == "warn"
        assert "replay_endpoint" in step["remedy"]


async def test_the_report_is_for_operators() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        assert (await pair.service.ask("/doctor")).status == 401
        assert (await pair.service.ask("/doctor", X_API_Key="wrong")).status == 403
    async with fleet(prefill=1, decode=1, kv_events=False, admin_api_key=None) as pair:
        assert (await pair.service.ask("/doctor")).status == 200  # we are on loopback
        assert (await pair.service.ask("/doctor", X_Forwarded_For="10.0.0.9")).status == 403
    async with fleet(prefill=1, decode=1, kv_events=False, security=Security(admin_port=0)) as pair:
        assert (await pair.service.ask("/doctor", X_API_Key=ADMIN_KEY)).status == 404
        service = pair.service
        assert (await ask(service.session, service.admin_url, "/doctor", X_API_Key=ADMIN_KEY)).status == 200


async def test_one_examination_runs_at_a_time() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        pair.engines.prefill[0].faults.add(Fault(kind="slow", path="/version", delay_s=4.0, times=1))
        first = asyncio.get_running_loop().create_task(report(pair), name="first")
        await wait_until(lambda: pair.service.app[SERVICE].doctor.examining, "the first examination")
        second = await pair.service.ask("/doctor", X_API_Key=ADMIN_KEY)
        assert second.status == 409
        assert "under way" in second.json["error"]["message"]
        assert (await first)["verdict"] == "pass"
        assert (await report(pair))["verdict"] == "pass"


async def test_an_operator_who_leaves_makes_room_for_the_next_and_leaves_nothing_held() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        decode = pair.engines.decode[0]
        decode.faults.add(Fault(kind="hang", path="/v1/completions", times=1))
        leaving = asyncio.get_running_loop().create_task(report(pair), name="leaving")
        await wait_until(lambda: not decode.faults.active(), "the hand-over")
        assert pair.engines.holds == 1
        leaving.cancel()
        await asyncio.wait({leaving})
        await wait_until(lambda: not pair.service.app[SERVICE].doctor.examining, "the end of the examination")
        await wait_until(lambda: not pair.engines.holds, "the end of the hold")
        assert pair.engines.prefill[0].model.holds.expired == 0
        assert (await report(pair))["verdict"] == "pass"


async def test_probes_are_not_counted_and_their_failures_count_against_no_engine() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="status", path="/v1/c", status=500, times=3))
        assert (await report(pair))["verdict"] == "fail"
        for instance in pair.service.fleet:
            assert instance.breaker.standing[0] == "closed"
            assert instance.running_legs() == 0
        assert await pair.service.metric("kvproxy_requests_total") == 0
        assert await pair.service.metric("kvproxy_holds_total") == 0
        assert await pair.service.metric("kvproxy_prompt_tokens_total") == 0
        assert sum(pair.service.fleet.holds.values()) == 0


async def test_an_engine_that_connects_to_the_service_is_judged_by_its_index() -> None:
    (port,) = free_ports(1)
    async with (
        stand_ins(0, 0, 1, events_connect=f"tcp://127.0.0.1:{port}") as made,
        kvproxy(made.config()) as service,
    ):
        told = (await service.ask("/doctor", X_API_Key=ADMIN_KEY)).json
        assert told["exit_code"] == 0, told
        [step] = [f for f in told["instances"][0]["findings"] if f["step"] == "events_connected"]
        assert "kvproxy's index of it is exact" in step["words"]


async def test_an_examination_has_an_end() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        pair.service.app[SERVICE].doctor._limit_s = 1.0
        pair.engines.prefill[0].faults.add(Fault(kind="hang", path="/v1/c", times=1))
        told = await report(pair)
        assert told["verdict"] == "fail"
        assert "time" in {f["step"] for f in told["instances"][0]["findings"]}
