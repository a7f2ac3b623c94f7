"""What must hold between the two worlds. Pure: a check takes figures and returns what is wrong.

There is no one figure for what depends on milliseconds and on what is drawn at random: what is simulated is a
range, from the least to the most that seeds give, and a live figure is to be within the tolerance of it.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.proofs.live.clients import Seen, served
from tests.proofs.live.simulated import Simulated

SERVED = "every request was answered whole, and as long as it was asked"
TTFT = "mean TTFT is as simulated"
REUSE = "reuse is as simulated"
ORDER = "the better policy is the one that was predicted"
PREDICTED = "what kvproxy predicts is what clients see"

MIN_PREDICTED = 0.95
"""Of the requests of a policy that predicts so many have to have a prediction."""


@dataclass(frozen=True)
class Live:
    """What one fleet did under one policy, on sockets."""

    seen: Sequence[Seen]
    """Of each request, in the order of the workload."""
    proxy_cpu_s: float
    """Of kvproxy, for all of them."""
    predicted_ms: Sequence[float | None] = ()
    """The TTFT that kvproxy predicted of each, if it did."""
    noticed_ms: Sequence[float | None] = ()
    """The TTFT of those by kvproxy's own clock, from the decision on."""

    @property
    def ttft_ms(self) -> float:
        return 1000 * mean([each.ttft_s for each in served(self.seen)])

    @property
    def whole_ms(self) -> float:
        return 1000 * mean([each.whole_s for each in served(self.seen)])

    @property
    def reuse(self) -> float:
        there = served(self.seen)
        return sum(each.cached_tokens for each in there) / max(1, sum(each.prompt_tokens for each in there))

    @property
    def errors(self) -> list[float]:
        """Of each prediction, as a share of what was seen: above 0 where it was too long."""
        return [
            predicted / (1000 * seen.ttft_s) - 1
            for seen, predicted in zip(self.seen, self.predicted_ms, strict=False)
            if predicted is not None and not seen.error
        ]

    @property
    def own_errors(self) -> list[float]:
        """The same as a share of what kvproxy saw: without clients, and without what it does before it
        decides."""
        pairs = zip(self.predicted_ms, self.noticed_ms, strict=True)
        return [predicted / noticed - 1 for predicted, noticed in pairs if predicted and noticed]


@dataclass(frozen=True)
class Cell:
    """One fleet and policy in both worlds."""

    fleet: str
    policy: str
    simulated: Simulated
    live: Live
    predicts: bool = False
    """Whether its policy is to predict."""

    @property
    def name(self) -> str:
        return f"{self.fleet} {self.policy}"


def mean(values: Sequence[float]) -> float:
    """0 if there are none."""
    return statistics.fmean(values) if values else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """As the figures of simulated time have it: the nearest rank above; 0 if there are none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values else 0.0


def off(value: float, simulated: Sequence[float]) -> float:
    """How far a live figure lies outside of the range of the simulated ones, as a share of its nearer end."""
    low, high = min(simulated), max(simulated)
    nearest = min(max(value, low), high)
    return 0.0 if value == nearest else (value - nearest) / nearest if nearest else float("inf")


def check_served(cell: Cell) -> list[str]:
    return [
        f"{cell.name}: request {number}: {seen.error}"
        for number, seen in enumerate(cell.live.seen)
        if seen.error
    ]


def check_ttft(cell: Cell, tolerance: float) -> list[str]:
    return _agrees(f"{cell.name}: mean TTFT ms", cell.live.ttft_ms, cell.simulated.ttft_ms, tolerance)


def check_reuse(cell: Cell, tolerance: float) -> list[str]:
    return _agrees(f"{cell.name}: reuse", cell.live.reuse, cell.simulated.reuse, tolerance)


def _agrees(what: str, live: float, simulated: Sequence[float], tolerance: float) -> list[str]:
    if abs(distance := off(live, simulated)) <= tolerance:
        return []
    low, high = min(simulated), max(simulated)
    return [f"{what} {live:.4g} live, {low:.4g} to {high:.4g} simulated: {distance:+.1%}"]


_RANKED: Mapping[str, Callable[[Cell], tuple[float, Sequence[float]]]] = {
    "TTFT": lambda cell: (cell.live.ttft_ms, cell.simulated.ttft_ms),
    "time end to end": lambda cell: (cell.live.whole_ms, cell.simulated.whole_ms),
}


def check_order(cells: Sequence[Cell], tolerance: float) -> list[str]:
    """Of two policies on one fleet whose simulated ranges lie further apart than the tolerance."""
    findings = []
    for one, other in itertools.permutations(cells, 2):
        if one.fleet != other.fleet:
            continue
        for name, of in _RANKED.items():
            (its, simulated), (others, worse) = of(one), of(other)
            apart = min(worse) / max(simulated) - 1
            if apart > tolerance and its >= others:
                findings.append(
                    f"{one.name} was to beat {other.policy} by {apart:.0%} in {name}, and took"
                    f" {its:.0f} ms in the mean where that took {others:.0f}"
                )
    return findings


def check_predicted(cell: Cell, most: float) -> list[str]:
    """Of a policy that predicts: how many predictions there are, and their median error, of either sign."""
    if not cell.predicts:
        return []
    errors, there = [abs(error) for error in cell.live.errors], len(served(cell.live.seen))
    if len(errors) < MIN_PREDICTED * there or not errors:
        return [f"{cell.name}: {len(errors)} predictions of {there} requests"]
    if (median := statistics.median(errors)) <= most:
        return []
    return [f"{cell.name}: the median error of {len(errors)} predictions is {median:.1%}"]


def judge(cells: Sequence[Cell], tolerance: float) -> Mapping[str, list[str]]:
    """All checks, and what each found."""
    found = {
        SERVED: [words for cell in cells for words in check_served(cell)],
        TTFT: [words for cell in cells for words in check_ttft(cell, tolerance)],
        REUSE: [words for cell in cells for words in check_reuse(cell, tolerance)],
        ORDER: check_order(cells, tolerance),
    }
    if any(cell.predicts for cell in cells):
        found[PREDICTED] = [words for cell in cells for words in check_predicted(cell, tolerance)]
    return found
