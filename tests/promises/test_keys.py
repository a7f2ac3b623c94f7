"""Whatever changes a block changes where its prompt goes: ranks, block sizes, adapters, salts, images.

Each promise is kept by the engine: what was predicted is what it reports.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvevents import BlockStored, PrefixIndex, Prompt, Slot
from proxy.caches.shown import MissesShown
from proxy.config import Config, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.phases import Phase, Role
from proxy.simulation import StandIn, StandInConfig
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import (
    ADMIN_KEY,
    UNHURRIED,
    Answer,
    Engines,
    Pair,
    Service,
    ask,
    fleet,
    kvproxy,
    wait_until,
)
from tests.kvevents.publisher import Publisher

RANK_HEADER = "X-data-parallel-rank"
RANKS = 3


def predicted_and_reported(answer: Answer) -> tuple[int, int]:
    usage = answer.json["usage"]["prompt_tokens_details"]
    return int(answer.headers["X-Kvproxy-Cached-Tokens"]), int(usage["cached_tokens"])


def legs(engine: StandIn) -> list[str]:
    return [s.headers[RANK_HEADER] for s in engine.seen if s.path == "/v1/completions"]


# ---- data-parallel ranks ----------------------------------------------------------------------------------


async def cache(pair: Pair, engine: StandIn, rank: int, prompt: list[int]) -> None:
    """Have one rank of an engine cache a prompt, and the index hear of it."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    answer = await ask(
        pair.service.session, engine.url, "/v1/completions", body, X_data_parallel_rank=str(rank)
    )
    assert answer.status == 200
    index, slot = pair.service.app[SERVICE].index, Slot(engine.address, rank, "GPU")
    whole = len(prompt) // 16 * 16
    await wait_until(lambda: index.match(Prompt(prompt)).get(slot) == whole, "the prompt in the index")
    engine.seen.clear()


async def test_a_prompt_goes_to_the_rank_that_has_its_prefix_and_the_engine_confirms_it() -> None:
    stand_in = UNHURRIED | {"ranks": RANKS}
    async with fleet(prefill=2, decode=1, stand_in=stand_in, decision_headers=True) as pair:
        prefill, (decode,) = pair.engines.prefill, pair.engines.decode
        prompts = {(n, rank): [100 + 10 * n + rank, *range(200, 300)] for n in range(2) for rank in range(3)}
        for (n, rank), prompt in prompts.items():
            await cache(pair, prefill[n], rank, prompt)
            await cache(pair, decode, (rank + n) % RANKS, prompt)
        for tail in (range(400, 420), range(450, 470)):
            for (n, rank), prompt in prompts.items():
                prompt.extend(tail)
                answer = await pair.service.complete(prompt)
                predicted, reported = predicted_and_reported(answer)
                assert predicted == reported >= 96
                assert answer.headers["X-Kvproxy-Prefill"] == prefill[n].address
                assert (legs(prefill[n])[-1], legs(decode)[-1]) == (str(rank), str((rank + n) % RANKS))


async def test_each_rank_is_a_source_of_its_own_with_claims_of_its_own() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED | {"ranks": RANKS}) as pair:
        (engine,) = pair.engines.prefill
        assert (await pair.service.complete([5, *range(200, 300)])).status == 200
        (used,) = legs(engine)
        told = (await pair.service.ask("/status")).json["instances"][0]
        blocks = {str(rank["rank"]): rank["blocks"] for rank in told["ranks"]}
        assert blocks == {"0": 0, "1": 0, "2": 0} | {used: 6}
        assert [rank["index"] for rank in told["ranks"]] == ["exact"] * RANKS
        with pair.service.fleet.claim(engine.address, 1, Phase.PREFILL, 70):
            explained = await pair.service.explain({"prompt": [5, *range(200, 300)]})
            loads = {c["rank"]: c["load_tokens"] for c in explained["prefill"]["candidates"]}
            assert loads == {0: 0, 1: 70, 2: 0}


async def test_a_rank_that_is_reset_forgets_alone() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED | {"ranks": 2}, decision_headers=True) as pair:
        (engine,) = pair.engines.prefill
        prompts = [[100 + n, *range(200, 300)] for n in range(2)]
        for rank, prompt in enumerate(prompts):
            await cache(pair, engine, rank, prompt)
        assert engine.ranks[0].model.reset_prefix_cache()
        await cache(pair, engine, 0, [1] * 40)  # a reset is announced with the next batch
        assert pair.service.app[SERVICE].index.match(Prompt(prompts[0]))[Slot(engine.address, 0, "GPU")] == 0
        answer = await pair.service.complete([*prompts[1], 9])
        assert predicted_and_reported(answer) == (96, 96)
        assert legs(engine) == ["1"]


# ---- block sizes ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def of_block_sizes(*sizes: int) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                StandIn(StandInConfig(block_size=size, profile=UNHURRIED["profile"]))
            )
            for size in sizes
        ]
        engines = Engines([], [], made)
        service = await stack.enter_async_context(kvproxy(engines.config(decision_headers=True)))
        yield Pair(engines, service)


