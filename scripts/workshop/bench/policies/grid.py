"""Which runs there are, by section. What is compared has equal words but for the policy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from scripts.workshop.bench.policies.ablation import OURS, WITHOUT
from scripts.workshop.bench.policies.cells import Asked
from scripts.workshop.bench.policies.reference import APART, REPLAY
from scripts.workshop.bench.policies.traffics import AGENTS, GENERATED, RECORDED

BASELINES = (
    "dynamo",
    "llmd",
    "approx_prefix",
    "cache_affinity",
    "session",
    "least_load",
    "round_robin",
    "power_of_two",
    "random",
)
LOADS: Sequence[tuple[str, float]] = (
    ("8b", 1.0),
    ("8b", 3.0),
    ("8b", 6.0),
    ("4p4d", 1.0),
    ("4p4d", 3.0),
    ("4p4d", 5.0),
    ("6p2d", 1.0),
    ("6p2d", 3.0),
)
"""Fleets and speeds for the recorded trace."""
FLEETS = ("8b", "4p4d")
SPEED = 3.0
"""Of the recorded trace where something else is varied."""
DELAYS_S = (0.0, 0.2, 1.0)
SLOWER = {"8b": ("b0:1",), "4p4d": ("p0:1", "d0:1")}
UNKNOWN = 1 / 3
AGENTS_SPEED = {"8b": 1.0, "4p4d": 0.7}


class Size(NamedTuple):
    """How much is run."""

    policies: Sequence[str]
    seeds: int
    short: bool
    """Whether only the first minutes of the recorded trace are run."""


def _conversation(size: Size) -> Iterator[Asked]:
    name = f"{RECORDED}.short" if size.short else RECORDED
    for fleet, speed in LOADS:
        for policy in size.policies:
            yield Asked(name, fleet, policy, speed)


def _truth(size: Size) -> Iterator[Asked]:  # noqa: ARG001  # the figures of others are for the whole trace
    for fleet, speed, policy in {**REPLAY, **APART}:
        yield Asked(RECORDED, fleet, policy, speed)


def _robust(size: Size) -> Iterator[Asked]:
    for fleet in FLEETS:
        usual = Asked(f"{RECORDED}.short", fleet, "", SPEED)
        replaced = msgspec.structs.replace
        places = [replaced(usual, event_delay_s=delay_s) for delay_s in DELAYS_S]
        places.append(replaced(usual, unknown_share=UNKNOWN))
        places.append(replaced(usual, slow=SLOWER[fleet]))
        places.append(replaced(usual, traffic=f"{usual.traffic}.spread"))
        for place in places:
            for policy in size.policies:
                yield replaced(place, policy=policy)


def _generated(size: Size) -> Iterator[Asked]:
    for seed in range(size.seeds):
        for name in GENERATED:
            for fleet in FLEETS:
                for policy in size.policies:
                    yield Asked(name, fleet, policy, seed=seed)


def _agents(size: Size) -> Iterator[Asked]:
    for seed in range(size.seeds):
        for name in AGENTS:
            for fleet in FLEETS:
                for policy in size.policies:
                    yield Asked(name, fleet, policy, AGENTS_SPEED[fleet], seed=seed)


def _ablation(size: Size) -> Iterator[Asked]:
    for policy in (OURS, *WITHOUT):
        for fleet, speed in (("8b", 3.0), ("8b", 6.0), ("4p4d", 3.0), ("4p4d", 5.0)):
            yield Asked(f"{RECORDED}.short", fleet, policy, speed)
        for name in ("chats", "documents", "agents"):
            for fleet in FLEETS:
                for seed in range(size.seeds):
                    speed = AGENTS_SPEED[fleet] if name in AGENTS else 1.0
                    yield Asked(name, fleet, policy, speed, seed=seed)


SECTIONS: Mapping[str, Callable[[Size], Iterator[Asked]]] = {
    "truth": _truth,
    "conversation": _conversation,
    "generated": _generated,
    "robust": _robust,
    "agents": _agents,
    "ablation": _ablation,
}
