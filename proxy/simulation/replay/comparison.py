"""A comparison has a cell for each fleet, policy and speed, all of one workload, one seed and one engine."""

import math
import time as clocks
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from proxy.scheduling.policies import POLICIES
from proxy.simulation.replay.baselines import BASELINES
from proxy.simulation.replay.figures import Figures
from proxy.simulation.replay.run import Progress, Setup, replay
from proxy.traces.workload import Workload


class Cell(msgspec.Struct, frozen=True):
    """One run of a comparison."""

    fleet: str
    policy: str
    speed: float
    figures: Figures
    cpu_s: float
    """This machine's time for the run."""


class Comparison(msgspec.Struct, frozen=True):
    """Runs of one workload."""

    workload: str
    source: str
    setup: Setup
    """What all cells have in common; its fleet, policy and speed are those of the first."""
    cells: Sequence[Cell]
    """The runs that are finished."""
    runs: int
    """How many were asked for."""


def names_of_policies() -> list[str]:
    """All policies that can be had by name, kvproxy's first."""
    return [*POLICIES, *(name for name in BASELINES if name not in POLICIES)]


def cells_of(
    workload: Workload,
    setups: Iterable[Setup],
    progress: Callable[[Setup], Progress | None] = lambda _: None,
) -> Iterator[Cell]:
    """Run one setup after the other. Raises ConfigError.

    `progress`: what hears of the progress of a run.
    """
    for setup in setups:
        begun_s = clocks.process_time()
        figures = replay(workload, setup, progress=progress(setup))
        yield Cell(setup.fleet, setup.policy, setup.speed, figures, clocks.process_time() - begun_s)


def _shown(figure: float, form: str) -> str:
    return "-" if math.isnan(figure) else format(figure, form)


class Column(NamedTuple):
    """A column of the table."""

    name: str
    """Short, beside the other columns' names."""
    whole_name: str
    """For where it stands alone."""
    shown: Callable[[Cell], str]


COLUMNS = (
    Column("fleet", "fleet", lambda cell: cell.fleet),
    Column("speed", "speed", lambda cell: f"{cell.speed:g}"),
    Column("policy", "policy", lambda cell: cell.policy),
    Column("served", "served", lambda cell: f"{cell.figures.served}/{cell.figures.requests}"),
    Column("good", "good", lambda cell: f"{cell.figures.good:.3f}"),
    Column("reuse", "reuse", lambda cell: _shown(cell.figures.reuse, ".3f")),
    Column("TTFT ms", "TTFT ms mean", lambda cell: _shown(cell.figures.ttft_ms.mean, ".0f")),
    Column("p50", "TTFT ms p50", lambda cell: _shown(cell.figures.ttft_ms.p50, ".0f")),
    Column("p90", "TTFT ms p90", lambda cell: _shown(cell.figures.ttft_ms.p90, ".0f")),
    Column("p99", "TTFT ms p99", lambda cell: _shown(cell.figures.ttft_ms.p99, ".0f")),
    Column("ITL ms", "ITL ms p50", lambda cell: _shown(cell.figures.itl_ms.p50, ".1f")),
    Column("p99", "ITL ms p99", lambda cell: _shown(cell.figures.itl_ms.p99, ".1f")),
    Column("whole ms", "whole ms mean", lambda cell: _shown(cell.figures.whole_ms.mean, ".0f")),
    Column("prefill", "prefill", lambda cell: f"{cell.figures.prefill_use:.0%}"),
    Column("decode", "decode", lambda cell: f"{cell.figures.decode_use:.0%}"),
    Column("balance", "balance", lambda cell: _shown(cell.figures.balance, ".2f")),
    Column("decision us", "decision us", lambda cell: _shown(cell.figures.decision_us.p50, ".0f")),
    Column("CPU s", "CPU s", lambda cell: f"{cell.cpu_s:.1f}"),
)
WORDS = 3
"""So many columns are words, which stand on the left; numbers stand on the right."""


def as_table(cells: Sequence[Cell]) -> str:
    """The cells as lines of text, one each, under the names of the columns."""
    rows = [[column.name for column in COLUMNS]]
    rows += [[column.shown(cell) for column in COLUMNS] for cell in cells]
    return lines_of(rows, WORDS)


def lines_of(rows: Sequence[Sequence[str]], words: int) -> str:
    """A table as lines of text; so many columns are words, which stand on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if place < words else word.rjust(width)
            for place, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