async def test_instances_with_different_block_sizes_are_each_predicted_by_their_own() -> None:
    async with of_block_sizes(16, 32, 64) as pair:
        prompt = list(range(100, 200))
        for engine in pair.engines.both:
            others = [e.address for e in pair.engines.both if e is not engine]
            await only(pair.service, others, prompt)
        explained = await pair.service.explain({"prompt": [*prompt, 7]})
        cached = [c["cached_tokens"] for c in explained["prefill"]["candidates"]]
        assert cached == [96, 96, 64]
        sizes = [i["block_size"] for i in (await pair.service.ask("/status")).json["instances"]]
        assert sizes == [16, 32, 64]
        for engine, expected in zip(pair.engines.both, cached, strict=True):
            others = [e.address for e in pair.engines.both if e is not engine]
            answer = await only(pair.service, others, [*prompt, 7])
            assert predicted_and_reported(answer) == (expected, expected)


async def only(service: Service, others: list[str], prompt: list[int]) -> Answer:
    """Complete a prompt while the other instances are drained."""
    for address in others:
        await service.admin("/instances/drain", {"type": "both", "instance": address})
    answer = await service.complete(prompt)
    for address in others:
        await service.admin("/instances/drain", {"type": "both", "instance": address, "undo": True})
    await service.settled()
    return answer


# ---- cache groups -----------------------------------------------------------------------------------------


async def test_groups_of_hybrid_models_are_not_counted_and_that_is_said() -> None:
    events, replay = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    publisher = Publisher(events, replay)
    try:
        async with StandIn(StandInConfig(events=None)) as engine:
            spec = parse_instance(f"{engine.address}?events={events}&replay={replay}", Role.BOTH)
            async with kvproxy(Config(model="tiny", instances=(spec,), admin_api_key=ADMIN_KEY)) as service:
                run: dict[str, Any] = {
                    "type": "BlockStored",
                    "parent_block_hash": None,
                    "block_size": 16,
                    "medium": "GPU",
                }
                run |= {"block_hashes": [1, 2], "token_ids": list(range(32))}
                longer = run | {"block_hashes": [1, 2, 3], "token_ids": list(range(48))}
                publisher.publish(
                    run | {"group_idx": 0, "kv_cache_spec_kind": "full_attention"},
                    longer | {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"},
                    longer | {"group_idx": 2, "kv_cache_spec_kind": "dreamt_up_later"},
                )
                index = service.app[SERVICE].index
                await wait_until(lambda: len(index.uncounted(engine.address, 0)) == 2, "the batch")
                (rank,) = (await service.ask("/status")).json["instances"][0]["ranks"]
                assert rank["blocks"] == 2
                assert rank["upper_bound"] is True
                assert rank["uncounted_groups"] == ["group 1: sliding_window", "group 2: dreamt_up_later"]
                for reason in ("cache_group", "cache_kind"):
                    assert await service.metric("kvproxy_kv_events_dropped_total", reason=reason) == 3
                explained = await service.explain({"prompt": list(range(60))})
                assert [c["cached_tokens"] for c in explained["prefill"]["candidates"]] == [32]
                # Its other groups have nothing of the prompt, so it reuses nothing, and the index is not to
                # blame.
                assert (await service.complete(list(range(60)))).status == 200
                accuracy = service.app[SERVICE].accuracy
                judged = MissesShown(tokens=0, race=0, upper_bound=1, index=0)
                await wait_until(
                    lambda: accuracy.status(engine.address, 0).misses == judged, "the judgement of the leg"
                )
    finally:
        publisher.close()


# ---- images -----------------------------------------------------------------------------------------------


async def test_a_prompt_with_an_image_is_placed_by_load_and_counted_never_guessed() -> None:
    async with fleet(prefill=2, decode=1, stand_in=UNHURRIED) as pair:
        text = {"type": "text", "text": "what is this? " * 30}
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        assert (await pair.service.chat([{"role": "user", "content": [text]}])).status == 200
        body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": [text, image]}]}
        explained = await pair.service.explain(body)
        assert explained["prompt_tokens"] is None
        assert {c["cached_tokens"] for c in explained["prefill"]["candidates"]} == {None}
        await pair.service.chat(body["messages"])
        assert await pair.service.metric("kvproxy_unknown_prompts_total", reason="content part") == 1


def test_the_blocks_before_an_image_are_shared_and_the_images_own_are_its_own() -> None:
    """As vLLM writes them: a pair of identifier and offset in every block the image reaches into."""
    index = PrefixIndex()
    tokens = list(range(48))
    pairs = [None, [["cat", -8]], [["cat", -24]]]
    index.store("e", 0, BlockStored([1, 2, 3], None, tokens, 16, extra_keys=pairs))
    index.store("e", 0, BlockStored([4, 5], 1, tokens[16:], 16, extra_keys=[[["dog", -8]], [["dog", -24]]]))
    assert index.blocks() == {("e", 0, "GPU"): 5}  # two images never share a block
    assert index.match(Prompt(tokens)) == {("e", 0, "GPU"): 16}


@pytest.mark.parametrize("members", [{}, {"model": "alpha"}, {"cache_salt": "s"}])
async def test_what_another_adapter_or_salt_has_cached_attracts_nobody(members: dict[str, str]) -> None:
    keys: list[dict[str, str]] = [{}, {"model": "alpha"}, {"cache_salt": "s"}]
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED | {"loras": ("alpha",)}) as pair:
        prompt = list(range(100, 200))
        assert (await pair.service.complete(prompt, **members)).status == 200
        cached = []
        for other in keys:
            explained = await pair.service.explain({"prompt": [*prompt, 7]} | other)
            cached += [c["cached_tokens"] for c in explained["prefill"]["candidates"]]
        assert cached == [96 if other == members else 0 for other in keys]
