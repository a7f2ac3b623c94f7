"""The metrics of snapshots: their ends are counted, their age and size read at the scrape."""

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvevents import RetireReason
from proxy.happenings import SnapshotEnded, SnapshotProven
from proxy.observability.family import Group, gauge
from proxy.observability.series import counter, histogram
from proxy.snapshots.keeper import StateKeeper

RESTORES = {
    "restored": "found to be true",
    RetireReason.NEW_PROCESS: "the engine restarted",
    RetireReason.GAP: "its replay buffer does not reach back",
    RetireReason.UNVERIFIED: "its replay did not answer",
    RetireReason.REBUILD: "found to be wrong",
}
"""What becomes of a snapshot that was loaded: it is proven true, or forgotten for one of these reasons."""

WRITTEN = {"written": "", "failed": "not written", "broken": "not read, and set aside"}

SNAPSHOTS = (
    counter(
        "snapshots",
        "Snapshots of ranks by how writing or reading them ended.",
        SnapshotEnded,
        "outcome",
        starts_with=WRITTEN,
        words={"outcome": WRITTEN},
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
        words={"outcome": RESTORES},
    ),
)

AGE = gauge(
    "snapshot_age_seconds",
    "How long ago the snapshot on disk was all that is known of the rank.",
    ("instance", "rank"),
    more="Above a few `--state-interval` look at `failed` in `/status`.",
)
SIZE = gauge("snapshot_bytes", "What the snapshot of the rank takes on disk.", ("instance", "rank"))

ON_THE_PAGE = Group(
    "Snapshots",
    (*(series.family for series in SNAPSHOTS), AGE, SIZE),
    "With [`--state-dir`](operating.md#kvproxy-restarts).",
)


class StateCollector(Collector):
    """Reads the age and size of the snapshots at each scrape."""

    def __init__(self, keeper: StateKeeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        ages, sizes = AGE.gauge(), SIZE.gauge()
        for family, values in ((ages, self._keeper.ages_s()), (sizes, self._keeper.sizes_bytes())):
            for (instance, rank), value in values.items():
                family.add_metric([instance, str(rank)], value)
        return [ages, sizes]
