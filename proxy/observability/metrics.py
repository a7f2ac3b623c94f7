"""Every series of kvproxy, under one registry an app; labels are bounded.

The tables beside this file say what each counts. A series from elsewhere is added like one of them.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from proxy.happenings import (
    CountsDiffered,
    EngineFull,
    HoldEnded,
    InstanceRemoved,
    LegsDecided,
    PromptUnknown,
    Refused,
    Retried,
    RetryRefused,
)
from proxy.observability.caches import CACHES
from proxy.observability.fleet import FLEET
from proxy.observability.legs import LEGS
from proxy.observability.process import PROCESS
from proxy.observability.requests import REQUESTS
from proxy.observability.series import SECONDS, Series, move
from proxy.observability.snapshots import SNAPSHOTS
from proxy.observability.telling import Happenings
from proxy.phases import Phase
from proxy.serving.custody import HoldState

SERIES = (*REQUESTS, *LEGS, *CACHES, *FLEET, *SNAPSHOTS, *PROCESS)


class Metrics:
    """The series, moved by what happens."""

    def __init__(
        self, registry: CollectorRegistry, happenings: Happenings, known: Callable[[str], bool]
    ) -> None:
        """`known` tells instances that are in the fleet: what ends later at others begins no series anew."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self._registry = registry
        self._happenings = happenings
        self._known = known
        for series in SERIES:
            self.add(series)

    def add(self, series: Series) -> None:
        """Have one more series. Raises ValueError if there is one of that name."""
        move(series, self._registry, self._happenings, self._known)


class LegAccounts:
    """What the director and its legs count."""

    def __init__(
        self, registry: CollectorRegistry, happenings: Happenings, known: Callable[[str], bool]
    ) -> None:
        self._known = known
        self._tell = happenings.tell

        def counter(name: str, help_text: str) -> Counter:
            return Counter(f"kvproxy_{name}", help_text, ["instance"], registry=registry)

        self._prefill_leg = Histogram(
            "kvproxy_prefill_leg_duration_seconds",
            "From sending a prefill leg to its answer.",
            ["instance"],
            buckets=SECONDS,
            registry=registry,
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished prefill legs.")
        self._predicted = counter(
            "predicted_cached_tokens", "Cached tokens the index promised for finished prefill legs."
        )
        self._reported = counter(
            "reported_cached_tokens", "Cached tokens the engine reported for finished prefill legs."
        )
        happenings.listen(InstanceRemoved, self._forget, "legs")

    def _forget(self, removed: InstanceRemoved) -> None:
        for metric in (self._prefill_leg, self._prompt_tokens, self._predicted, self._reported):
            metric.remove_by_labels({"instance": removed.instance})

    def decided(self, seconds: float) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(LegsDecided(seconds))

    def prefill_ended(self, instance: str, seconds: float) -> None:
        """As `serving.ports.Accounts`."""
        if self._known(instance):
            self._prefill_leg.labels(instance).observe(seconds)

    def prefilled(
        self, instance: str, prompt: int | None, predicted: int | None, reported: int | None
    ) -> None:
        """As `serving.ports.Accounts`."""
        if self._known(instance):
            self._prompt_tokens.labels(instance).inc(prompt or 0)
            self._predicted.labels(instance).inc(predicted or 0)
            self._reported.labels(instance).inc(reported or 0)

    def tokens_unknown(self, why: str) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(PromptUnknown(why))

    def tokens_differ(self, instance: str) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(CountsDiffered(instance))

    def retried(self, phase: Phase, instance: str, why: str) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(Retried(phase, instance, why))

    def refused(self, reason: str) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(Refused(reason))

    def retry_refused(self, phase: Phase) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(RetryRefused(phase))

    def engine_full(self, phase: Phase, instance: str) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(EngineFull(phase, instance))

    def hold_ended(self, end: HoldState) -> None:
        """As `serving.ports.Accounts`."""
        self._tell(HoldEnded("", end))
