"""A warm setting is read each time it counts: the next request, leg or check obeys the new value."""

from typing import Any

import msgspec

from proxy.config import Admission, Config, Deadlines, Health, Retries
from proxy.simulation.live.faults import Fault
from tests.helpers.service import Pair, fleet, prose, wait_until


def exchange(pair: Pair, **settings: Any) -> Config:
    """What a reload would do."""
    rules = pair.service.rules
    rules.now = msgspec.structs.replace(rules.now, **settings)
    return rules.now


async def test_the_next_request_obeys_new_deadlines() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, retries=Retries(max_attempts=1)) as pair:
        for engine in pair.engines.all:
            engine.faults.add(Fault(kind="hang", path="/v1/c"))
        exchange(pair, deadlines=Deadlines(request_s=0.2))
        answer = await pair.service.complete("hello")
        assert (answer.status, "request" in answer.json["error"]["message"]) == (504, True)
        exchange(pair, deadlines=Deadlines(prefill_s=0.2))
        answer = await pair.service.complete("hello")
        assert (answer.status, "the prefill leg" in answer.json["error"]["message"]) == (504, True)
        pair.engines.prefill[0].faults.clear()
        exchange(pair, deadlines=Deadlines(first_byte_s=0.2))
        answer = await pair.service.complete("hello")
        assert (answer.status, "first byte" in answer.json["error"]["message"]) == (504, True)


async def test_the_next_request_obeys_another_number_of_attempts() -> None:
    async with fleet(prefill=3, decode=1, kv_events=False, retries=Retries(max_attempts=1)) as pair:
        for engine in pair.engines.prefill:
            engine.faults.add(Fault(kind="status", path="/v1/c", status=500))
        assert (await pair.service.complete("hello")).status == 500
        assert await pair.service.metric("kvproxy_retries_total") == 0
        exchange(pair, retries=Retries(max_attempts=3))
        assert (await pair.service.complete("hello")).status == 500
        assert await pair.service.metric("kvproxy_retries_total") == 2


async def test_the_next_request_waits_as_long_as_it_may_now() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, admission=Admission(queue_timeout_s=60)) as pair:
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[0].address})
        exchange(pair, admission=Admission(queue_timeout_s=0.1))
        assert (await pair.service.complete("hello")).status == 503
        assert (await pair.service.ask("/status")).json["queue"]["queue_timeout_s"] == 0.1


async def test_the_next_answer_has_headers_and_the_next_stream_comments() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        assert "X-Kvproxy-Prefill" not in (await pair.service.complete("hello")).headers
        exchange(pair, decision_headers=True, stream_keepalive_s=0.05)
        assert "X-Kvproxy-Prefill" in (await pair.service.complete("hello")).headers
        pair.engines.prefill[0].faults.add(Fault(kind="slow", path="/v1/c", delay_s=0.5))
        answer = await pair.service.complete(prose(10), stream=True)
        assert answer.body.startswith(b":")


async def test_the_next_check_comes_as_soon_as_it_should_now() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, health=Health(interval_s=2.0)) as pair:
        labels = {"instance": pair.engines.prefill[0].address, "finding": "answered"}
        registry = pair.service.registry

        def checks() -> float:
            return registry.get_sample_value("kvproxy_checks_total", labels) or 0.0

        exchange(pair, health=Health(interval_s=0.02))
        enough = checks() + 40  # 80 s as it was
        await wait_until(lambda: checks() >= enough, "forty checks")
