"""A comparison becomes one page of HTML. What files or users named is escaped: nothing is marked as safe."""

from collections.abc import Iterable, Sequence

import jinja2
import msgspec

from proxy.simulation.replay.comparison import COLUMNS, WORDS, Cell, Comparison
from proxy.simulation.replay.run import Setup
from proxy.simulation.report import charts, over_time

MOST_SPEEDS = 4
"""Of so many speeds bars are drawn: the first, the last, and some between."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("proxy.simulation.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class AtSpeed(msgspec.Struct, frozen=True):
    """The bars of one speed."""

    speed: float
    bars: Sequence[charts.Bars]


class OfFleet(msgspec.Struct, frozen=True):
    """What is drawn of a fleet. `plots` are there for several speeds; for one all is among the bars."""

    fleet: str
    plots: Sequence[charts.Plot]
    at_speeds: Sequence[AtSpeed]
    runs: Sequence[over_time.RunOverTime]


def page_of(comparison: Comparison) -> str:
    """The page of a comparison. The same figures give the same page."""
    cells = comparison.cells
    looks = charts.looks_of(_each(cell.policy for cell in cells))
    runs = over_time.runs_over_time(cells)
    return _TEMPLATES.get_template("page.html").render(
        comparison=comparison,
        about=_about(comparison),
        columns=[column.whole_name for column in COLUMNS],
        words=WORDS,
        rows=[[column.shown(cell) for column in COLUMNS] for cell in cells],
        looks=looks.values(),
        fleets=[
            _fleet(fleet, [cell for cell in cells if cell.fleet == fleet], looks, runs)
            for fleet in _each(cell.fleet for cell in cells)
        ],
        runs_left_out=len(cells) - len(runs),
        charts=charts,
        panels=over_time,
    )


def _fleet(
    fleet: str,
    cells: Sequence[Cell],
    looks: dict[str, charts.Look],
    runs: Sequence[over_time.RunOverTime],
) -> OfFleet:
    speeds = sorted({cell.speed for cell in cells})
    several = len(speeds) > 1
    quantities = charts.BY_POLICY if several else (*charts.BY_LOAD, *charts.BY_POLICY)
    return OfFleet(
        fleet,
        [charts.plot(quantity, cells, looks) for quantity in charts.BY_LOAD] if several else [],
        [
            AtSpeed(
                speed,
                [
                    charts.bars(quantity, [cell for cell in cells if cell.speed == speed], looks)
                    for quantity in quantities
                ],
            )
            for speed in _some(speeds)
        ],
        [run for run in runs if run.cell.fleet == fleet],
    )


def _about(comparison: Comparison) -> list[tuple[str, str]]:
    """What was run: names and values."""
    cells, setup = comparison.cells, comparison.setup
    left = comparison.runs - len(cells)
    requests = cells[0].figures.requests if cells else 0
    return [
        ("traffic", f"{comparison.workload}: {requests} requests, {comparison.source}"),
        ("fleets", ", ".join(_each(cell.fleet for cell in cells))),
        ("policies", ", ".join(_each(cell.policy for cell in cells))),
        ("speeds", ", ".join(_each(f"{cell.speed:g}" for cell in cells))),
        ("engines", f"profile {setup.profile}{_odd(setup)}"),
        (
            "goals",
            f"first token within {setup.goals.ttft_ms:g} ms, then {setup.goals.tpot_ms:g} ms a token in mean",
        ),
        (
            "router",
            f"{setup.routers} kvproxy, {setup.unknown_share:.0%} of prompts unknown",
        ),
        (
            "KV events",
            f"in the index {1000 * setup.event_delay_s:g} ms after an engine's step",
        ),
        ("seed", str(setup.seed)),
        *([("not finished", f"{left} of {comparison.runs} runs")] if left else []),
    ]


def _odd(setup: Setup) -> str:
    """What is not as the profile has it."""
    odd = [f"{address.partition(':')[0]} {speed:g} times as fast" for address, speed in setup.speeds.items()]
    odd += [
        f"{outage.address.partition(':')[0]} gone at {outage.at_s:g} s for {outage.down_s:g} s"
        for outage in setup.outages
    ]
    return "".join(f"; {words}" for words in odd)


def _some(speeds: Sequence[float]) -> list[float]:
    if len(speeds) <= MOST_SPEEDS:
        return list(speeds)
    return [speeds[round(place * (len(speeds) - 1) / (MOST_SPEEDS - 1))] for place in range(MOST_SPEEDS)]


def _each(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
