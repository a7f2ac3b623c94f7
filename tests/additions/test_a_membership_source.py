"""Another source of instances is one class: it says who is wanted, and no other room is touched.

The one here has its addresses in a set that changes, as a source for DNS or Kubernetes would have them from
elsewhere.
"""

import asyncio
import pathlib
from collections.abc import Iterable
from typing import Any

import pytest

from proxy.config import Admission, Health, InstanceSpec, State, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Status
from proxy.phases import Phase, Role
from proxy.service import assemble
from proxy.simulation import StandIn, StandInConfig
from proxy.watching.membership.base import MembershipSource, Wants
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import Engines, Service, engines, kvproxy, wait_until

PATIENT: Any = {
    "health": Health(interval_s=0.1),
    "startup_timeout_s": 600.0,
    "kv_events": False,
    "admission": Admission(queue_timeout_s=2.0),  # what cannot be served is asked for, and waits so long
}


class Directory:
    """Engines by address, wherever the addresses come from; implements MembershipSource."""

    name = "the directory"

    def __init__(self, addresses: Iterable[str], role: Role = Role.DECODE) -> None:
        self.addresses = set(addresses)
        self.role = role
        self.closed = False
        self._said: dict[str, InstanceSpec] = {}
        self._wants: Wants | None = None

    def start(self, wants: Wants) -> None:
        self._wants = wants
        self.look()

    def look(self) -> None:
        """Say what has changed; a real source does this in a task of its own, whenever it hears something."""
        assert self._wants is not None
        found = {address: parse_instance(address, self.role) for address in self.addresses}
        for address in [address for address, spec in self._said.items() if found.get(address) != spec]:
            self._wants.drop(address)
        for spec in found.values():
            self._wants.want(spec)
        self._said = found

    async def close(self) -> None:
        self.closed = True


def serving(made: Engines, source: MembershipSource) -> Any:
    return kvproxy(made.config(**PATIENT), sources=[source], ready=False)


def status(service: Service, address: str) -> Status | None:
    instance = service.fleet.get(address)
    return instance.status if instance is not None else None


def role(service: Service, address: str) -> Role | None:
    instance = service.fleet.get(address)
    return instance.role if instance is not None else None


async def shown(service: Service, address: str) -> str | None:
    instances = (await service.ask("/status")).json["instances"]
    return next((one["state"] for one in instances if one["instance"] == address), None)


async def test_an_engine_that_is_not_up_yet_is_there_and_serves_once_it_is_up() -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    source = Directory([address])
    async with engines(prefill=1, decode=0) as made, serving(made, source) as service:
        assert status(service, address) is not None
        assert await shown(service, address) in {"starting", "down"}
        assert (await service.complete("hello")).status == 503
        async with StandIn(StandInConfig(port=port)):
            await wait_until(lambda: status(service, address) is Status.UP, "the engine")
            await wait_until(lambda: service.fleet.ready, "readiness")
            assert (await service.complete("hello")).status == 200
        assert not service.app[SERVICE].watch.fatal.done()
    assert source.closed


async def test_an_engine_that_boots_later_is_wanted_and_only_the_admin_route_asks_it_first() -> None:
    first, second = free_ports(2)
    source = Directory([])
    async with engines(prefill=1, decode=1) as made, serving(made, source) as service:
        asked = {"type": "decode", "instance": f"127.0.0.1:{first}"}
        assert (await service.admin("/instances/add", asked)).status == 400
        assert status(service, f"127.0.0.1:{first}") is None
        source.addresses = {f"127.0.0.1:{second}"}
        source.look()
        assert status(service, f"127.0.0.1:{second}") is Status.STARTING
        async with StandIn(StandInConfig(port=second)):
            await wait_until(lambda: status(service, f"127.0.0.1:{second}") is Status.UP, "the engine")


