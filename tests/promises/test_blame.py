"""When attempts fail, an instance is avoided or blamed only for its own fault, never for another one's."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.config import Retries
from proxy.edge.app_keys import SERVICE
from proxy.errors import ConnectTimeoutError
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import InOrder, Pair, fleet, prose, wait_until

PATH = "/v1/completions"


def legs(engine: StandIn) -> int:
    """Generating requests an engine has seen, releases left out."""
    return sum(1 for s in engine.seen if s.path == PATH and b"kvproxy-release" not in s.body)


def first(engines: Sequence[StandIn]) -> StandIn:
    """The one that the policy InOrder picks."""
    return min(engines, key=lambda engine: engine.address)


async def opened(pair: Pair, role: str) -> float:
    """How many circuits of a role have opened."""
    metric = pair.service.metric
    addresses = [engine.address for engine in getattr(pair.engines, role)]
    return sum([await metric("kvproxy_circuit_transitions_total", instance=a, to="open") for a in addresses])


@pytest.mark.parametrize("decode", [1, 3])
async def test_a_prefill_instance_whose_blocks_nobody_can_fetch_is_left_and_blamed(decode: int) -> None:
    async with fleet(prefill=2, decode=decode, policy=InOrder(), kv_events=False) as pair:
        broken = first(pair.engines.prefill)
        for rank in broken.ranks:
            await rank._side.close()
        for n in range(6):
            assert (await pair.service.complete(prose(20, n))).status == 200
        assert await opened(pair, "decode") == 0
        assert await opened(pair, "prefill") >= 1
        assert legs(broken) < 12  # once it is known nothing goes there any more


async def test_decode_instances_are_not_blamed_for_blocks_that_died() -> None:
    async with fleet(prefill=2, decode=2, policy=InOrder(), kv_events=False) as pair:
        dying = first(pair.engines.prefill)
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="hang", path=PATH))
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(pair.service.complete(prose(20, n))) for n in range(10)]
        await wait_until(lambda: sum(map(legs, pair.engines.decode)) == 10, "ten decode legs")
        await dying.stop()
        for engine in pair.engines.decode:
            engine.faults.clear()
            engine.faults.release()
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
        assert await opened(pair, "decode") == 0


class Unreachable:
    """Makes the client time out when it connects to some instances."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch, instances: set[str]) -> None:
        self.asked: list[str] = []
        client = pair.service.app[SERVICE].director._legs._client
        post = client.post

        async def posts(instance: str, path: str, body: bytes, headers: Any) -> Any:
            if instance not in instances or b"kvproxy-release" in body:
                return await post(instance, path, body, headers)
            self.asked.append(instance)
            await asyncio.sleep(0.4)
            raise ConnectTimeoutError(instance, "no connection within 0.4 s")

        monkeypatch.setattr(client, "post", posts)


async def test_connect_timeouts_are_attempts_and_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(prefill=4, decode=1, kv_events=False, retries=Retries(max_attempts=2)) as pair:
        unreachable = Unreachable(pair, monkeypatch, {engine.address for engine in pair.engines.prefill})
        assert (await pair.service.complete("hello")).status == 504
        assert len(unreachable.asked) == len(set(unreachable.asked)) == 2


async def test_decode_instances_out_of_reach_are_not_tried_again_when_the_lease_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(prefill=2, decode=3, policy=InOrder(), kv_events=False, kv_lease_s=10.5) as pair:
        addresses = sorted(engine.address for engine in pair.engines.decode)
        unreachable = Unreachable(pair, monkeypatch, set(addresses[:2]))
        assert (await pair.service.complete("hello")).status == 200
        assert unreachable.asked == addresses[:2]
        assert await opened(pair, "prefill") == 0
