"""All series of kvproxy are in one registry an app, and their labels are bounded.

The tables beside this file declare them. A series from elsewhere is added like one of these.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, disable_created_metrics

from proxy.observability import (
    caches,
    decision_log,
    fleet,
    latency,
    legs,
    predictions,
    process,
    recorder,
    requests,
    snapshots,
)
from proxy.observability.caches import CACHES
from proxy.observability.counting import move
from proxy.observability.decision_log import LOGGED
from proxy.observability.fleet import FLEET
from proxy.observability.legs import LEGS
from proxy.observability.process import PROCESS
from proxy.observability.recorder import RECORDING
from proxy.observability.requests import REQUESTS
from proxy.observability.series import Series
from proxy.observability.snapshots import SNAPSHOTS
from proxy.observability.telling import Happenings

SERIES = (*REQUESTS, *LEGS, *CACHES, *FLEET, *SNAPSHOTS, *PROCESS, *RECORDING, *LOGGED)
"""All series that happenings move."""

GROUPS = tuple(
    part.ON_THE_PAGE
    for part in (
        requests,
        legs,
        predictions,
        latency,
        fleet,
        caches,
        snapshots,
        recorder,
        decision_log,
        process,
    )
)
"""All metrics, those that are read at the scrape included, in the order of docs/metrics.md."""


class Metrics:
    """The registered series, which happenings move."""

    def __init__(
        self, registry: CollectorRegistry, happenings: Happenings, known: Callable[[str], bool]
    ) -> None:
        """`known`: whether an instance is in the fleet; happenings of others move no line of theirs."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self._registry = registry
        self._happenings = happenings
        self._known = known
        for series in SERIES:
            self.add(series)

    def add(self, series: Series) -> None:
        """Add a series. Raises ValueError if its name is taken."""
        move(series, self._registry, self._happenings, self._known)
