"""What is counted of kvproxy's own process: connections and tasks."""

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.happenings import ConnectionClosed
from proxy.observability.series import counter

PROCESS = (
    counter(
        "connections_closed",
        "Client connections closed for want of file descriptors.",
        ConnectionClosed,
        "reason",
        starts_with=("idle", "reading", "refused"),
    ),
)


def show_connections(registry: CollectorRegistry, **counts: Callable[[], int]) -> None:
    """Read these at every scrape, each under its peers' name."""
    gauge = Gauge(
        "kvproxy_open_connections",
        "Open connections, by who is at the other end.",
        ["peer"],
        registry=registry,
    )
    for peer, count in counts.items():
        gauge.labels(peer).set_function(count)


class TaskCollector(Collector):
    """How many tasks the event loop has, counted at the moment of a scrape: a number that only grows is a
    leak.
    """

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks; within the loop, as `/metrics` is answered there."""
        count = len(asyncio.all_tasks())
        return [GaugeMetricFamily("kvproxy_tasks", "Tasks of the event loop, connections' included.", count)]
