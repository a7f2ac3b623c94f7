"""Predictions are compared with reports on real sockets: honest engines are believed, wrong indexes not."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvevents import BlockStored, Prompt, Slot
from proxy.edge.app_keys import SERVICE
from proxy.scheduling.policies import RoundRobin
from proxy.simulation import StandIn
from proxy.tuning import Tuning
from tests.helpers.service import Pair, Service, fleet, wait_until
from tests.promises.test_serving import Miscounting

SMALL = {"blocks": 65, "max_model_len": 1024}
PROMPT_TOKENS = 100
BLOCKS = 6


async def accuracy(service: Service, engine: StandIn) -> Any:
    instances = (await service.ask("/status")).json["instances"]
    return next(i for i in instances if i["instance"] == engine.address)["ranks"][0]["accuracy"]


async def total(pair: Pair, *path: str) -> int:
    told = [await accuracy(pair.service, engine) for engine in pair.engines.prefill]
    for member in path:
        told = [one[member] for one in told]
    return sum(told)


async def judged(pair: Pair) -> None:
    """Until every miss has its cause."""
    for _ in range(1000):
        causes = [await total(pair, "misses", cause) for cause in ("tokens", "race", "upper_bound", "index")]
        if sum(causes) == await total(pair, "over") + await total(pair, "under"):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("some misses are still judged")


def ids(which: int) -> list[int]:
    """A prompt of six blocks and a few tokens."""
    return [100 + which * 53 + n for n in range(PROMPT_TOKENS)]


async def ask(service: Service, which: int, **members: Any) -> None:
    assert (await service.complete(ids(which), **members)).status == 200


async def heard(pair: Pair) -> None:
    """Until kvproxy has heard of every block the engines have cached."""
    index = pair.service.app[SERVICE].index
    await wait_until(
        lambda: all(
            sum(count for slot, count in index.blocks().items() if slot.instance == engine.address)
            == engine.model.cache.pool.cached_blocks
            for engine in pair.engines.all
        ),
        "all events",
    )


async def known(service: Service, engine: StandIn, which: int) -> None:
    """Until kvproxy has heard that an engine has a prompt cached."""
    slot, prompt = Slot(engine.address, 0, "GPU"), Prompt(ids(which))
    await wait_until(
        lambda: service.app[SERVICE].index.match(prompt).get(slot, 0) == BLOCKS * 16, "the events of a prompt"
    )


def imagine(service: Service, engine: StandIn, which: int) -> None:
    """Have kvproxy believe that an engine has a prompt cached."""
    hashes: list[int | bytes] = [10_000 * which + n for n in range(1, BLOCKS + 1)]
    run = BlockStored(hashes, None, ids(which)[: BLOCKS * 16], 16, medium="GPU")
    service.app[SERVICE].index.store(engine.address, 0, run)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two prefill engines whose misses are judged soon: here none of their events is late."""
    async with fleet(prefill=2, decode=1, tuning=Tuning(settle_s=0.2)) as pair:
        yield pair


async def test_exact_traffic_is_shown_as_exact() -> None:
    async with fleet() as pair:
        for which in (1, 2, 3, 1, 2, 3, 3, 2, 1, 1, 1, 2):
            await ask(pair.service, which)
            await heard(pair)
        assert await total(pair, "legs") == await total(pair, "exact") == 12
        shown = [await accuracy(pair.service, engine) for engine in pair.engines.prefill]
        assert {one["exact_share"] for one in shown} <= {1.0, None}
        assert {one["mean_error_blocks"] for one in shown} <= {0.0, None}
        assert all(one["trusted"] for one in shown)
        for engine in pair.engines.decode:  # they got no prefill legs: not sampled
            assert (await accuracy(pair.service, engine))["exact_share"] is None
        assert (
            await pair.service.metric("kvproxy_prediction_legs_total", outcome="exact", index="exact") == 12
        )
        assert await pair.service.metric("kvproxy_prediction_error_blocks_bucket", le="0.0") == 12
        assert await pair.service.metric("kvproxy_index_trusted") == 4


