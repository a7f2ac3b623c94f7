"""kvproxy beside other routers: one table, with ratios to vllm-router in the like mode."""

import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack

from scripts.workshop.bench.peers import backend, rounds, tools
from scripts.workshop.bench.peers.cases import CASES
from scripts.workshop.bench.peers.environment import NoPeersError, ensure_peers
from scripts.workshop.bench.peers.rounds import Bench, Measured
from scripts.workshop.bench.peers.routers import Mode, kvproxy, peers

OURS, MEASURE = "kvproxy", "vllm-router"
COLUMNS = ("nginx", MEASURE, "sglang-router", OURS)
ROUNDS, QUICK_ROUNDS = 7, 3
QUICK_SHARE = 0.4
MEMORY = "memory"
KEYS = (*(case.key for case in CASES), MEMORY)


def run(only: Sequence[str], given_rounds: int | None, *, quick: bool, alone: bool) -> None:
    """Measure and print. `only`: keys of cases, all if empty. `alone`: kvproxy without the others.

    Call it from the main thread, whose core it chooses; SystemExit if this machine cannot do it, or if
    kvproxy served a load wrongly.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("one core for all: latencies mean little", file=sys.stderr)
    os.sched_setaffinity(0, cores[:1])
    cases = [case for case in CASES if not only or case.key in only]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = pathlib.Path(made)
        try:
            built = tools.build(folder)
            programs = None if alone else ensure_peers()
        except (tools.NoCompilerError, NoPeersError) as error:
            sys.exit(f"error: {error}")
        engines = stack.enter_context(backend.started(built.engine, folder))
        wanted = {case.mode for case in cases} | ({Mode.PD} if not only or MEMORY in only else set())
        routers = [kvproxy(engines.engines, mode) for mode in sorted(wanted)]
        if programs is not None:
            routers += [r for r in peers(programs, engines.engines, folder) if r.modes & wanted]
        processes = stack.enter_context(rounds.started(routers, cores[-1], folder))
        idle_mib = {r.name: rounds.memory_of(p) for r, p in processes.items() if Mode.PD in r.modes}
        count = given_rounds or (QUICK_ROUNDS if quick else ROUNDS)
        bench = Bench(built.load, engines, processes, folder)
        measured = bench.run(cases, count, QUICK_SHARE if quick else 1.0)
    _print(measured, idle_mib if not only or MEMORY in only else {}, count, time.monotonic() - begun)
    if any(OURS in one.wrong for one in measured):
        sys.exit(1)


def _print(measured: Sequence[Measured], idle_mib: dict[str, float], count: int, took_s: float) -> None:
    print(_line("CPU of the router, us", *COLUMNS, f"{OURS} / {MEASURE}"))
    print(_line(*["---"] * (len(COLUMNS) + 2)))
    for one in measured:
        print(_row(one.case.name, [one.cost_us(name) for name in COLUMNS]))
        if one.case.latency:
            name = f"{one.case.name}: p50 added to one leg asked directly"
            print(_row(name, [one.added_p50_us(router) for router in COLUMNS]))
    if idle_mib:
        print(_row("idle, MiB", [idle_mib.get(name) for name in COLUMNS]))
    others = [
        taken.other_cores for one in measured for all_taken in one.taken.values() for taken in all_taken
    ]
    busy = f"; other programs took {statistics.median(others):.2f} cores (median)" if others else ""
    print(f"\nmedians of {count} rounds{busy}; {took_s:.0f} s in all")
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
