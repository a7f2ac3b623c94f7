"""The highest load that meets the goals is found by few runs, on the assumption that less load never does
worse: it is stepped up or down to a pair of loads of which one meets them, and the pair is halved.
"""

import math
from collections.abc import Callable

import msgspec

STEP = 1.5
"""Between two loads until one meets the goals and the other does not."""
PRECISION = 1.06
"""How far the two loads may lie apart in the end."""
LOWEST, HIGHEST = 0.02, 1000.0
"""Multiples of the recorded load beyond which nobody plans."""


class Bracket(msgspec.Struct, frozen=True):
    """What is known of a limit."""

    meets: float | None
    """The highest load that met the goals; None if none did."""
    misses: float | None
    """The lowest that did not, above it; None if none did not."""


def search(
    meets: Callable[[float], bool],
    guess: float,
    *,
    step: float = STEP,
    precision: float = PRECISION,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
) -> Bracket:
    """Try loads, `guess` first, until the limit is known. `meets`: makes a run.

    Where the second load misses the goals as well, the lowest is tried next: no load may meet them.
    """
    low: float | None = None
    high: float | None = None
    hopeful = False
    load = min(max(guess, lowest), highest)
    while low is None or high is None:
        if meets(load):
            low = load
            if load >= highest or high is not None:
                break
            load = min(load * step, highest)
        else:
            again, high = high is not None, load
            if load <= lowest or low is not None:
                break
            if again and not hopeful:
                if not meets(lowest):
                    return Bracket(None, lowest)
                hopeful = True
            load = max(load / step, lowest)
            if hopeful and load <= lowest:
                low = lowest
    while low is not None and high is not None and high / low > precision:
        load = round_load(math.sqrt(low * high))
        if not low < load < high:
            break
        if meets(load):
            low = load
        else:
            high = load
    return Bracket(low, high)


def round_load(load: float) -> float:
    """The load with three digits, which can be given to `--speed`."""
    return float(f"{load:.3g}")


def most_runs(step: float = STEP, precision: float = PRECISION) -> int:
    """How many runs a search takes if its guess is no more than a step off."""
    return 2 + math.ceil(math.log2(math.log(step) / math.log(precision)))