class EachInTurn(RoundRobin):
    """Takes the engines in turn, and has prompts found out all the same: they are compared."""

    reads_prompt = True


async def test_engines_that_look_ahead_are_predicted_exactly() -> None:
    """Prompts that end with a block, or go on otherwise behind one, and their repetitions."""
    dice = random.Random(3)
    plain = {"connector": False, "lookahead": 1}
    async with fleet(prefill=0, decode=0, both=2, stand_in=plain, policy=EachInTurn()) as pair:
        asked = 0
        for _ in range(40):
            prompt = [
                *ids(dice.randrange(3))[: 16 * dice.randrange(1, 6)],
                *dice.choices([7, 8], k=dice.randrange(3)),
            ]
            asked += (await pair.service.complete(prompt, max_tokens=1)).status == 200
            await heard(pair)
        told = [await accuracy(pair.service, engine) for engine in pair.engines.both]
        assert sum(one["legs"] for one in told) == sum(one["exact"] for one in told) == asked == 40
        status = (await pair.service.ask("/status")).json["instances"]
        assert [instance["ranks"][0]["lookahead_tokens"] for instance in status] == [1, 1]


async def test_bursts_in_a_small_cache_miss_by_races_alone() -> None:
    dice = random.Random(5)
    async with fleet(prefill=2, decode=2, stand_in=SMALL) as pair:
        for _ in range(12):
            burst = [ids(dice.randrange(30)) for _ in range(10)]
            answers = await asyncio.gather(*(pair.service.complete(prompt, max_tokens=2) for prompt in burst))
            assert {answer.status for answer in answers} == {200}
        await judged(pair)
        assert await total(pair, "legs") == 120
        assert await total(pair, "misses", "race") > 0
        for cause in ("tokens", "upper_bound", "index"):
            assert await total(pair, "misses", cause) == 0
        assert await pair.service.metric("kvproxy_prediction_misses_total", cause="race") == await total(
            pair, "misses", "race"
        )
        assert await pair.service.metric("kvproxy_index_trusted") == 4


