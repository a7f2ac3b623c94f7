"""One plot for a page: the mean time to the first token against the load, a curve for each policy.

It is an SVG file that needs nothing else, on white, with the colours, markers and dashes of the report.
"""

import html
import pathlib
from collections.abc import Iterable, Sequence

from proxy.simulation.report.axes import Axis, named
from proxy.simulation.report.charts import DASHES, MARKERS
from scripts.workshop.bench.policies.cells import Asked, Got
from scripts.workshop.bench.policies.traffics import RECORDED

POLICIES = ("least_ms", "cache_affinity", "dynamo", "approx_prefix", "llmd", "round_robin")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#555555")
"""Okabe's and Ito's, the yellow one darker."""
FLEETS = {"8b": "8 instances that do both", "4p4d": "4 prefill, 4 decode"}
WIDTH, HEIGHT = 360, 268
LEFT, RIGHT, TOP, BOTTOM = 48, 344, 34, 222
LEGEND, LEGEND_LEFT = 46, 12


def write_plot(cells: Iterable[Got], path: pathlib.Path, *, short: bool = False) -> None:
    """Write the plot of the runs on the recorded trace, or on its beginning (`short`). Raises ValueError if
    there are none.
    """
    name = f"{RECORDED}.short" if short else RECORDED
    found = [
        got
        for got in cells
        if (asked := got.asked).fleet in FLEETS
        and asked.policy in POLICIES
        and asked.place == Asked(name, asked.fleet, "", asked.speed)
    ]
    if not found:
        raise ValueError("nothing was run on the recorded trace")
    y_axis = _log_axis([got.ttft_ms for got in found])
    panels = [
        _panel(title, [got for got in found if got.asked.fleet == fleet], y_axis, WIDTH * place)
        for place, (fleet, title) in enumerate(FLEETS.items())
    ]
    width, height = WIDTH * len(panels), HEIGHT + LEGEND
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="#333">\n'
        f"<title>Mean time to the first token against the load</title>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "".join(panels)
        + _legend([policy for policy in POLICIES if any(got.asked.policy == policy for got in found)], width)
        + "</svg>\n",
        "utf-8",
    )


def _log_axis(values: Sequence[float]) -> Axis:
    """From a round value to a round value: the slowest policy would flatten all others otherwise."""
    ticks = [figure * 10.0**decade for decade in range(7) for figure in (1, 2, 5)]
    low = max((tick for tick in ticks if tick <= min(values)), default=ticks[0])
    high = min((tick for tick in ticks if tick >= max(values) and tick > low), default=ticks[-1])
    return Axis(low, high, [tick for tick in ticks if low <= tick <= high], is_log=True)


def _panel(title: str, cells: Sequence[Got], y_axis: Axis, x: float) -> str:
    most = max((got.asked.speed for got in cells), default=1.0)
    parts = [
        f'<g transform="translate({x} 0)">',
        f'<text x="{LEFT}" y="14" font-size="13" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{LEFT}" y="28">mean time to the first token, ms (logarithmic)</text>',
    ]
    for tick in y_axis.ticks:
        y = BOTTOM - (BOTTOM - TOP) * y_axis.share(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{named(tick)}</text>')
    parts.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="#888"/>')
    for speed in sorted({got.asked.speed for got in cells}):
        at = _x(speed, most)
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{speed:g}x</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{BOTTOM + 34}" text-anchor="middle">times as fast as recorded</text>'
    )
    for number, policy in reversed(list(enumerate(POLICIES))):
        marks = sorted((got.asked.speed, got.ttft_ms) for got in cells if got.asked.policy == policy)
        if not marks:
            continue
        places = [
            (_x(speed, most), BOTTOM - (BOTTOM - TOP) * y_axis.share(ttft_ms)) for speed, ttft_ms in marks
        ]
        points = " ".join(f"{at:.1f},{y:.1f}" for at, y in places)
        width = 2.6 if number == 0 else 1.6
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[number]}" stroke-width="{width}" '
            f'stroke-dasharray="{DASHES[number % len(DASHES)]}"/>'
        )
        parts += [
            f'<path d="{MARKERS[number]}" transform="translate({at:.1f} {y:.1f})" fill="{COLOURS[number]}"/>'
            for at, y in places
        ]
    return "\n".join([*parts, "</g>\n"])


def _x(speed: float, most: float) -> float:
    return LEFT + 12 + (RIGHT - LEFT - 24) * (speed - 1) / max(most - 1, 1e-9)


def _legend(policies: Sequence[str], width: float) -> str:
    step = (width - LEGEND_LEFT) / len(policies)
    parts = []
    for place, policy in enumerate(policies):
        number = POLICIES.index(policy)
        at, y = LEGEND_LEFT + step * place, HEIGHT + LEGEND / 2
        parts.append(
            f'<path d="M{at:.1f} {y}h30" stroke="{COLOURS[number]}" stroke-width="2" '
            f'stroke-dasharray="{DASHES[number % len(DASHES)]}"/>'
            f'<path d="{MARKERS[number]}" transform="translate({at + 15:.1f} {y})" fill="{COLOURS[number]}"/>'
            f'<text x="{at + 35:.1f}" y="{y + 4}">{policy}</text>'
        )
    return "\n".join([*parts, ""])
