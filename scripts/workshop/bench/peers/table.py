"""The figures as the README has them."""

import statistics
import sys
from collections.abc import Sequence

from scripts.workshop.bench.peers import pause
from scripts.workshop.bench.peers.pause import Pauses
from scripts.workshop.bench.peers.rounds import Measured

OURS, MEASURE = "kvproxy", "vllm-router"
COLUMNS = ("nginx", MEASURE, "sglang-router", OURS)


def show(measured: Sequence[Measured], idle_mib: dict[str, float], pauses: Pauses | None) -> None:
    """Print it in Markdown; what was not measured is a dash."""
    print(_line("CPU of the router in us, or as said", *COLUMNS, f"{OURS} / {MEASURE}"))
    print(_line(*["---"] * (len(COLUMNS) + 2)))
    for one in measured:
        print(_row(one.case.name, [one.cost_us(name) for name in COLUMNS]))
        if one.case.latency:
            name = "the same: added to the p50 of one leg without a router, us"
            print(_row(name, [one.added_p50_us(router) for router in COLUMNS]))
    if idle_mib:
        print(_row("memory, idle, no tokenizer, MiB", [idle_mib.get(name) for name in COLUMNS]))
    if pauses is not None:
        name = f"longest pause of the event loop, {pause.STREAMS} streams, ms"
        told = f"the same while an event of {pause.EVENT_TOKENS} tokens comes every {pause.EVERY_S:g} s, ms"
        for words, found in ((name, pauses.without), (told, pauses.events)):
            print(_line(words, *["-"] * (len(COLUMNS) - 1), f"{statistics.median(found):.1f}", "-"))


def note(measured: Sequence[Measured], rounds: int, took_s: float) -> None:
    """Print how it was measured, and on stderr which loads did not go as they should."""
    others = [each.other_cores for one in measured for taken in one.taken.values() for each in taken]
    busy = f"; other programs took {statistics.median(others):.2f} cores (median)" if others else ""
    print(f"\nmedians of {rounds} rounds{busy}; {took_s:.0f} s in all")
    for one in measured:
        for name, what in one.wrong.items():
            print(f"{one.case.name}: {name} did not serve it: {what}", file=sys.stderr)


def _row(name: str, values: Sequence[float | None]) -> str:
    by_name = dict(zip(COLUMNS, values, strict=True))
    ours, theirs = by_name[OURS], by_name[MEASURE]
    ratio = f"{ours / theirs:.2f}" if ours is not None and theirs is not None else "-"
    return _line(name, *("-" if value is None else f"{value:.0f}" for value in values), ratio)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
