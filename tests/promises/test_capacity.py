"""The index counts no more copies of blocks than an engine's cache has room for, by the engine's own word."""

import dataclasses
from typing import Any

import pytest

from proxy.edge.app_keys import SERVICE
from proxy.simulation import StandIn
from tests.helpers.service import Pair, ask, fleet, wait_until

SMALL = {"blocks": 65, "max_model_len": 1024}


def copies(pair: Pair, engine: StandIn, rank: int = 0) -> tuple[int, int]:
    """The blocks known, and their copies beyond the first."""
    exported = pair.service.app[SERVICE].index.export(engine.address, rank)
    if exported is None:
        return 0, 0
    (tier,) = exported.tiers
    return len(tier.hashes), sum(tier.copies.values())


async def report_again(pair: Pair, engine: StandIn, prompt: list[int], **headers: str) -> None:
    """Have the engine announce a prompt's blocks as somebody else's full report would."""
    body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    body["vllm_xargs"] = {"kv_cache_report_mode": "full"}
    assert (await ask(pair.service.session, engine.url, "/v1/completions", body, **headers)).status == 200


@pytest.mark.parametrize("ranks", [1, 2])
async def test_reports_asked_for_by_others_do_not_count_beyond_what_fits(ranks: int) -> None:
    async with fleet(prefill=1, decode=1, stand_in=SMALL | {"ranks": ranks}) as pair:
        (engine,) = pair.engines.prefill
        last, prompt = ranks - 1, list(range(100, 100 + 40 * 16 + 1))
        for _ in range(6):
            await report_again(pair, engine, prompt, X_data_parallel_rank=str(last))
        await wait_until(lambda: copies(pair, engine, last)[0] == 40, "the prompt in the index")
        # One more batch, to know that all before it were applied.
        await report_again(pair, engine, [7] * 17, X_data_parallel_rank=str(last))
        await wait_until(lambda: copies(pair, engine, last)[0] == 41, "the last batch")
        assert copies(pair, engine, last) == (41, 65 - 41)


async def test_a_restarted_engine_is_asked_again() -> None:
    async with fleet(prefill=1, decode=1, stand_in=SMALL) as pair:
        (engine,) = pair.engines.prefill
        index = pair.service.app[SERVICE].index
        await wait_until(lambda: index.capacity(engine.address, 0) == 65, "the engine's word")
        assert (await pair.service.complete(list(range(100, 150)))).status == 200
        engine.config = dataclasses.replace(engine.config, blocks=97)
        await engine.restart()
        await wait_until(lambda: index.block_size(engine.address, 0) is None, "the end of the old process")
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        pair.service.app[SERVICE].watch.legs.suspect(instance)  # or it is looked at within seconds
        await wait_until(lambda: index.capacity(engine.address, 0) == 97, "the word of the new process")
        await pair.service.admin(
            "/instances/remove", {"type": "prefill", "instance": engine.address, "force": True}
        )
        assert index.capacity(engine.address, 0) is None
