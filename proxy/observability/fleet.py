"""What is counted of the instances: checks and circuits as they happen, their state when it is scraped."""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvevents import PrefixIndex
from proxy.fleet import Fleet, Status
from proxy.fleet.circuit import Circuit
from proxy.happenings import Checked, CircuitChanged
from proxy.observability.series import counter

FLEET = (
    counter("checks", "Health checks by what they found.", Checked, "finding", per_instance=True),
    counter("circuit_transitions", "Changes of circuits.", CircuitChanged, "to", per_instance=True),
)


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
            (
                "What running legs take of the limits: their tokens, and those that decode legs are "
                "expected to generate."
            ),
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