async def test_a_dropped_instance_goes_when_its_legs_have_ended_and_stays_if_it_is_wanted_meanwhile() -> None:
    async with engines(prefill=1, decode=2) as made:
        staying, moving = made.decode
        source = Directory([moving.address])
        named = made.config(**PATIENT)
        named_by_flags = [spec for spec in named.instances if spec.address != moving.address]
        async with kvproxy(
            made.config(**PATIENT, instances=tuple(named_by_flags)), sources=[source]
        ) as service:
            instance = service.fleet.get(moving.address)
            assert instance is not None
            leg = service.fleet.claim(moving.address, 0, Phase.DECODE, 1)
            source.addresses = set()
            source.look()
            assert await shown(service, moving.address) == "draining"
            source.addresses = {moving.address}
            source.look()
            assert await shown(service, moving.address) == "up"
            source.addresses = set()
            source.look()
            leg.end()
            await wait_until(lambda: service.fleet.get(moving.address) is None, "its end")
            assert (await service.complete("hello")).status == 200
            assert service.fleet.get(staying.address) is not None


async def test_a_changed_role_is_taken_up_once_the_instance_before_is_gone() -> None:
    async with engines(prefill=1, decode=1) as made, StandIn(StandInConfig()) as other:
        source = Directory([other.address])
        async with kvproxy(made.config(**PATIENT), sources=[source]) as service:
            source.role = Role.PREFILL
            source.look()
            await wait_until(lambda: role(service, other.address) is Role.PREFILL, "its new role")
            await wait_until(lambda: status(service, other.address) is Status.UP, "the engine")


async def test_an_operators_word_goes_over_a_sources() -> None:
    async with engines(prefill=1, decode=1) as made, StandIn(StandInConfig()) as other:
        source = Directory([other.address])
        async with kvproxy(made.config(**PATIENT), sources=[source]) as service:
            named = {"instance": other.address}
            assert (await service.admin("/instances/add", named | {"type": "decode"})).status == 409
            assert (await service.admin("/instances/remove", named | {"force": True})).status == 200
            source.look()  # it repeats itself
            assert service.fleet.get(other.address) is None
            source.addresses = set()
            source.look()
            source.addresses = {other.address}
            source.look()
            await wait_until(lambda: status(service, other.address) is Status.UP, "the engine")


async def test_two_sources_that_differ_do_not_quarrel(caplog: pytest.LogCaptureFixture) -> None:
    async with engines(prefill=1, decode=1) as made:
        flagged = made.decode[0].address
        source = Directory([flagged], Role.PREFILL)
        async with kvproxy(made.config(**PATIENT), sources=[source]) as service:
            assert role(service, flagged) is Role.DECODE
            assert [m for m in caplog.messages if "stays as it is" in m]
            source.addresses = set()
            source.look()
            assert status(service, flagged) is Status.UP
            assert (await service.complete("hello")).status == 200


async def test_an_instance_drained_while_it_goes_stays_drained_if_it_is_wanted_again() -> None:
    async with engines(prefill=1, decode=1) as made, StandIn(StandInConfig()) as other:
        source = Directory([other.address])
        async with kvproxy(made.config(**PATIENT), sources=[source]) as service:
            leg = service.fleet.claim(other.address, 0, Phase.DECODE, 1)
            source.addresses = set()
            source.look()
            assert (await service.admin("/instances/drain", {"instance": other.address})).status == 200
            source.addresses = {other.address}
            source.look()
            assert await shown(service, other.address) == "draining"
            leg.end()


class Failing(Directory):
    """One that breaks its word: it raises when it is started."""

    def start(self, wants: Wants) -> None:
        super().start(wants)
        raise RuntimeError("no directory")


def owned() -> set[str]:
    """The running tasks that have an owner; those that answer on a socket have none."""
    return {name for task in asyncio.all_tasks() if ": " in (name := task.get_name())}


@pytest.mark.parametrize(("kind", "words"), [(Failing, "no directory"), (Directory, "in the middle")])
async def test_sources_that_were_started_are_closed_if_another_fails(
    kind: type[Directory], words: str, tmp_path: pathlib.Path
) -> None:
    async with engines(prefill=1, decode=1) as made:
        config = made.config(**PATIENT, state=State(state_dir=tmp_path / "state"))
        source = kind([])
        before = owned()
        with pytest.raises(RuntimeError, match=words):
            async with assemble(config, sources=[source]).running():
                raise RuntimeError("in the middle")
        assert owned() == before
        assert source.closed
        assemble(config)  # the directory can be had again
