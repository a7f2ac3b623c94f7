"""What each instance did over time is shown for so many instances that a page stays of a size to be sent.

The policies named first are shown, and of each all fleets and speeds before the next one's; what is left out
is counted. `figures.json` has all of it.
"""

from collections.abc import Sequence

import msgspec

from proxy.simulation.replay.comparison import Cell
from proxy.simulation.replay.figures import Moment
from proxy.simulation.replay.use import BIN_S
from proxy.simulation.report.axes import Axis, named, up_to
from proxy.simulation.report.charts import Tick

MOST_PANELS = 192
"""So many instances are drawn on a page. One takes up to 5 kB."""
MOST_INSTANCES = 16
"""So many are drawn of a run."""
MOST_POLICIES = 3
"""Of so many policies runs are drawn."""

WIDTH, HEIGHT = 180, 92
LEFT, RIGHT, TOP, BOTTOM = 26, 174, 8, 64
"""Of a panel, and of the field in which its areas lie."""


class Panel(msgspec.Struct, frozen=True):
    """One instance; its areas are outlines for a path. `busy` lies behind `prefill`: what is seen of it is
    the time in steps that only generate.
    """

    name: str
    busy: str
    prefill: str
    words: str


class RunOverTime(msgspec.Struct, frozen=True):
    """The instances of one run."""

    cell: Cell
    ticks: Sequence[Tick]
    panels: Sequence[Panel]
    left_out: int
    """Instances that are not drawn."""


def runs_over_time(cells: Sequence[Cell]) -> list[RunOverTime]:
    """The runs that are drawn, in the order of the cells; none of those without a moment to show."""
    policies = list(dict.fromkeys(cell.policy for cell in cells))[:MOST_POLICIES]
    left = MOST_PANELS
    chosen: set[int] = set()
    for policy in policies:
        for place, cell in enumerate(cells):
            if cell.policy != policy or not any(each.over_time for each in cell.figures.instances.values()):
                continue
            left -= min(MOST_INSTANCES, len(cell.figures.instances))
            if left >= 0:
                chosen.add(place)
    return [_run(cell) for place, cell in enumerate(cells) if place in chosen]


def _run(cell: Cell) -> RunOverTime:
    instances = cell.figures.instances
    end_s = max(_end_s(each.over_time) for each in instances.values())
    axis = up_to(end_s, most=4)
    panels = [
        Panel(
            address.partition(":")[0],
            _area(
                axis, each.over_time, [moment.prefill_use + moment.decode_use for moment in each.over_time]
            ),
            _area(axis, each.over_time, [moment.prefill_use for moment in each.over_time]),
            f"{each.prefill_use:.0%} of the time in prefill, {each.decode_use:.0%} in decode",
        )
        for address, each in list(instances.items())[:MOST_INSTANCES]
    ]
    ticks = [Tick(_x(axis, tick), named(tick)) for tick in axis.ticks]
    return RunOverTime(cell, ticks, panels, len(instances) - len(panels))


def _end_s(moments: Sequence[Moment]) -> float:
    if not moments:
        return 0.0
    return moments[-1].at_s + (moments[1].at_s - moments[0].at_s if len(moments) > 1 else BIN_S)


def _area(axis: Axis, moments: Sequence[Moment], shares: Sequence[float]) -> str:
    """The outline of what lies below the shares: flat within a moment. A share above 1 is as one of 1: a step
    counts where it began.
    """
    if not moments:
        return ""
    ends_s = [*(moment.at_s for moment in moments[1:]), _end_s(moments)]
    words = [f"M{_x(axis, moments[0].at_s):g} {BOTTOM}"]
    for end_s, share in zip(ends_s, shares, strict=True):
        words.append(f"V{round(BOTTOM - (BOTTOM - TOP) * min(1.0, share), 1):g}H{_x(axis, end_s):g}")
    return "".join(words) + f"V{BOTTOM}z"


def _x(axis: Axis, at_s: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * axis.share(at_s), 1)
