"""A verdict says what the runs must show, what they show, and whether that is enough.

Where workloads are drawn, policies are compared seed by seed: noise is twice the standard error of the mean
difference, and never less than a share that other draws of ties make.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from scripts.workshop.bench.policies.ablation import OURS
from scripts.workshop.bench.policies.cells import Asked, Got
from scripts.workshop.bench.policies.grid import BASELINES
from scripts.workshop.bench.policies.reference import APART, MS, REPLAY
from scripts.workshop.bench.policies.traffics import RECORDED

LEAST_NOISE = 0.02
"""Of mean times, as a share: other draws of ties move them by 1 to 2 %."""
LEAST_GOOD_NOISE = 0.005
LIKE_APART = 0.10
LIKE_REPLAY_TTFT, LIKE_REPLAY_REUSE = 0.15, 0.10
NEAR_MS = 1.05
LEAST_GOOD = 0.75
OF_DYNAMO: Mapping[tuple[str, float], float] = {
    ("8b", 3.0): 0.75,
    ("8b", 6.0): 0.75,
    ("4p4d", 3.0): 0.95,
    ("4p4d", 5.0): 0.90,
    ("6p2d", 3.0): 0.95,
}
"""At most so much of dynamo's mean time to the first token."""


class Verdict(NamedTuple):
    """One thing that must be so."""

    place: str
    words: str
    holds: bool


Cells = Mapping[Asked, Mapping[str, Sequence[Got]]]
"""The runs of each place, by policy and in the order of their seeds."""


def by_place(cells: Iterable[Got]) -> Cells:
    """What is compared with each other."""
    found: dict[Asked, dict[str, list[Got]]] = {}
    for got in sorted(cells, key=lambda got: got.asked):
        found.setdefault(got.asked.place, {}).setdefault(got.asked.policy, []).append(got)
    return found


def truth(cells: Cells) -> Iterator[Verdict]:
    """Whether the simulator finds what others found."""
    for table, like, whose in (
        (REPLAY, LIKE_REPLAY_TTFT, "ai-dynamo's replay"),
        (APART, LIKE_APART, "a simulator apart"),
    ):
        for (fleet, speed, policy), expected in table.items():
            runs = cells.get(Asked(RECORDED, fleet, "", speed), {}).get(policy)
            if not runs:
                continue
            got, place = runs[0], f"{fleet} {speed:g}x {policy}"
            yield _like(place, f"TTFT ms of {whose}", got.ttft_ms, expected.ttft_ms, like)
            if expected.reuse is not None:
                yield _like(place, f"reuse of {whose}", got.reuse, expected.reuse, LIKE_REPLAY_REUSE)
            if expected.whole_ms is not None:
                yield _like(place, f"end to end ms of {whose}", got.whole_ms, expected.whole_ms, like)


def _like(place: str, what: str, value: float, other: float, like: float) -> Verdict:
    apart = value / other - 1
    # What is told in three digits may be half of the last one more or less.
    return Verdict(place, f"{what}: {value:.3g}, is {other:.3g} ({apart:+.1%})", abs(apart) <= like + 0.0015)


def conversation(cells: Cells) -> Iterator[Verdict]:
    """What our policy owes on the recorded trace."""
    for (fleet, speed), ms in MS.items():
        runs = cells.get(Asked(RECORDED, fleet, "", speed), {})
        if not (mine := runs.get(OURS)):
            continue
        got, place = mine[0], f"{fleet} {speed:g}x"
        most = NEAR_MS * ms
        yield Verdict(place, f"TTFT {got.ttft_ms:.0f} ms, at most {most:.0f}", got.ttft_ms <= most)
        if theirs := runs.get("dynamo"):
            other = theirs[0]
            if (share := OF_DYNAMO.get((fleet, speed))) is not None:
                is_share = got.ttft_ms / other.ttft_ms
                yield Verdict(place, f"TTFT {is_share:.3f} of dynamo's, at most {share}", is_share <= share)
            yield Verdict(
                place,
                f"p99 {got.ttft_p99_ms:.0f} ms, dynamo's is {other.ttft_p99_ms:.0f}",
                got.ttft_p99_ms <= other.ttft_p99_ms * (1 + LEAST_NOISE),
            )
        if (fleet, speed) == ("8b", 6.0):
            yield Verdict(place, f"good {got.good:.3f}, at least {LEAST_GOOD}", got.good >= LEAST_GOOD)
        others = {name: runs[name][0].whole_ms for name in BASELINES if name in runs}
        if others:
            best = min(others, key=others.__getitem__)
            words = f"end to end {got.whole_ms:.0f} ms, the best other's ({best}) is {others[best]:.0f}"
            yield Verdict(place, words, got.whole_ms <= others[best])


class Judged(NamedTuple):
    """A figure in which nobody may be better than our policy."""

    name: str
    of: Callable[[Got], float]
    relative: bool
    """Whether less is better and differences count as shares; else more is better."""


TTFT = Judged("TTFT ms", lambda got: got.ttft_ms, relative=True)
WHOLE = Judged("end to end ms", lambda got: got.whole_ms, relative=True)
GOOD = Judged("good", lambda got: got.good, relative=False)


def unbeaten(cells: Cells, figures: Sequence[Judged] = (TTFT, GOOD)) -> Iterator[Verdict]:
    """Whether no other policy is better by more than noise."""
    for place, runs in cells.items():
        if not (mine := runs.get(OURS)):
            continue
        for figure in figures:
            others = [(_lead(mine, runs[name], figure), name) for name in BASELINES if name in runs]
            if not others:
                continue
            (lead, noise), name = max(others, key=lambda found: found[0][0] - found[0][1])
            own = statistics.fmean(map(figure.of, mine))
            words = f"{figure.name} {own:.4g}; nearest: {name}, ahead by {_told(lead, figure)}"
            yield Verdict(str(place), f"{words} (noise {_told(noise, figure)})", lead <= noise)


def _lead(mine: Sequence[Got], theirs: Sequence[Got], figure: Judged) -> tuple[float, float]:
    """By how much they are ahead, and what of that is noise."""
    by_seed = {got.asked.seed: figure.of(got) for got in theirs}
    leads = []
    for got in mine:
        if (value := by_seed.get(got.asked.seed)) is not None:
            own = figure.of(got)
            leads.append((own / value - 1) if figure.relative and value else value - own)
    least = LEAST_NOISE if figure.relative else LEAST_GOOD_NOISE
    if not leads:
        return -math.inf, least
    error = statistics.stdev(leads) / math.sqrt(len(leads)) if len(leads) > 1 else 0.0
    return statistics.fmean(leads), max(2 * error, least)


def _told(value: float, figure: Judged) -> str:
    return f"{value:+.1%}" if figure.relative else f"{value:+.3f}"
