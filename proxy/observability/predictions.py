"""The metrics of predictions are read from the truth meter at each scrape; legs pay nothing for them."""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.caches.accuracy import Accuracy
from proxy.caches.tallies import ERROR_BLOCKS, Cause, Outcome
from proxy.fleet import Fleet
from proxy.observability.family import Family, Group, counted, distribution, gauge

LEGS = counted(
    "prediction_legs",
    "Prefill legs, compared with what the engine reported.",
    ("instance", "index", "outcome"),
    words={
        "index": {
            "exact": "all the engine has cached is known",
            "partial": "some of it",
            "unknown": "nothing was promised",
        },
        "outcome": {
            Outcome.EXACT: "",
            Outcome.OVER: "the index promised more than the engine found",
            Outcome.UNDER: "less",
            Outcome.UNREPORTED: "the engine did not say",
        },
    },
    more="`index` is what it was worth when the leg was decided.",
)
MISSES = counted(
    "prediction_misses",
    "Predictions from an exact index that missed, compared with what the engine reported.",
    ("instance", "cause"),
    words={
        "cause": {
            Cause.TOKENS: "the engine's prompt was another than kvproxy's",
            Cause.RACE: "the cache changed between decision and arrival, or its events were on their way",
            Cause.UPPER_BOUND: "the engine does not reuse all it has cached",
            Cause.INDEX: "nothing else explains it: the index was wrong",
        }
    },
    more="Counted about 2 s after the leg; [what to do](failures.md#when-predictions-are-wrong).",
)
ERRORS = distribution(
    "prediction_error_blocks", "How far predictions from an exact index were off.", ("instance",)
)
TRUSTED = gauge(
    "index_trusted",
    "1 if prompts are placed by it.",
    ("instance", "rank"),
    more="0 after it promised too much a few times, until it is built anew.",
)

ON_THE_PAGE = Group(
    "How right the index is",
    (LEGS, MISSES, ERRORS, TRUSTED),
    "What the index promised of a prompt, compared with what the engine reported as cached.",
)


class AccuracyCollector(Collector):
    """Reads how right predictions were at each scrape, summed over the ranks of each instance."""

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
            _counters(LEGS, legs),
            _counters(MISSES, misses),
            _error_histogram(errors),
            self._trusted(),
        ]

    def _trusted(self) -> Metric:
        trusted = TRUSTED.gauge()
        for instance in self._fleet:
            for rank in instance.ranks:
                trusted.add_metric(
                    [instance.address, str(rank)], self._accuracy.trusted(instance.address, rank)
                )
        return trusted


def _counters(of: Family, counts: Counter[tuple[str, ...]]) -> Metric:
    family = of.counter()
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family


def _error_histogram(errors: dict[str, tuple[list[int], int]]) -> Metric:
    family = ERRORS.histogram()
    for instance, (counts, off_blocks) in errors.items():
        bounds = [*(str(float(bound)) for bound in ERROR_BLOCKS), "+Inf"]
        family.add_metric([instance], list(zip(bounds, accumulate(counts), strict=True)), off_blocks)
    return family
