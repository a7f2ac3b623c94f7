"""When kvproxy's resolver is silent, engines are reached at the addresses known before, none is blamed."""

import asyncio

import pytest

from proxy.config import Deadlines, Health, parse_instance
from proxy.fleet import Status
from proxy.fleet.circuit import Circuit
from proxy.phases import Role
from proxy.simulation import StandIn
from proxy.tuning import Tuning
from tests.helpers.resolver import Resolver, resolver
from tests.helpers.service import Engines, kvproxy, wait_until

__all__ = ["resolver"]


async def test_engines_go_on_serving_while_the_resolver_is_silent(
    resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with StandIn() as prefill, StandIn() as decode:
        made = Engines([prefill], [decode], [])
        resolver.says |= {"p.test": ["127.0.0.1"], "d.test": ["127.0.0.1"]}
        named = tuple(
            parse_instance(f"{name}:{engine.address.rpartition(':')[2]}", role)
            for name, engine, role in (("p.test", prefill, Role.PREFILL), ("d.test", decode, Role.DECODE))
        )
        config = made.config(instances=named, kv_events=False, health=Health(interval_s=0.1))
        async with kvproxy(config, tuning=Tuning(name_fresh_s=0.0, resolver_silent_s=0.05)) as service:
            asked = len(resolver.asked)
            resolver.fall_silent()
            answers = await asyncio.gather(*(service.complete([n, 2, 3]) for n in range(20)))
            assert [answer.status for answer in answers] == [200] * 20
            await wait_until(lambda: "the resolver does not answer" in caplog.text, "a word of the resolver")
            assert len(resolver.asked) > asked
            for instance in service.fleet:
                assert (instance.status, instance.breaker.state) == (Status.UP, Circuit.CLOSED)
                assert instance.last_failure is None
            resolver.speak()
            await wait_until(lambda: "the resolver answers again" in caplog.text, "another word")


async def test_an_engine_whose_address_is_not_known_yet_is_not_blamed(resolver: Resolver) -> None:
    async with StandIn() as prefill, StandIn() as decode:
        made = Engines([prefill], [decode], [])
        port = prefill.address.rpartition(":")[2]
        config = made.config()
        unknown = parse_instance(f"new.test:{port}", Role.PREFILL)
        resolver.says["new.test"] = ["127.0.0.1"]
        resolver.fall_silent()
        config = made.config(
            instances=(*config.instances, unknown),
            kv_events=False,
            health=Health(interval_s=0.1, timeout_s=2.0),
            deadlines=Deadlines(connect_s=1.0),
        )
        async with kvproxy(config, ready=False) as service:
            instance = service.fleet.get(unknown.address)
            assert instance is not None
            await wait_until(lambda: "resolver" in (instance.why_down or ""), "a word of the resolver")
            assert (await service.complete([1, 2, 3])).status == 200
            shown = {i["instance"]: i for i in (await service.ask("/status")).json["instances"]}
            assert shown[unknown.address]["state"] == "starting"
            assert "kvproxy's resolver does not answer" in shown[unknown.address]["why"]
            told = {"instance": unknown.address, "finding": "missed"}
            assert await service.metric("kvproxy_checks_total", **told) == 0
            resolver.speak()
            await wait_until(lambda: instance.status is Status.UP, "its address")
