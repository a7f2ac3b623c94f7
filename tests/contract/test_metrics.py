"""The metrics that a router reads have vLLM's names and labels, and move as the engine works."""

import contextlib

import pytest

from scripts.workshop.live.metrics import Page
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.prompts import ids, text

ONE = frozenset({"engine", "model_name"})
GAUGES = {
    "num_requests_running": ONE,
    "num_requests_waiting": ONE,
    "num_requests_waiting_by_reason": ONE | {"reason"},
    "kv_cache_usage_perc": ONE,
}
COUNTERS = {
    "prefix_cache_queries_total": ONE,
    "prefix_cache_hits_total": ONE,
    "external_prefix_cache_queries_total": ONE,
    "external_prefix_cache_hits_total": ONE,
    "num_preemptions_total": ONE,
    "prompt_tokens_total": ONE,
    "prompt_tokens_by_source_total": ONE | {"source"},
    "generation_tokens_total": ONE,
    "request_success_total": ONE | {"finished_reason"},
}
HISTOGRAMS = {
    "time_to_first_token_seconds": ONE,
    "inter_token_latency_seconds": ONE,
    "e2e_request_latency_seconds": ONE,
    "request_queue_time_seconds": ONE,
    "request_prompt_tokens": ONE,
    "request_generation_tokens": ONE,
}
SERIES = {
    **GAUGES,
    **COUNTERS,
    **{f"{name}_{part}": labels for name, labels in HISTOGRAMS.items() for part in ("count", "sum")},
    **{f"{name}_bucket": labels | {"le"} for name, labels in HISTOGRAMS.items()},
}
VALUES = {
    "reason": ("num_requests_waiting_by_reason", {"capacity", "deferred"}),
    "source": (
        "prompt_tokens_by_source_total",
        {"local_compute", "local_cache_hit", "external_kv_transfer"},
    ),
    "finished_reason": ("request_success_total", {"stop", "length", "abort", "error", "repetition"}),
}
AT_ONCE = 16  # --max-num-seqs


def labels_of(page: Page, name: str) -> set[frozenset[str]]:
    return {frozenset(labels) for labels, _ in page._samples(f"vllm:{name}", {})}


async def test_every_series_has_its_labels(engine: Engine) -> None:
    await engine.served(text("labels"))
    page = await engine.metrics()
    assert {name: labels_of(page, name) for name in SERIES} == {
        name: {labels} for name, labels in SERIES.items()
    }


@pytest.mark.parametrize("label", VALUES)
async def test_a_label_has_its_values(engine: Engine, label: str) -> None:
    name, values = VALUES[label]
    assert set((await engine.metrics()).by(label, f"vllm:{name}")) == values


async def test_series_name_the_engine_and_the_model(engine: Engine) -> None:
    page = await engine.metrics()
    assert set(page.by("engine", "vllm:num_requests_running")) == {"0"}
    assert set(page.by("model_name", "vllm:num_requests_running")) == {"tiny"}


async def test_the_caches_shape_is_told(engine: Engine) -> None:
    page = await engine.metrics()
    assert page.by("block_size", "vllm:cache_config_info") == {"32": 1}
    assert page.by("num_gpu_blocks", "vllm:cache_config_info") == {str(engine.blocks + 1): 1}
    assert page.by("enable_prefix_caching", "vllm:cache_config_info") == {"True": 1}
    assert page.by("engine", "vllm:cache_config_info") == {"0": 1}


def moved(before: Page, after: Page) -> dict[str, float]:
    """What the counters grew by, in tokens and requests; what has not moved is left out."""
    names = [*COUNTERS, *(f"{name}_count" for name in HISTOGRAMS)]
    names += ["request_prompt_tokens_sum", "request_generation_tokens_sum"]
    found = {name: after.total(f"vllm:{name}") - before.total(f"vllm:{name}") for name in names}
    for label in ("source", "finished_reason"):
        name = f"vllm:{VALUES[label][0]}"
        was = before.by(label, name)
        found |= {value: count - was.get(value, 0) for value, count in after.by(label, name).items()}
    return {name: grown for name, grown in found.items() if grown}


async def test_counters_count_tokens_and_requests(engine: Engine) -> None:
    body = ids(70, "counted", 5)
    pages = [await engine.metrics()]
    for _ in range(2):
        await engine.served(body)
        pages.append(await engine.metrics())
    first = {
        "prefix_cache_queries_total": 70,
        "prompt_tokens_total": 70,
        "prompt_tokens_by_source_total": 70,
        "generation_tokens_total": 5,
        "request_success_total": 1,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_count": 1,
        "request_queue_time_seconds_count": 1,
        "request_prompt_tokens_count": 1,
        "request_prompt_tokens_sum": 70,
        "request_generation_tokens_count": 1,
        "request_generation_tokens_sum": 5,
        "local_compute": 70,
        "length": 1,
    }
    second = first | {"prefix_cache_hits_total": 64, "local_compute": 6, "local_cache_hit": 64}
    assert moved(*pages[:2]) == first
    assert moved(*pages[1:]) == second


async def test_gauges_tell_what_runs_and_what_waits(engine: Engine) -> None:
    waiting = 3
    async with contextlib.AsyncExitStack() as stack:
        for n in range(AT_ONCE):
            await stack.enter_async_context(engine.streaming(ids(40, f"runs {n}", 1500)))
        for n in range(waiting):
            body = ids(40, f"waits {n}", 1500, stream=True)
            await stack.enter_async_context(
                engine.session.post(f"{engine.spec.url}/v1/completions", json=body)
            )

        async def full() -> bool:
            page = await engine.metrics()
            reasons = page.by("reason", "vllm:num_requests_waiting_by_reason")
            return (
                page.total("vllm:num_requests_running") == AT_ONCE
                and page.total("vllm:num_requests_waiting") == waiting
                and reasons == {"capacity": waiting, "deferred": 0}
            )

        await wait_until(full, 10, "the batch is full and the rest waits")
        assert await engine.used_blocks() >= 2 * AT_ONCE
    await engine.at_rest()
