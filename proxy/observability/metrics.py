"""Everything kvproxy counts, under one registry an app: labels are bounded.

`Metrics` implements the observers that the event library and the director report to. What is a state rather
than a count (load, index) is read from the fleet when it is scraped.
"""

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvevents import NullObserver, PrefixIndex, Reason
from proxy.config import WhenNoPrefill
from proxy.fleet import Fleet, Status
from proxy.fleet.circuit import Circuit
from proxy.phases import Phase
from proxy.serving.custody import HoldState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


REFUSALS = (
    "queue_full",
    "shed",
    "queue_timeout",
    "client_limit",
    "engines_full",
    "no_engine",
    "no_prefill",
    "no_memory",
    "no_descriptors",
    "stopping",
)
"""Why requests are not let in; each series is there from the start, so that its first increase is seen."""


RESTORES = ("restored", "new_process", "gap", "unverified", "rebuild")
"""What becomes of a snapshot: it is proven, or forgotten for one of these reasons."""


class Metrics(NullObserver):
    """The counters and histograms, and the methods by which the rest of kvproxy moves them."""

    def __init__(self, registry: CollectorRegistry, known: Callable[[str], bool]) -> None:
        """`known` tells instances that are in the fleet: what ends later at others begins no series anew."""
        self._known = known
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"kvproxy_{name}", help_text, labels, registry=registry)

        def histogram(
            name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"kvproxy_{name}", help_text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests by how they ended.", "route", "outcome")
        self._duration = histogram(
            "request_duration_seconds", "From a request's arrival to its last byte.", "route"
        )
        self._first_byte = histogram(
            "time_to_first_byte_seconds",
            "From a request's arrival to the first byte for the client.",
            "route",
        )
        self._overhead = histogram(
            "overhead_seconds",
            "kvproxy's own time before the first leg, tokenizing included.",
            buckets=_OVERHEAD_SECONDS,
        )
        self._prefill_leg = histogram(
            "prefill_leg_duration_seconds", "From sending a prefill leg to its answer.", "instance"
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished prefill legs.", "instance")
        self._predicted = counter(
            "predicted_cached_tokens",
            "Cached tokens the index promised for finished prefill legs.",
            "instance",
        )
        self._reported = counter(
            "reported_cached_tokens",
            "Cached tokens the engine reported for finished prefill legs.",
            "instance",
        )
        self._tokenized = counter("tokenized_prompts", "Prompts whose tokens are known, by who told.", "by")
        self._unknown = counter("unknown_prompts", "Prompts placed without knowing their tokens.", "reason")
        self._differ = counter(
            "token_count_differences", "Prompts the engine counted otherwise than we did.", "instance"
        )
        self._retries = counter(
            "retries", "Legs that failed and were followed by another attempt.", "phase", "instance", "reason"
        )
        self._retries_refused = counter(
            "retries_refused", "Legs that failed and were not tried again for want of retry budget.", "phase"
        )
        self._full = counter("engine_full", "Legs that engines had no room for.", "instance", "phase")
        self._holds = counter("holds", "Prefilled blocks held for a decode leg, by how that ended.", "end")
        self._events = counter("kv_events", "KV events applied.", "instance", "type")
        self._gaps = counter("kv_event_gaps", "Gaps in an engine's event numbers.", "instance")
        self._replays = counter("kv_event_replays", "Replays asked of an engine.", "instance")
        self._dropped = counter(
            "kv_events_dropped", "KV events that could not be used.", "instance", "reason"
        )
        self._waits = histogram("queue_wait_seconds", "Time in the queue of requests that had to wait.")
        self._refusals = counter("refused_requests", "Requests that were not let in.", "reason")
        self._no_prefill = counter(
            "no_prefill", "Requests that met no usable prefill instance, by what was done.", "action"
        )
        self._stalled = counter("stalled_clients", "Clients cut because they took nothing of their answer.")
        self._closed = counter(
            "connections_closed", "Client connections closed for want of file descriptors.", "reason"
        )
        self._connections = Gauge(
            "kvproxy_open_connections",
            "Open connections, by who is at the other end.",
            ["peer"],
            registry=registry,
        )
        self._queued = Gauge("kvproxy_queued_requests", "Requests that wait.", registry=registry)
        self._held_back = Gauge(
            "kvproxy_clients_held_back",
            "Clients with as many requests running as one may have.",
            registry=registry,
        )
        self._body_bytes = Gauge(
            "kvproxy_body_bytes", "Memory held by request bodies, estimated.", registry=registry
        )

        self._snapshots = counter(
            "snapshots", "Snapshots of ranks by how writing or reading them ended.", "outcome"
        )
        self._snapshot_seconds = histogram(
            "snapshot_duration_seconds", "From copying a rank to the end of writing it to disk."
        )
        self._restores = counter(
            "snapshot_restores", "Ranks a snapshot was loaded for, by what became of it.", "outcome"
        )
        self._checks = counter("checks", "Health checks by what they found.", "instance", "finding")
        self._transitions = counter("circuit_transitions", "Changes of circuits.", "instance", "to")
        self._reports = counter(
            "cache_reports", "Prefill legs that asked for a full report of the cache.", "instance"
        )
        self._learnt = counter("learnt_blocks", "Blocks that full reports made known.", "instance")
        self._by_instance = [
            self._reports, self._learnt, self._full,
            self._prefill_leg, self._prompt_tokens, self._predicted, self._reported, self._differ, self._retries,
            self._events, self._gaps, self._replays, self._dropped, self._checks, self._transitions,
        ]  # fmt: skip
        for end in (HoldState.PULLED, HoldState.RELEASED, HoldState.STRANDED, HoldState.UNKNOWN):
            self._holds.labels(end.value)
        for outcome in ("written", "failed", "broken"):
            self._snapshots.labels(outcome)
        for outcome in RESTORES:
            self._restores.labels(outcome)
        for phase in Phase:
            self._retries_refused.labels(phase.value)
        for reason in ("idle", "reading", "refused"):
            self._closed.labels(reason)
        for reason in REFUSALS:
            self._refusals.labels(reason)
        for action in WhenNoPrefill:
            self._no_prefill.labels(action.value)

    def _count(self, counter: Counter, instance: str, amount: float = 1, /, **labels: str) -> None:
        if self._known(instance):
            # By position, where there is no other label, is done in half the time.
            (counter.labels(instance=instance, **labels) if labels else counter.labels(instance)).inc(amount)

    # -- requests -----------------------------------------------------------------------------------------

    def request_ended(self, route: str, outcome: str, seconds: float) -> None:
        """A request of a generating route is over."""
        self._requests.labels(route, outcome).inc()
        self._duration.labels(route).observe(seconds)

    def request_refused(self, outcome: str) -> None:
        """A request ended before, or without, a generating route: a wrong path or key, say."""
        self._requests.labels("other", outcome).inc()

    def first_byte(self, route: str, seconds: float) -> None:
        """A successful answer begins."""
        self._first_byte.labels(route).observe(seconds)

    # -- the director's accounts --------------------------------------------------------------------------

    def decided(self, seconds: float) -> None:
        """As `serving.ports.Accounts`."""
        self._overhead.observe(seconds)

    def prefill_ended(self, instance: str, seconds: float) -> None:
        """As `serving.ports.Accounts`."""
        if self._known(instance):
            self._prefill_leg.labels(instance).observe(seconds)

    def prefilled(
        self, instance: str, prompt: int | None, predicted: int | None, reported: int | None
    ) -> None:
        """As `serving.ports.Accounts`."""
        self._count(self._prompt_tokens, instance, prompt or 0)
        self._count(self._predicted, instance, predicted or 0)
        self._count(self._reported, instance, reported or 0)

    def tokenized(self, by: str) -> None:
        """As `tokenizing.PromptTokenizer` counts: a prompt's tokens were found."""
        self._tokenized.labels(by).inc()

    def tokens_unknown(self, why: str) -> None:
        """As `serving.ports.Accounts`."""
        self._unknown.labels(why).inc()

    def tokens_differ(self, instance: str) -> None:
        """As `serving.ports.Accounts`."""
        self._count(self._differ, instance)

    def retried(self, phase: Phase, instance: str, why: str) -> None:
        """As `serving.ports.Accounts`."""
        self._count(self._retries, instance, phase=phase.value, reason=why)

    def retry_refused(self, phase: Phase) -> None:
        """As `serving.ports.Accounts`."""
        self._retries_refused.labels(phase.value).inc()

    def engine_full(self, phase: Phase, instance: str) -> None:
        """As `serving.ports.Accounts`."""
        self._count(self._full, instance, phase=phase.value)

    def hold_ended(self, end: HoldState) -> None:
        """As `serving.ports.Accounts`."""
        self._holds.labels(end.value).inc()

    # -- overload -----------------------------------------------------------------------------------------

    def waited(self, seconds: float) -> None:
        """As `admission.QueueAccounts`."""
        self._waits.observe(seconds)

    def refused(self, reason: str) -> None:
        """As `admission.QueueAccounts`, and `no_memory` and `no_descriptors`."""
        self._refusals.labels(reason).inc()

    def no_prefill(self, action: str) -> None:
        """As `admission.QueueAccounts`."""
        self._no_prefill.labels(action).inc()

    def client_stalled(self) -> None:
        """A client took nothing of its answer for too long."""
        self._stalled.inc()

    def connection_closed(self, reason: str) -> None:
        """As `descriptors.Accounts`."""
        self._closed.labels(reason).inc()

    def show_connections(self, **counts: Callable[[], int]) -> None:
        """Read these at every scrape, each under its peers' name."""
        for peer, count in counts.items():
            self._connections.labels(peer).set_function(count)

    def show(
        self,
        *,
        queued: Callable[[], int],
        held_back: Callable[[], int],
        body_bytes: Callable[[], int],
    ) -> None:
        """Read these at every scrape."""
        self._queued.set_function(queued)
        self._held_back.set_function(held_back)
        self._body_bytes.set_function(body_bytes)

    # -- the watch's accounts -----------------------------------------------------------------------------

    def checked(self, instance: str, finding: str) -> None:
        """As `watching.health.Accounts`."""
        self._count(self._checks, instance, finding=finding)

    def circuit_changed(self, instance: str, state: str) -> None:
        """As `watching.health.Accounts`."""
        self._count(self._transitions, instance, to=state)

    def forget(self, instance: str) -> None:
        """As `watching.health.Accounts`: its series end."""
        for metric in self._by_instance:
            metric.remove_by_labels({"instance": instance})

    # -- the state keeper's accounts ----------------------------------------------------------------------

    def snapshot_written(self, seconds: float) -> None:
        """As `snapshots.keeper.Accounts`."""
        self._snapshots.labels("written").inc()
        self._snapshot_seconds.observe(seconds)

    def snapshot_failed(self) -> None:
        """As `snapshots.keeper.Accounts`."""
        self._snapshots.labels("failed").inc()

    def snapshot_broken(self) -> None:
        """As `snapshots.keeper.Accounts`."""
        self._snapshots.labels("broken").inc()

    def report_asked(self, instance: str) -> None:
        """As `serving.healing.Accounts`."""
        self._count(self._reports, instance)

    def blocks_learnt(self, instance: str, blocks: int) -> None:
        """As `serving.healing.Accounts`."""
        self._count(self._learnt, instance, blocks)

    # -- the event library's observer ---------------------------------------------------------------------

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:  # noqa: ARG002
        """As `kvevents.Observer`."""
        self._count(self._events, instance, type=event_type)

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:  # noqa: ARG002
        """As `kvevents.Observer`."""
        self._count(self._dropped, instance, count, reason=reason)

    def gap(self, *, instance: str, rank: int, missing: int) -> None:  # noqa: ARG002
        """As `kvevents.Observer`."""
        self._count(self._gaps, instance)

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:  # noqa: ARG002
        """As `kvevents.Observer`."""
        self._count(self._replays, instance)

    def resumed(self, *, instance: str, rank: int, why: str | None) -> None:  # noqa: ARG002
        """As `kvevents.Observer`."""
        self._restores.labels(why or "restored").inc()


class TaskCollector(Collector):
    """How many tasks the event loop has, counted at the moment of a scrape: a number that only grows is a
    leak.
    """

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks; within the loop, as `/metrics` is answered there."""
        count = len(asyncio.all_tasks())
        return [GaugeMetricFamily("kvproxy_tasks", "Tasks of the event loop, connections' included.", count)]


class FleetCollector(Collector):
    """States, read at the moment of a scrape."""

    def __init__(self, fleet: Fleet, index: PrefixIndex) -> None:
        self._fleet = fleet
        self._index = index

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        up = GaugeMetricFamily("kvproxy_instance_up", "1 if legs may go there.", labels=["instance", "role"])
        circuits = GaugeMetricFamily(
            "kvproxy_circuit_state",
            "1 for the state an instance's circuit is in.",
            labels=["instance", "role", "state"],
        )
        requests = GaugeMetricFamily(
            "kvproxy_in_flight_requests", "Running legs.", labels=["instance", "role"]
        )
        tokens = GaugeMetricFamily(
            "kvproxy_in_flight_tokens", "Outstanding tokens of running legs.", labels=["instance", "role"]
        )
        weights = GaugeMetricFamily(
            "kvproxy_in_flight_weight_tokens",
            "What running legs take of the limits: their tokens, and those that decode legs are expected to generate.",
            labels=["instance", "role"],
        )
        states = GaugeMetricFamily(
            "kvproxy_index_state",
            "1 for how well the cache of a rank is known.",
            labels=["instance", "rank", "state"],
        )
        blocks = GaugeMetricFamily(
            "kvproxy_index_blocks", "Blocks known to be cached.", labels=["instance", "rank", "tier"]
        )
        for instance in self._fleet:
            labels = [instance.address, instance.role.value]
            up.add_metric(labels, instance.status is Status.UP)
            for circuit in Circuit:
                circuits.add_metric([*labels, circuit.value], instance.breaker.state is circuit)
            requests.add_metric(labels, instance.running_legs())
            tokens.add_metric(labels, instance.running_tokens())
            weights.add_metric(labels, instance.running_weight_tokens())
            for rank in instance.ranks:
                for state in ("exact", "partial", "unknown"):
                    states.add_metric(
                        [instance.address, str(rank), state], instance.index_state(rank) == state
                    )
        for slot, count in self._index.blocks().items():
            if self._fleet.get(slot.instance) is None:
                continue  # it was removed, and is being forgotten
            blocks.add_metric([slot.instance, str(slot.rank), slot.tier], count)
        return [up, circuits, requests, tokens, weights, states, blocks]
