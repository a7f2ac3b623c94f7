"""The metrics of how long engines take are read from what was learned at each scrape; legs pay nothing."""

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.fleet import Fleet
from proxy.latency.model import LatencyModel
from proxy.observability.family import Group, counted, gauge

OF_POOL = ("kind", "role")
KINDS = {
    "prefill": "a prompt",
    "step": "a decode step",
    "transfer": "fetching a prompt's KV; the role is that of the instance that fetches",
}

OBSERVATIONS = counted(
    "latency_observations",
    "Times that engines took, from which it was learned how long they take.",
    OF_POOL,
    words={"kind": KINDS},
    more="With `--state-dir`, those of earlier processes are among them.",
)
COEFFICIENT = gauge(
    "latency_coefficient_ms",
    "What most instances of a role take, in milliseconds or milliseconds a token.",
    (*OF_POOL, "coefficient"),
    words={"kind": KINDS},
    more="[What they mean](latency.md).",
)
ERROR = gauge(
    "latency_error",
    "How far the last 512 predictions were off, as a share of what was observed.",
    (*OF_POOL, "quantile"),
    words={"kind": KINDS, "quantile": {"0.5": "half were not further off", "0.9": "nine tenths"}},
    more="Of single times, which are as noisy as the engine is.",
)
FACTOR = gauge(
    "latency_factor",
    "How many times as long as most of its role an instance takes.",
    ("kind", "instance"),
    words={"kind": {name: text for name, text in KINDS.items() if name != "transfer"}},
)
FOREIGN = gauge(
    "foreign_requests",
    "Requests of others that ran or waited on an instance when its gauges were read last.",
    ("instance",),
    more="`--scrape-s` is how often they are.",
)

ON_THE_PAGE = Group(
    "How long engines take",
    (OBSERVATIONS, COEFFICIENT, ERROR, FACTOR, FOREIGN),
    "Only for policies that read it, as `least_ms` does.",
)


class LatencyCollector(Collector):
    """Reads what was learned at each scrape."""

    def __init__(self, fleet: Fleet, model: LatencyModel) -> None:
        self._fleet = fleet
        self._model = model

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        observations, coefficients = OBSERVATIONS.counter(), COEFFICIENT.gauge()
        errors, factors, foreign = ERROR.gauge(), FACTOR.gauge(), FOREIGN.gauge()
        for each in self._model.fitted():
            labels = [each.kind, each.role]
            observations.add_metric(labels, each.observations)
            for name, value in each.coefficients.items():
                coefficients.add_metric([*labels, name], value)
            for quantile, error in (("0.5", each.error_p50), ("0.9", each.error_p90)):
                if error is not None:
                    errors.add_metric([*labels, quantile], error)
            if each.kind != "transfer":
                for instance, factor in each.factors.items():
                    factors.add_metric([each.kind, instance], factor)
        for known in self._fleet:
            if known.gauges is not None:
                foreign.add_metric([known.address], known.gauges.foreign)
        return [observations, coefficients, errors, factors, foreign]
