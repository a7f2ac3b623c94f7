"""Invariant: every figure is read from the models when it is asked for; nothing is counted twice.

Names and labels are vLLM's, for those figures that a router reads. Only distributions and refusals are stored
as they happen.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.simulation.engine.engine import EngineModel
from proxy.simulation.engine.values import Output

_MILLISECONDS = (
    1,
    5,
    10,
    20,
    40,
    60,
    80,
    100,
    250,
    500,
    750,
    1000,
    2500,
    5000,
    7500,
    10_000,
    20_000,
    40_000,
    80_000,
)
_LATENCY = [ms / 1000 for ms in _MILLISECONDS]
_TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
_BYTES = [2.0**power for power in range(10, 31, 2)]
_FINISHED = ("stop", "length", "abort", "error", "repetition")
_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


class _Row(NamedTuple):
    """One metric: a model's value, or its values by one more label."""

    kind: str
    name: str
    text: str
    value: Callable[[EngineModel], float | Mapping[str, float]]
    label: str = ""


_ROWS = (
    _Row("gauge", "num_requests_running", "Requests in the batch.", lambda m: len(m.scheduler.running)),
    _Row("gauge", "num_requests_waiting", "Requests in the queue.", lambda m: m.scheduler.waiting),
    _Row(
        "gauge",
        "num_requests_waiting_by_reason",
        "Requests in the queue by what they wait for.",
        lambda m: {"capacity": m.scheduler.waiting - m.scheduler.deferred, "deferred": m.scheduler.deferred},
        "reason",
    ),
    _Row("gauge", "kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", lambda m: m.cache.pool.usage),
    _Row(
        "counter", "prefix_cache_queries", "Tokens looked up in the cache.", lambda m: m.stats.prefix_queries
    ),
    _Row("counter", "prefix_cache_hits", "Tokens found in the cache.", lambda m: m.stats.prefix_hits),
    _Row(
        "counter",
        "external_prefix_cache_queries",
        "Tokens asked of the connector.",
        lambda m: m.stats.external_queries,
    ),
    _Row(
        "counter", "external_prefix_cache_hits", "Tokens the connector had.", lambda m: m.stats.external_hits
    ),
    _Row("counter", "num_preemptions", "Preemptions.", lambda m: m.stats.preemptions),
    _Row("counter", "prompt_tokens", "Prompt tokens.", lambda m: m.stats.prompt_tokens),
    _Row(
        "counter",
        "prompt_tokens_by_source",
        "Prompt tokens by where their KV came from.",
        lambda m: {source: m.stats.prompt_by_source[source] for source in _SOURCES},
        "source",
    ),
    _Row("counter", "generation_tokens", "Generated tokens.", lambda m: m.stats.generated_tokens),
    _Row(
        "counter",
        "request_success",
        "Finished requests by reason.",
        lambda m: {reason: m.stats.finished[reason] for reason in _FINISHED},
        "finished_reason",
    ),
    _Row(
        "gauge",
        "engine_sleep_state",
        (
            "1 for what it is: awake, level 1 (weights_offloaded), level 2 (discard_all); none of them at "
            "level 0."
        ),
        lambda m: {
            state: m.sleep_level is level
            for state, level in (("awake", None), ("weights_offloaded", 1), ("discard_all", 2))
        },
        "sleep_state",
    ),
    _Row("counter", "nixl_num_failed_transfers", "Failed transfers.", lambda m: m.stats.failed_transfers),
    _Row("counter", "nixl_num_failed_notifications", "Failed notices.", lambda _: 0),
    _Row("counter", "nixl_num_kv_expired_reqs", "Leases that ended unread.", lambda m: m.holds.expired),
    _Row(
        "counter",
        "nixl_num_notifications_after_expiry",
        "Notices that came too late.",
        lambda m: m.holds.after_expiry,
    ),
)


