"""The metrics of kvproxy's own process: connections and tasks."""

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.happenings import ConnectionClosed
from proxy.observability.family import Group, gauge
from proxy.observability.series import counter
from proxy.observability.telling import FAILURES

CLOSED = {"idle": "", "reading": "its request was still coming", "refused": "when it was accepted"}

PROCESS = (
    counter(
        "connections_closed",
        "Client connections closed for want of file descriptors.",
        ConnectionClosed,
        "reason",
        starts_with=CLOSED,
        words={"reason": CLOSED},
        more="[What happens then](failures.md#no-sockets-left).",
    ),
)

CONNECTIONS = gauge(
    "open_connections",
    "Open connections, by who is at the other end.",
    ("peer",),
    words={"peer": {"clients": "", "operators": "on an admin port", "engines": ""}},
)
TASKS = gauge(
    "tasks",
    "Tasks of the event loop, connections' included.",
    more="About two for each engine, connection and leg: it falls with the load.",
)

ON_THE_PAGE = Group("The process", (*(series.family for series in PROCESS), CONNECTIONS, TASKS, FAILURES))


def show_connections(registry: CollectorRegistry, **counts: Callable[[], int]) -> None:
    """Have `open_connections` read `counts` at each scrape; their names are the values of its label."""
    connections = CONNECTIONS.registered_gauge(registry)
    for peer, count in counts.items():
        connections.labels(peer).set_function(count)


class TaskCollector(Collector):
    """Counts the tasks of the event loop at each scrape; a number that only grows shows a leak."""

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks. MUST run on the event loop, as `/metrics` does."""
        tasks = TASKS.gauge()
        tasks.add_metric((), len(asyncio.all_tasks()))
        return [tasks]
