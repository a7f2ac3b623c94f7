"""A grid is run cell by cell, each is written down as it ends, and what they show is said at the end."""

import concurrent.futures
import functools
import multiprocessing
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from scripts.workshop.bench.policies.cells import Asked, Got, run_cell
from scripts.workshop.bench.policies.grid import SECTIONS, Size
from scripts.workshop.bench.policies.store import Store
from scripts.workshop.bench.policies.traffics import RECORDED, traffic
from scripts.workshop.bench.policies.verdicts import (
    GOOD,
    TTFT,
    WHOLE,
    Cells,
    Verdict,
    by_place,
    conversation,
    truth,
    unbeaten,
)

UNJUDGED = "ablation"
"""The section that only shows what there is."""

HEAD = (
    f"{'policy':<22}{'TTFT ms':>9}{'p50':>7}{'p90':>7}{'p99':>7}{'good':>7}{'whole ms':>10}"
    f"{'ITL p99':>9}{'reuse':>7}{'balance':>9}{'us':>6}{'CPU s':>7}"
)


def run(sections: Sequence[str], size: Size, store: Store, trace: pathlib.Path | None, jobs: int) -> bool:
    """Run what is missing, print all of it, and return whether every verdict holds."""
    cells = list(dict.fromkeys(asked for name in sections for asked in SECTIONS[name](size)))
    if trace is None:
        cells = [asked for asked in cells if not asked.traffic.startswith(RECORDED)]
    missing = [asked for asked in cells if store.get(asked) is None]
    print(f"{len(cells)} runs, {len(missing)} of them to do", flush=True)
    for number, done in enumerate(_done(missing, trace, jobs), 1):
        store.add(done)
        print(f"{number}/{len(missing)} {done.asked}, seed {done.asked.seed}\n{_row(done)}", flush=True)
    found = by_place(got for asked in cells if (got := store.get(asked)) is not None)
    print_table(found)
    return print_verdicts(_verdicts(sections, size, store)) or set(sections) == {UNJUDGED}


def _done(missing: Iterable[Asked], trace: pathlib.Path | None, jobs: int) -> Iterator[Got]:
    do = functools.partial(_run, trace=trace)
    if jobs == 1:
        yield from map(do, missing)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(do, missing)


def _run(asked: Asked, trace: pathlib.Path | None) -> Got:
    return run_cell(asked, traffic(asked.traffic, asked.seed, trace))


def print_table(cells: Cells) -> None:
    """All runs; of several seeds the mean."""
    for place, runs in cells.items():
        print(f"\n{place}\n{HEAD}")
        for gots in sorted(runs.values(), key=lambda gots: sum(got.ttft_ms for got in gots) / len(gots)):
            print(_row(*gots))


def _row(*gots: Got) -> str:
    def mean(name: str) -> float:
        return float(sum(getattr(got, name) for got in gots)) / len(gots)

    return (
        f"{gots[0].asked.policy:<22}{mean('ttft_ms'):>9.0f}{mean('ttft_p50_ms'):>7.0f}"
        f"{mean('ttft_p90_ms'):>7.0f}{mean('ttft_p99_ms'):>7.0f}{mean('good'):>7.3f}{mean('whole_ms'):>10.0f}"
        f"{mean('itl_p99_ms'):>9.1f}{mean('reuse'):>7.3f}{mean('balance'):>9.2f}"
        f"{mean('decision_us'):>6.0f}{mean('cpu_s'):>7.1f}"
    )


def _verdicts(sections: Sequence[str], size: Size, store: Store) -> Iterator[tuple[str, Verdict]]:
    for name in sections:
        of_it = {asked: got for asked in SECTIONS[name](size) if (got := store.get(asked)) is not None}
        cells = by_place(of_it.values())
        if name == "truth":
            yield from ((name, verdict) for verdict in truth(cells))
        elif name == "conversation":
            yield from ((name, verdict) for verdict in conversation(cells))
            yield from ((name, verdict) for verdict in unbeaten(cells))
        elif name == "agents":
            yield from ((name, verdict) for verdict in unbeaten(cells, (TTFT, WHOLE, GOOD)))
        elif name in {"generated", "robust"}:
            yield from ((name, verdict) for verdict in unbeaten(cells))


def print_verdicts(verdicts: Iterable[tuple[str, Verdict]]) -> bool:
    """Print them, those that do not hold last. Returns whether there are any, and all hold."""
    found = sorted(verdicts, key=lambda each: not each[1].holds)
    print()
    for section, verdict in found:
        print(f"{'ok  ' if verdict.holds else 'FAIL'} {section}: {verdict.place}: {verdict.words}")
    failed = sum(not verdict.holds for _, verdict in found)
    print(f"{len(found) - failed} of {len(found)} hold", flush=True)
    return bool(found) and not failed
