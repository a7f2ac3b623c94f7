"""What people see of a run: a line now and then, tables at its end, and a file with each request of it."""

import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from rich.markup import escape
from rich.table import Table

from proxy.simulation.replay.figures import Figures, Spread
from scripts.workshop.launching import console
from tests.proofs.live import verdict as v
from tests.proofs.live.clients import Seen, served
from tests.proofs.live.run import Options, Run, run

_PIPED_WIDTH = 120
_LINE_EVERY_S = 10.0
_SHOWN = 12


def run_and_show(options: Options) -> Run:
    """Run it, show how it goes and what came of it, and write down all figures. Call it from the main
    thread."""
    screen = console(_PIPED_WIDTH)
    requests = len(options.workload.requests)
    screen.print(f"{requests} requests: {escape(options.workload.source)}", style="bold", soft_wrap=True)
    made = run(options, Lines())
    screen.print(own_times(made))
    for fleet in made.options.fleets:
        screen.print(worlds(made, fleet))
    screen.print(checks(made))
    for words in made.findings[:_SHOWN]:
        screen.print(escape(words), style="bold red", soft_wrap=True)
    print(f"{len(made.findings)} findings; each request in {write(made)}, logs beside it")
    return made


class Lines:
    """Says what is done: at once where that is new, now and then where it goes on."""

    def __init__(self) -> None:
        self._said_at = float("-inf")
        self._what = ""

    def __call__(self, words: str) -> None:
        now, what = time.monotonic(), words.partition(":")[0]
        if what != self._what or now - self._said_at >= _LINE_EVERY_S:
            self._what, self._said_at = what, now
            print(f"  {words}", flush=True)


def _table(title: str, *headings: str) -> Table:
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for number, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if number else "left")
    return drawn


def own_times(made: Run) -> Table:
    """What kvproxy, stand-ins, clients and the machine add to a time to first token."""
    drawn = _table("engines that take no time, one request at a time", "fleet", "TTFT ms p50", "p90", "mean")
    for fleet, seen in made.own.items():
        times = [1000 * each.ttft_s for each in served(seen)]
        drawn.add_row(
            fleet,
            *(f"{each:.1f}" for each in (v.quantile(times, 0.5), v.quantile(times, 0.9), v.mean(times))),
        )
    return drawn


def worlds(made: Run, fleet: str) -> Table:
    """Of a fleet, for each policy: what was seen, and what simulated time says (the range of its seeds)."""
    cells = [cell for cell in made.cells if cell.fleet == fleet]
    drawn = _table(f"{fleet}, live and in simulated time", "", *(cell.policy for cell in cells))
    for name, figures in _ROWS.items():
        seen, simulated, off = [], [], []
        for cell in cells:
            value, values = figures(cell)
            form = ".4f" if name == _REUSE else ".1f" if value < 100 else ".0f"
            seen.append(format(value, form))
            simulated.append(_range(values, form))
            off.append(f"{v.off(value, values):+.1%}")
        drawn.add_row(name, *seen)
        drawn.add_row("  simulated", *simulated, style="dim")
        drawn.add_row("  off", *off, style="dim")
        drawn.add_section()
    for name, figure in _LIVE_ROWS.items():
        drawn.add_row(name, *(figure(cell.live) for cell in cells))
    return drawn


_REUSE = "reuse"
_Both = Callable[[v.Cell], tuple[float, Sequence[float]]]


def _times(
    of: Callable[[Seen], float], spread: Callable[[Figures], Spread], share: float | None = None
) -> _Both:
    """Milliseconds of both worlds: the mean, or what a share of the requests stays below."""

    def figures(cell: v.Cell) -> tuple[float, Sequence[float]]:
        seen = [1000 * of(each) for each in served(cell.live.seen)]
        if share is None:
            return v.mean(seen), [spread(each).mean for each in cell.simulated.figures]
        name = f"p{100 * share:.0f}"
        return v.quantile(seen, share), [getattr(spread(each), name) for each in cell.simulated.figures]

    return figures


_ROWS: Mapping[str, _Both] = {
    "TTFT ms, mean": _times(lambda seen: seen.ttft_s, lambda figures: figures.ttft_ms),
    "TTFT ms, p50": _times(lambda seen: seen.ttft_s, lambda figures: figures.ttft_ms, 0.5),
    "TTFT ms, p99": _times(lambda seen: seen.ttft_s, lambda figures: figures.ttft_ms, 0.99),
    _REUSE: lambda cell: (cell.live.reuse, cell.simulated.reuse),
    "ms a token, mean": _times(lambda seen: seen.tpot_s, lambda figures: figures.tpot_ms),
    "whole ms, mean": _times(lambda seen: seen.whole_s, lambda figures: figures.whole_ms),
}
_LIVE_ROWS: Mapping[str, Callable[[v.Live], str]] = {
    "predicted TTFT, median error": lambda live: _median([abs(error) for error in live.errors]),
    "  the same by kvproxy's own clock": lambda live: _median([abs(error) for error in live.own_errors]),
    "  the median, with its sign": lambda live: _median(live.errors),
    "sent late ms, p99": lambda live: f"{v.quantile([1000 * each.late_s for each in live.seen], 0.99):.0f}",
    "kvproxy's CPU, ms a request": lambda live: f"{1000 * live.proxy_cpu_s / max(1, len(live.seen)):.1f}",
}


def _median(shares: Sequence[float]) -> str:
    return f"{statistics.median(shares):.1%}" if shares else "-"


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def checks(made: Run) -> Table:
    """Each check, and how much it found."""
    drawn = _table("promises", "promise", "findings")
    for check, found in v.judge(made.cells, made.options.tolerance).items():
        drawn.add_row(check, str(len(found) or "none"), style="bold red" if found else "green")
    return drawn


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request in both worlds, as it is written down. Milliseconds."""

    cell: str
    input_tokens: int
    output_tokens: int
    ttft_ms: float
    simulated_ttft_ms: float
    whole_ms: float
    simulated_whole_ms: float
    cached_tokens: int
    simulated_cached_tokens: int
    predicted_ttft_ms: float | None = None
    prefill: str = ""
    decode: str = ""
    error: str = ""


def _told(cell: v.Cell, number: int, seen: Seen, predicted_ms: float | None) -> Told:
    record = cell.simulated.records[number]
    there = not seen.error
    return Told(
        cell=cell.name,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        ttft_ms=1000 * seen.ttft_s if there else 0.0,
        simulated_ttft_ms=1000 * record.ttft_s,
        whole_ms=1000 * seen.whole_s if there else 0.0,
        simulated_whole_ms=1000 * record.whole_s,
        cached_tokens=seen.cached_tokens,
        simulated_cached_tokens=record.reused_tokens,
        predicted_ttft_ms=predicted_ms,
        prefill=seen.headers.get("X-Kvproxy-Prefill", ""),
        decode=seen.headers.get("X-Kvproxy-Decode", ""),
        error=seen.error,
    )


def write(made: Run) -> pathlib.Path:
    """A line for each request of each cell, beside the logs."""
    path = made.options.logs / "requests.jsonl"
    lines = [
        _told(cell, number, seen, predicted)
        for cell in made.cells
        for number, (seen, predicted) in enumerate(
            zip(cell.live.seen, cell.live.predicted_ms or [None] * len(cell.live.seen), strict=True)
        )
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    return path
