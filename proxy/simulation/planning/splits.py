"""A split gives every GPU one role: X that prefill beside Y that decode, or all that do both."""

from collections.abc import Sequence
from enum import StrEnum

from proxy.errors import ConfigError
from proxy.simulation.replay.fleets import MAX_INSTANCES

FEW = 9
"""So many splits of X and Y are all tried; of more at first so many, and then those around the best."""


class Both(StrEnum):
    """Whether instances that do both are tried."""

    NONE = "none"
    ALL = "all"
    SOME = "some"
    """Also beside those of one role."""


def instances_of(gpus: int, gpus_per_instance: int) -> int:
    """How many instances so many GPUs make. Raises ConfigError if some would be left over, or all."""
    if gpus % gpus_per_instance:
        words = f"no multiple of --gpus-per-instance {gpus_per_instance}"
        raise ConfigError(f"--gpus {gpus}: {words}")
    count = gpus // gpus_per_instance
    if count > MAX_INSTANCES:
        raise ConfigError(f"--gpus {gpus}: at most {MAX_INSTANCES} instances can be simulated")
    return count


def whole(instances: int) -> str:
    """The fleet in which all do both."""
    return f"{instances}b"


def parted(instances: int) -> list[str]:
    """All splits into prefill and decode, by the number that prefill."""
    return [f"{x}p{instances - x}d" for x in range(1, instances)]


def mixed(instances: int) -> list[str]:
    """All splits into prefill, decode and some that do both, the fewest that do both first."""
    return [
        f"{x}p{instances - both - x}d{both}b"
        for both in range(1, instances - 1)
        for x in range(1, instances - both)
    ]


def first_of(splits: Sequence[str]) -> list[int]:
    """The places of the splits that are tried first: all of few, else some at equal distances."""
    if len(splits) <= FEW:
        return [*range(len(splits))]
    return sorted({round(step * (len(splits) - 1) / (FEW - 1)) for step in range(FEW)})


def next_of(tried: Sequence[int], best: int) -> list[int]:
    """The places to be tried next, between the best of those that were tried and its neighbours."""
    places = sorted(tried)
    at = places.index(best)
    around = [places[at - 1]] if at else []
    around += [places[at + 1]] if at + 1 < len(places) else []
    return sorted(
        {(best + other) // 2 if other < best else (best + other + 1) // 2 for other in around} - {*tried}
    )
