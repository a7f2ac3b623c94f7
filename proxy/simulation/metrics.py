"""Invariant: every figure is read from the models when it is asked for; nothing is counted twice.

The names and labels are vLLM's, of what a router reads. Distributions are kept as they happen.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.simulation.engine import EngineModel
from proxy.simulation.engine_values import Output

_LATENCY = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_FINISHED = ("stop", "length", "abort", "error", "repetition")
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


class _Models(Collector):
    """What the models count."""

    def __init__(self, models: Sequence[EngineModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield self._cache_config()

    def _each(self, family: Metric, values: Iterable[Sequence[tuple[Sequence[str], float]]]) -> Metric:
        for rank, (model, rows) in enumerate(zip(self._models, values, strict=True)):
            for labels, value in rows:
                family.add_metric([str(rank), model.shape.model, *labels], value)  # type: ignore[attr-defined]  # both families have it
        return family

    def _gauges(self) -> Iterator[Metric]:
        def gauge(name: str, text: str, values: list[float]) -> Metric:
            family = GaugeMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name"])
            return self._each(family, ([((), value)] for value in values))

        models = self._models
        yield gauge(
            "num_requests_running", "Requests in the batch.", [len(m.scheduler.running) for m in models]
        )
        yield gauge("num_requests_waiting", "Requests in the queue.", [m.scheduler.waiting for m in models])
        yield self._each(
            GaugeMetricFamily(
                "vllm:num_requests_waiting_by_reason",
                "Requests in the queue by what they wait for.",
                labels=["engine", "model_name", "reason"],
            ),
            (
                [
                    (["capacity"], m.scheduler.waiting - m.scheduler.deferred),
                    (["deferred"], m.scheduler.deferred),
                ]
                for m in models
            ),
        )
        yield gauge(
            "kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", [m.cache.pool.usage for m in models]
        )

    def _counters(self) -> Iterator[Metric]:
        def counter(name: str, text: str, values: list[float]) -> Metric:
            family = CounterMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name"])
            return self._each(family, ([((), value)] for value in values))

        models = self._models
        stats = [m.stats for m in models]
        yield counter(
            "prefix_cache_queries", "Tokens looked up in the cache.", [s.prefix_queries for s in stats]
        )
        yield counter("prefix_cache_hits", "Tokens found in the cache.", [s.prefix_hits for s in stats])
        yield counter(
            "external_prefix_cache_queries",
            "Tokens asked of the connector.",
            [s.external_queries for s in stats],
        )
        yield counter(
            "external_prefix_cache_hits", "Tokens the connector had.", [s.external_hits for s in stats]
        )
        yield counter("num_preemptions", "Preemptions.", [s.preemptions for s in stats])
        yield counter("prompt_tokens", "Prompt tokens.", [s.prompt_tokens for s in stats])
        yield counter("generation_tokens", "Generated tokens.", [s.generated_tokens for s in stats])
        yield counter("nixl_num_failed_transfers", "Failed transfers.", [s.failed_transfers for s in stats])
        yield counter("nixl_num_failed_notifications", "Failed notices.", [0 for _ in stats])
        yield counter(
            "nixl_num_kv_expired_reqs", "Leases that ended unread.", [m.holds.expired for m in models]
        )
        yield counter(
            "nixl_num_notifications_after_expiry", "Notices too late.", [m.holds.after_expiry for m in models]
        )
        yield self._each(
            CounterMetricFamily(
                "vllm:prompt_tokens_by_source",
                "Prompt tokens by where their KV came from.",
                labels=["engine", "model_name", "source"],
            ),
            ([([source], s.prompt_by_source[source]) for source in _SOURCES] for s in stats),
        )
        yield self._each(
            CounterMetricFamily(
                "vllm:request_success",
                "Finished requests by reason.",
                labels=["engine", "model_name", "finished_reason"],
            ),
            ([([reason], s.finished[reason]) for reason in _FINISHED] for s in stats),
        )

    def _cache_config(self) -> Metric:
        labels = ["engine", "block_size", "num_gpu_blocks", "enable_prefix_caching", "cache_dtype"]
        family = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration.", labels=labels)
        for rank, model in enumerate(self._models):
            shape = model.shape
            family.add_metric([str(rank), str(shape.block_size), str(shape.blocks), "True", "auto"], 1)
        return family


class EngineMetrics:
    """The registry of one stand-in."""

    def __init__(self, models: Sequence[EngineModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Models(models))
        self._model_name = models[0].shape.model

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(
                f"vllm:{name}", text, ["engine", "model_name"], buckets=buckets, registry=self._registry
            )

        self._first_token = histogram("time_to_first_token_seconds", "Time to first token.", _LATENCY)
        self._queue = histogram("request_queue_time_seconds", "Time in the queue.", _LATENCY)
        self._whole = histogram("e2e_request_latency_seconds", "Time of a request.", _LATENCY)
        self._inter_token = histogram("inter_token_latency_seconds", "Time between tokens.", _LATENCY)
        self._transfer = histogram("nixl_xfer_time_seconds", "Time of a transfer.", _LATENCY)
        self._bytes = histogram(
            "nixl_bytes_transferred", "Bytes of a transfer.", [2.0**i for i in range(10, 31, 2)]
        )
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generated = histogram("request_generation_tokens", "Generated tokens of a request.", _TOKENS)

    def token(self, rank: int, output: Output) -> None:
        """A token came out."""
        request, labels = output.request, (str(rank), self._model_name)
        now_s = request.last_token_s
        if output.token is None or now_s is None:
            return
        if output.previous_s is None:
            self._first_token.labels(*labels).observe(now_s - request.arrived_s)
            self._queue.labels(*labels).observe((request.scheduled_s or now_s) - request.arrived_s)
        else:
            self._inter_token.labels(*labels).observe(now_s - output.previous_s)
        if request.status.finished:
            self._whole.labels(*labels).observe(now_s - request.arrived_s)
            self._prompt.labels(*labels).observe(request.prompt_length)
            self._generated.labels(*labels).observe(request.generated)

    def transfer(self, rank: int, seconds: float, size: int) -> None:
        """A pull has ended."""
        labels = (str(rank), self._model_name)
        self._transfer.labels(*labels).observe(seconds)
        self._bytes.labels(*labels).observe(size)

    def text(self) -> bytes:
        """The answer of /metrics."""
        return generate_latest(self._registry)
