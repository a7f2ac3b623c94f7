"""What is counted of snapshots; how old and how large they are is read at the moment of a scrape."""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.happenings import SnapshotEnded, SnapshotProven
from proxy.observability.series import counter, histogram
from proxy.snapshots.keeper import StateKeeper

RESTORES = ("restored", "new_process", "gap", "unverified", "rebuild")
"""What becomes of a snapshot: it is proven, or forgotten for one of these reasons."""

SNAPSHOTS = (
    counter(
        "snapshots",
        "Snapshots of ranks by how writing or reading them ended.",
        SnapshotEnded,
        "outcome",
        starts_with=("written", "failed", "broken"),
    ),
    histogram(
        "snapshot_duration_seconds",
        "From copying a rank to the end of writing it to disk.",
        SnapshotEnded,
    ),
    counter(
        "snapshot_restores",
        "Ranks a snapshot was loaded for, by what became of it.",
        SnapshotProven,
        "outcome",
        starts_with=RESTORES,
    ),
)


class StateCollector(Collector):
    """The snapshots as metrics."""

    def __init__(self, keeper: StateKeeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        labels = ["instance", "rank"]
        ages = GaugeMetricFamily(
            "kvproxy_snapshot_age_seconds",
            "How long ago the snapshot on disk was all that is known of the rank.",
            labels=labels,
        )
        sizes = GaugeMetricFamily(
            "kvproxy_snapshot_bytes", "What the snapshot of the rank takes on disk.", labels=labels
        )
        for family, values in ((ages, self._keeper.ages_s()), (sizes, self._keeper.sizes_bytes())):
            for (instance, rank), value in values.items():
                family.add_metric([instance, str(rank)], value)
        return [ages, sizes]