class _Models(Collector):
    """What the models count."""

    def __init__(self, models: Sequence[EngineModel], *, loras: bool) -> None:
        self._models = models
        self._loras = loras
        self._seen_loras: dict[str, float] = {}
        """Which adapters had requests, as of each time it was asked: when that was so last."""

    def collect(self) -> Iterator[Metric]:
        for row in _ROWS:
            family = Metric(f"vllm:{row.name}", row.text, row.kind)
            sample = family.name + ("_total" if row.kind == "counter" else "")
            for rank, model in enumerate(self._models):
                labels = {"engine": str(rank), "model_name": model.shape.model}
                value = row.value(model)
                values = value if isinstance(value, Mapping) else {"": value}
                for text, number in values.items():
                    more = {row.label: text} if row.label else {}
                    family.add_sample(sample, dict(sorted((labels | more).items())), number)
            yield family
        yield self._cache_config()
        if self._loras:
            yield self._lora_requests()

    def _lora_requests(self) -> Metric:
        """As vLLM's: both labels name the adapters of requests in the batch, and none that only waits for
        its first turn. What was so once stays on the page, and the value tells when it was.
        """
        requests = (request for model in self._models for request in model.scheduler.running)
        names = dict.fromkeys(request.lora for request in requests if request.lora is not None)
        self._seen_loras[",".join(names)] = time.time()
        family = Metric("vllm:lora_requests_info", "Running stats on lora requests.", "gauge")
        for named, seen in self._seen_loras.items():
            labels = {
                "max_lora": str(self._models[0].shape.max_loras),
                "running_lora_adapters": named,
                "waiting_lora_adapters": named,
            }
            family.add_sample(family.name, labels, seen)
        return family

    def _cache_config(self) -> Metric:
        family = Metric("vllm:cache_config_info", "The cache's configuration.", "gauge")
        for rank, model in enumerate(self._models):
            labels = {
                "block_size": str(model.shape.block_size),
                "cache_dtype": "auto",
                "enable_prefix_caching": str(model.shape.prefix_caching),
                "engine": str(rank),
                "num_gpu_blocks": str(model.shape.blocks),
            }
            family.add_sample(family.name, labels, 1)
        return family


class EngineMetrics:
    """The registry of one stand-in."""

    def __init__(self, models: Sequence[EngineModel], *, loras: bool = False) -> None:
        """`loras`: whether it can serve adapters."""
        self._registry = CollectorRegistry()
        self._registry.register(_Models(models, loras=loras))
        name = models[0].shape.model

        def distribution(metric: str, text: str, buckets: Sequence[float]) -> list[Histogram]:
            whole = Histogram(
                f"vllm:{metric}", text, ["engine", "model_name"], buckets=buckets, registry=self._registry
            )
            return [whole.labels(str(rank), name) for rank in range(len(models))]

        self._first_token = distribution("time_to_first_token_seconds", "Time to the first token.", _LATENCY)
        self._queue = distribution("request_queue_time_seconds", "Time in the queue.", _LATENCY)
        self._whole = distribution("e2e_request_latency_seconds", "Time of a request.", _LATENCY)
        self._inter_token = distribution("inter_token_latency_seconds", "Time between tokens.", _LATENCY)
        self._prompt = distribution("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generated = distribution("request_generation_tokens", "Generated tokens of a request.", _TOKENS)
        self._transfer = distribution("nixl_xfer_time_seconds", "Time of a transfer.", _LATENCY)
        self._bytes = distribution("nixl_bytes_transferred", "Bytes of a transfer.", _BYTES)
        rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused for want of room, by the limit.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._rejections = {reason: rejections.labels(name, reason) for reason in _LIMITS}

    def token(self, rank: int, output: Output) -> None:
        """A token came out."""
        request = output.request
        now_s = request.last_token_s
        if output.token is None or now_s is None:
            return
        if output.previous_s is None:
            self._first_token[rank].observe(now_s - request.arrived_s)
            self._queue[rank].observe((request.scheduled_s or now_s) - request.arrived_s)
        else:
            self._inter_token[rank].observe(now_s - output.previous_s)
        if request.status.finished:
            self._whole[rank].observe(now_s - request.arrived_s)
            self._prompt[rank].observe(request.prompt_length)
            self._generated[rank].observe(request.generated)

    def rejected(self, limit: str) -> None:
        """A request was refused by the limit `max_num_queued_reqs` or `max_num_queued_tokens`."""
        self._rejections[limit].inc()

    def transfer(self, rank: int, seconds: float, size: int) -> None:
        """A pull has ended."""
        self._transfer[rank].observe(seconds)
        self._bytes[rank].observe(size)

    def text(self) -> bytes:
        """The answer of /metrics."""
        return generate_latest(self._registry)
