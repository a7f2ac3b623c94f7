"""Figures become shapes whose places are numbers; a template draws them. No text is made markup here.

Curves where a policy was run at several speeds, bars where it was run at one. A policy has one colour, one
marker and one dash on the whole page, so that it is known without its colour.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from proxy.simulation.replay.comparison import Cell
from proxy.simulation.report.axes import Axis, for_values, from_zero, named, of_steps

COLOURS = 8
"""So many colours there are, after Okabe and Ito; `templates/page.html` has them."""
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.4h-9.2z",
    "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L4.6-3.4h-9.2z",
    "M-1.4-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z",
    "M-4.6-2.2h9.2v4.4h-9.2z",
)
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2")
# Numbers of colours, markers and dashes have no factor in common: 280 policies look different.

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 346, 22, 184
"""Of curves, and of the field in which they lie."""
BAR_RIGHT, BAR_TOP, BAR_STEP = 300, 4, 30
"""Of bars, which begin at the left edge. A name stands above its bar, whose figure stands behind it."""
SECONDS_FROM_MS = 20_000.0
"""From here on milliseconds are shown as seconds."""


class Look(msgspec.Struct, frozen=True):
    """How a policy is told from the others."""

    name: str
    colour: int
    marker: str
    dash: str


class Tick(msgspec.Struct, frozen=True):
    """A named place on an axis."""

    at: float
    label: str


class Mark(msgspec.Struct, frozen=True):
    """A point of a curve; `label` tells its values."""

    x: float
    y: float
    label: str


class Curve(msgspec.Struct, frozen=True):
    """A policy in a plot."""

    look: Look
    points: str
    marks: Sequence[Mark]


class Rule(msgspec.Struct, frozen=True):
    """A line across a plot, for a value that is given."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str


class Plot(msgspec.Struct, frozen=True):
    """Curves against the speed of the traffic."""

    title: str
    unit: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    curves: Sequence[Curve]
    rules: Sequence[Rule] = ()


class Bar(msgspec.Struct, frozen=True):
    """A policy's figure."""

    look: Look
    y: float
    length: float
    value: str


class Bars(msgspec.Struct, frozen=True):
    """A bar for each policy."""

    title: str
    unit: str
    height: float
    ticks: Sequence[Tick]
    bars: Sequence[Bar]


class Quantity(msgspec.Struct, frozen=True):
    """What is drawn of a run. `of` is None where a run has no such figure."""

    title: str
    unit: str
    of: Callable[[Cell], float | None]
    most: float | None = None
    """The end of its axis, if that is known beforehand."""


def _if_any(of: Callable[[Cell], float]) -> Callable[[Cell], float | None]:
    def figure(cell: Cell) -> float | None:
        value = of(cell)
        return None if math.isnan(value) else value

    return figure


BY_LOAD = (
    Quantity("Mean time to first token", "ms", _if_any(lambda cell: cell.figures.ttft_ms.mean)),
    Quantity("p99 of the time to first token", "ms", _if_any(lambda cell: cell.figures.ttft_ms.p99)),
    Quantity("Requests that met the goals", "% of all", lambda cell: 100 * cell.figures.good, 100.0),
    Quantity("Goodput", "good requests a second", lambda cell: cell.figures.good_per_s),
    Quantity("p99 between two tokens", "ms", _if_any(lambda cell: cell.figures.itl_ms.p99)),
    Quantity("Mean time end to end", "ms", _if_any(lambda cell: cell.figures.whole_ms.mean)),
)
"""What is shown against the load."""
BY_POLICY = (
    Quantity(
        "Reuse", "% of prompt tokens found cached", _if_any(lambda cell: 100 * cell.figures.reuse), 100.0
    ),
    Quantity(
        "Balance",
        "busiest instance's time, by the mean of its role (1: even)",
        _if_any(lambda c: c.figures.balance),
    ),
)
"""What is shown as bars, whatever the load."""


def looks_of(policies: Sequence[str]) -> dict[str, Look]:
    """A look for each policy, by its name."""
    return {
        name: Look(name, number % COLOURS, MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])
        for number, name in enumerate(policies)
    }


def plot(quantity: Quantity, cells: Sequence[Cell], looks: dict[str, Look]) -> Plot:
    """A quantity against the speed, a curve for each policy; the cells are of one fleet."""
    found = [value for cell in cells if (value := quantity.of(cell)) is not None]
    unit, factor = _unit(quantity, found)
    y_axis = _axis(quantity, [value * factor for value in found])
    x_axis = of_steps([cell.speed for cell in cells])
    curves = []
    for name, look in looks.items():
        marks = [
            Mark(
                _between(LEFT + 8, RIGHT - 8, x_axis.share(cell.speed)),
                _between(BOTTOM, TOP, y_axis.share(value * factor)),
                f"{name} at speed {cell.speed:g}: {_shown(value * factor)} {unit}",
            )
            for cell in sorted(cells, key=lambda cell: cell.speed)
            if cell.policy == name and (value := quantity.of(cell)) is not None
        ]
        if marks:
            curves.append(Curve(look, " ".join(f"{mark.x:g},{mark.y:g}" for mark in marks), marks))
    return Plot(
        quantity.title,
        f"{unit}, logarithmic" if y_axis.is_log else unit,
        [Tick(_between(LEFT + 8, RIGHT - 8, x_axis.share(tick)), f"{tick:g}") for tick in x_axis.ticks],
        [Tick(_between(BOTTOM, TOP, y_axis.share(tick)), named(tick)) for tick in y_axis.ticks],
        curves,
    )


def bars(quantity: Quantity, cells: Sequence[Cell], looks: dict[str, Look]) -> Bars:
    """A quantity as bars; the cells are of one fleet and one speed."""
    values = [(looks[cell.policy], value) for cell in cells if (value := quantity.of(cell)) is not None]
    unit, factor = _unit(quantity, [value for _, value in values])
    axis = from_zero(quantity.most or max((value * factor for _, value in values), default=0.0), most=5)
    return Bars(
        quantity.title,
        unit,
        BAR_TOP + BAR_STEP * len(values),
        [Tick(_between(1, BAR_RIGHT, axis.share(tick)), named(tick)) for tick in axis.ticks],
        [
            Bar(
                look,
                BAR_TOP + BAR_STEP * place,
                _between(0, BAR_RIGHT - 1, axis.share(value * factor)),
                _shown(value * factor),
            )
            for place, (look, value) in enumerate(values)
        ],
    )


def _unit(quantity: Quantity, values: Sequence[float]) -> tuple[str, float]:
    """The unit that is shown, and by what values are multiplied for it."""
    if quantity.unit == "ms" and max(values, default=0.0) >= SECONDS_FROM_MS:
        return "s", 0.001
    return quantity.unit, 1.0


def _axis(quantity: Quantity, values: Sequence[float]) -> Axis:
    return for_values(values) if quantity.most is None else from_zero(quantity.most)


def _between(first: float, last: float, share: float) -> float:
    return round(first + (last - first) * share, 1)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
