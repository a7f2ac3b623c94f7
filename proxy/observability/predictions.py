"""What predictions came to, for Prometheus: read from the truth meter when it is scraped, so legs pay nothing
for it.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from proxy.caches.accuracy import Accuracy
from proxy.caches.tallies import ERROR_BLOCKS
from proxy.fleet import Fleet


class AccuracyCollector(Collector):
    """What predictions came to, summed over the ranks of each instance at the moment of a scrape."""

    def __init__(self, fleet: Fleet, accuracy: Accuracy) -> None:
        self._fleet = fleet
        self._accuracy = accuracy

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        legs: Counter[tuple[str, ...]] = Counter()
        misses: Counter[tuple[str, ...]] = Counter()
        errors: dict[str, tuple[list[int], int]] = {}
        for instance, counts in self._accuracy.counts():
            if self._fleet.get(instance) is None:
                continue
            for index, tally in counts.tallies.items():
                for outcome, count in tally.by_outcome.items():
                    legs[instance, index, outcome.value] += count
            for cause, count in counts.causes.items():
                misses[instance, cause.value] += count
            before, off_blocks = errors.get(instance, ([0] * len(counts.errors), 0))
            summed = [a + b for a, b in zip(before, counts.errors, strict=True)]
            errors[instance] = summed, off_blocks + counts.tallies["exact"].off_blocks
        return [
            _counters("legs", "Prefill legs", ["instance", "index", "outcome"], legs),
            _counters("misses", "Predictions from an exact index that missed", ["instance", "cause"], misses),
            _error_histogram(errors),
            self._trusted(),
        ]

    def _trusted(self) -> Metric:
        trusted = GaugeMetricFamily(
            "kvproxy_index_trusted", "1 if prompts are placed by it.", labels=["instance", "rank"]
        )
        for instance in self._fleet:
            for rank in instance.ranks:
                trusted.add_metric(
                    [instance.address, str(rank)], self._accuracy.trusted(instance.address, rank)
                )
        return trusted


def _counters(name: str, what: str, labels: list[str], counts: Counter[tuple[str, ...]]) -> Metric:
    family = CounterMetricFamily(
        f"kvproxy_prediction_{name}", f"{what}, compared with what the engine reported.", labels=labels
    )
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family


def _error_histogram(errors: dict[str, tuple[list[int], int]]) -> Metric:
    family = HistogramMetricFamily(
        "kvproxy_prediction_error_blocks",
        "How far predictions from an exact index were off.",
        labels=["instance"],
    )
    for instance, (counts, off_blocks) in errors.items():
        bounds = [*(str(float(bound)) for bound in ERROR_BLOCKS), "+Inf"]
        family.add_metric([instance], list(zip(bounds, accumulate(counts), strict=True)), off_blocks)
    return family