async def test_an_index_that_is_wrong_is_rebuilt_and_believed_again(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.caches.believing")
    service, (engine, other) = pair.service, pair.engines.prefill
    for which in range(3):
        imagine(service, engine, which)
        await ask(service, which)
    assert (await accuracy(service, engine))["over"] == 3
    assert (await accuracy(service, other))["legs"] == 0
    await wait_until(lambda: len(caplog.messages) == 2, "distrust and new trust")
    assert f"prefill {engine.address} rank 0: index not trusted: it said that 6 blocks" in caplog.messages[0]
    assert "the engine reported 0; it is built anew now" in caplog.messages[0]
    assert caplog.messages[1] == f"prefill {engine.address} rank 0: index trusted again"
    shown = await accuracy(service, engine)
    assert shown["misses"]["index"] == 3
    assert (await service.explain({"prompt": ids(9)}))["prefill"]["candidates"][0]["index"] == "exact"
    await known(service, engine, 0)
    await ask(service, 0)
    assert (await accuracy(service, engine))["exact"] == 1


async def test_a_rank_that_is_wrong_again_is_chosen_by_load_until_it_is_right(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.caches.believing")
    service, (engine, other) = pair.service, pair.engines.prefill
    for which in range(3):
        imagine(service, engine, which)
        await ask(service, which)
    await wait_until(lambda: len(caplog.messages) == 2, "distrust and new trust")
    imagine(service, engine, 3)
    await ask(service, 3)
    await wait_until(lambda: len(caplog.messages) == 3, "distrust")
    assert "it is built anew in " in caplog.messages[2]
    assert not (await accuracy(service, engine))["trusted"]
    told = (await service.explain({"prompt": ids(0)}))["prefill"]
    candidate = next(c for c in told["candidates"] if c["instance"] == engine.address)
    assert candidate["index"] == "exact"
    assert candidate["trusted"] is False
    assert candidate["cached_tokens"] is candidate["expected_tokens"] is None
    assert candidate["uncached_tokens"] == PROMPT_TOKENS
    assert await service.metric("kvproxy_index_trusted", instance=engine.address) == 0
    await service.admin("/instances/drain", {"type": "prefill", "instance": other.address})
    await known(service, engine, 0)
    for _ in range(16):
        await ask(service, 0)
    await wait_until(lambda: service.app[SERVICE].accuracy.trusted(engine.address, 0), "new trust")
    assert (await accuracy(service, engine))["exact"] == 16


async def test_an_engine_that_hides_its_evictions_is_started_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxy.caches.believing")
    async with fleet(prefill=2, decode=1, tuning=Tuning(settle_s=0.2, rebuild_first_s=0.1)) as pair:
        service, (engine, other) = pair.service, pair.engines.prefill
        await service.admin("/instances/drain", {"type": "prefill", "instance": other.address})
        pool = engine.model.cache.pool
        tell, pool._on_removed = pool._on_removed, lambda _: None
        for which in range(4):
            await ask(service, which)
            await known(service, engine, which)
        await service.settled()
        assert pool.free_blocks == pool.size - 1
        pool.release(pool.allocate(pool.free_blocks))  # all is evicted, and nothing said
        pool._on_removed = tell
        for which in range(3):
            await ask(service, which)
        await wait_until(lambda: len(caplog.messages) == 2, "a replay, which brings the same")
        await ask(service, 3)
        await wait_until(lambda: len(caplog.messages) == 4, "a start from nothing")
        assert "not trusted" in caplog.messages[2]
        instance = service.fleet.get(engine.address)
        assert instance is not None
        assert instance.index_state(0) == "partial"
        before = (await accuracy(service, engine))["not_exact"]
        for which in (5, 6, 5, 6, 5):
            await ask(service, which)
            await known(service, engine, which)
        after = (await accuracy(service, engine))["not_exact"]
        assert after["exact"] - before["exact"] == 5
        assert service.app[SERVICE].accuracy.trusted(engine.address, 0)


async def test_prompts_counted_otherwise_are_told_apart_and_nothing_is_rebuilt() -> None:
    async with fleet(prefill=1, decode=1, tuning=Tuning(settle_s=0.0)) as pair:
        Miscounting().counts_for(pair.service.app[SERVICE].director)
        for _ in range(5):
            await ask(pair.service, 1)
        shown = await accuracy(pair.service, pair.engines.prefill[0])
        assert (shown["under"], shown["misses"]["tokens"], shown["trusted"]) == (4, 4, True)


async def test_engines_that_do_not_report_are_unreported() -> None:
    settings = {"prompt_tokens_details": False, "connector": False}
    async with fleet(prefill=1, decode=1, connector="shared", stand_in=settings) as pair:
        for _ in range(3):
            await ask(pair.service, 1)
        shown = await accuracy(pair.service, pair.engines.prefill[0])
        assert (shown["legs"], shown["unreported"], shown["exact_share"]) == (3, 3, None)


async def test_one_leg_is_compared_where_its_whole_answer_tells() -> None:
    async with fleet(prefill=0, decode=0, both=1) as pair:
        for _ in range(3):
            await ask(pair.service, 1)
            await heard(pair)
        await ask(pair.service, 1, stream=True)
        await ask(pair.service, 1, prompt_logprobs=1)  # reads no cache
        shown = await accuracy(pair.service, pair.engines.both[0])
        assert (shown["legs"], shown["exact"], shown["unreported"]) == (4, 3, 1)


async def test_counts_begin_anew_with_an_instance_that_was_removed() -> None:
    async with fleet(prefill=2, decode=1) as pair:
        service, engine = pair.service, pair.engines.prefill[0]
        await service.admin(
            "/instances/drain", {"type": "prefill", "instance": pair.engines.prefill[1].address}
        )
        await ask(service, 1)
        assert (await accuracy(service, engine))["legs"] == 1
        await service.settled()
        named = {"type": "prefill", "instance": engine.address}
        assert (await service.admin("/instances/remove", named | {"force": True})).status == 200
        assert await service.metric("kvproxy_prediction_legs_total", instance=engine.address) == 0
        assert (await service.admin("/instances/add", named)).status == 200
        assert (await accuracy(service, engine))["legs"] == 0
