"""kvproxy beside other routers: one table, with ratios to vllm-router in the like mode."""

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from scripts.workshop.bench.peers import pause, rounds, table
from scripts.workshop.bench.peers.cases import CASES, Case
from scripts.workshop.bench.peers.environment import NoPeersError, ensure_peers
from scripts.workshop.bench.peers.ground import prepared
from scripts.workshop.bench.peers.rounds import Bench, Measured, WrongError
from scripts.workshop.bench.peers.routers import Mode, kvproxy, peers
from scripts.workshop.bench.peers.tools import NoCompilerError

ROUNDS, QUICK_ROUNDS = 5, 3
QUICK_SHARE = 0.4
MEMORY = "memory"
KEYS = (*(case.key for case in CASES), pause.CASE.key, MEMORY)


def run(only: Sequence[str], given_rounds: int | None, *, quick: bool, alone: bool) -> None:
    """Measure and print. `only`: keys of cases, all if empty. `alone`: kvproxy without the others.

    Call it from the main thread, whose core it chooses; SystemExit if this machine cannot do it, or if
    kvproxy served a load wrongly.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("one core for all: latencies mean little", file=sys.stderr)
    os.sched_setaffinity(0, cores[:1])
    wanted = set(only or KEYS)
    cases = [case for case in CASES if case.key in wanted]
    count = given_rounds or (QUICK_ROUNDS if quick else ROUNDS)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        try:
            programs = None if alone else ensure_peers()
            measured: list[Measured] = []
            idle_mib: dict[str, float] = {}
            if cases or MEMORY in wanted:
                share = QUICK_SHARE if quick else 1.0
                measured, idle_mib = _loads(folder, cases, cores[-1], programs, count, share)
            pauses = pause.measure(folder, cores[-1], count) if pause.CASE.key in wanted else None
        except (NoCompilerError, NoPeersError, WrongError) as error:
            sys.exit(f"error: {error}")
    table.show(measured, idle_mib if MEMORY in wanted else {}, pauses)
    table.note(measured, count, time.monotonic() - begun)
    if any(table.OURS in one.wrong for one in measured):
        sys.exit(1)


def _loads(
    folder: pathlib.Path,
    cases: Sequence[Case],
    core: int,
    programs: pathlib.Path | None,
    count: int,
    share: float,
) -> tuple[list[Measured], dict[str, float]]:
    """What each case took, and the MiB of idle routers by name."""
    modes = {case.mode for case in cases} | {Mode.PD}
    with prepared(folder, cases) as ground:
        engines = ground.backend.engines
        routers = [kvproxy(engines, mode, tokenizer=ground.model) for mode in sorted(modes)]
        if programs is not None:
            routers += [router for router in peers(programs, engines, folder) if router.modes & modes]
        with rounds.started(routers, core, ground) as processes:
            idle_mib = {
                router.name: rounds.memory_of(process)
                for router, process in processes.items()
                if Mode.PD in router.modes
            }
            return Bench(ground, processes).run(cases, count, share), idle_mib
