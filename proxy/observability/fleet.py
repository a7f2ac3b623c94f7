"""The metrics of the instances: checks and circuits are counted as they happen, states read at the scrape."""

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvevents import PrefixIndex
from proxy.fleet import Fleet, Status
from proxy.fleet.circuit import Circuit
from proxy.happenings import Checked, CircuitChanged
from proxy.observability.family import Group, gauge
from proxy.observability.series import counter
from proxy.watching.checks import Finding

FLEET = (
    counter(
        "checks",
        "Health checks by what they found.",
        Checked,
        "finding",
        per_instance=True,
        words={
            "finding": {
                Finding.ANSWERED: "",
                Finding.UNREACHABLE: "no connection came about",
                Finding.UNHEALTHY: "5xx",
                Finding.MISSED: "no answer",
                Finding.BUSY: "no answer, but legs had some",
                Finding.NOTHING: "kvproxy could not ask",
            }
        },
    ),
    counter("circuit_transitions", "Changes of circuits.", CircuitChanged, "to", per_instance=True),
)


OF_INSTANCE = ("instance", "role")

UP = gauge("instance_up", "1 if legs may go there.", OF_INSTANCE)
CIRCUIT = gauge(
    "circuit_state",
    "1 for the state an instance's circuit is in.",
    (*OF_INSTANCE, "state"),
    words={"state": dict.fromkeys(Circuit, "")},
)
REQUESTS = gauge("in_flight_requests", "Running legs.", OF_INSTANCE)
TOKENS = gauge("in_flight_tokens", "Outstanding tokens of running legs.", OF_INSTANCE)
PREFILLS = gauge(
    "in_flight_prefill_tokens",
    "Tokens of the prompts of running legs that are still to be computed.",
    OF_INSTANCE,
    more="They count until the first token, or the answer of the prefill leg.",
)
WEIGHTS = gauge(
    "in_flight_weight_tokens",
    (
        "What running legs take of the limits: their tokens, and those that decode legs are "
        "expected to generate."
    ),
    OF_INSTANCE,
    more="The limits are `--max-prefill-tokens` and `--max-decode-tokens`.",
)
INDEX_STATES = ("exact", "partial", "unknown")
INDEX_STATE = gauge(
    "index_state",
    "1 for how well the cache of a rank is known.",
    ("instance", "rank", "state"),
    words={"state": dict.fromkeys(INDEX_STATES, "")},
)
BLOCKS = gauge("index_blocks", "Blocks known to be cached.", ("instance", "rank", "tier"))

ON_THE_PAGE = Group(
    "Instances",
    (
        *(series.family for series in FLEET),
        UP,
        CIRCUIT,
        REQUESTS,
        TOKENS,
        PREFILLS,
        WEIGHTS,
        INDEX_STATE,
        BLOCKS,
    ),
)


class FleetCollector(Collector):
    """Reads the states of the instances at each scrape."""

    def __init__(self, fleet: Fleet, index: PrefixIndex) -> None:
        self._fleet = fleet
        self._index = index

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        up, circuits, states, blocks = UP.gauge(), CIRCUIT.gauge(), INDEX_STATE.gauge(), BLOCKS.gauge()
        requests, tokens, weights = REQUESTS.gauge(), TOKENS.gauge(), WEIGHTS.gauge()
        prefills = PREFILLS.gauge()
        for instance in self._fleet:
            labels = [instance.address, instance.role.value]
            up.add_metric(labels, instance.status is Status.UP)
            for circuit in Circuit:
                circuits.add_metric([*labels, circuit.value], instance.breaker.state is circuit)
            requests.add_metric(labels, instance.running_legs())
            tokens.add_metric(labels, instance.running_tokens())
            prefills.add_metric(labels, instance.running_prefill_tokens())
            weights.add_metric(labels, instance.running_weight_tokens())
            for rank in instance.ranks:
                for state in INDEX_STATES:
                    states.add_metric(
                        [instance.address, str(rank), state], instance.index_state(rank) == state
                    )
        for slot, count in self._index.blocks().items():
            if self._fleet.get(slot.instance) is None:
                continue  # the instance was removed, and its blocks are being forgotten
            blocks.add_metric([slot.instance, str(slot.rank), slot.tier], count)
        return [up, circuits, requests, tokens, prefills, weights, states, blocks]
