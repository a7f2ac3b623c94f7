"""Prompts also follow blocks that lie in an engine's slower tier."""

from typing import Any

import pytest

from proxy.config import Config, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import ADMIN_KEY, kvproxy, wait_until
from tests.kvevents.publisher import Publisher


async def test_explain_tells_what_must_be_reloaded() -> None:
    events, replay = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    publisher = Publisher(events, replay)
    try:
        async with StandIn(StandInConfig(events=None)) as engine:
            spec = parse_instance(f"{engine.address}?events={events}&replay={replay}", Role.BOTH)
            config = Config(model="tiny", instances=(spec,), admin_api_key=ADMIN_KEY, policy="cache_affinity")
            async with kvproxy(config) as service:
                run: dict[str, Any] = {"type": "BlockStored", "block_size": 16, "parent_block_hash": None}
                run |= {"block_hashes": [1, 2, 3], "token_ids": list(range(48))}
                child = run | {"block_hashes": [4], "parent_block_hash": 3, "token_ids": list(range(48, 64))}
                cpu_alone = child | {"medium": "CPU"}  # as some connectors tell: behind a parent on the GPU
                publisher.publish(run | {"medium": "GPU"}, run | {"medium": "CPU"}, cpu_alone)
                publisher.publish(child | {"medium": "TAPE", "block_hashes": [4]})
                index = service.app[SERVICE].index
                await wait_until(lambda: sum(index.blocks().values()) == 8, "the batches")
                explained = await service.explain({"prompt": list(range(70))})
                (terms,) = explained["prefill"]["candidates"]
                assert (terms["cached_tokens"], terms["reload_tokens"], terms["uncached_tokens"]) == (
                    48,
                    16,
                    6,
                )
                assert terms["reload_cost_tokens"] == pytest.approx(3.2)
                assert terms["cost"] == pytest.approx(9.2)
    finally:
        publisher.close()
