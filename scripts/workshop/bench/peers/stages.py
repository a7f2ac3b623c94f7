"""Where kvproxy's CPU time goes: by room of the map in docs/architecture.md, in the kernel, and beside a
proxy that does nothing.
"""

import asyncio
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from scripts.workshop.bench.cpu import system_cpu_s
from scripts.workshop.bench.peers.cases import CASES, Case, Unit
from scripts.workshop.bench.peers.ground import Ground, prepared
from scripts.workshop.bench.peers.rounds import Bench, started
from scripts.workshop.bench.peers.routers import BY_CACHE, FLOOR, Mode, Router, floor, kvproxy
from scripts.workshop.live import sampled
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.sampled import What
from scripts.workshop.live.waiting import wait_until

USUAL = ("unary", "pd", "ids", "chunks-64")
WARM_SHARE = 0.25
CALLS_SHARE = 0.25
"""Of a load's usual length. Where `/metrics` is asked before and after each load, calls are those that a
whole load has more than one of this length."""
WRITTEN_S = 10.0
_PLAIN = "kvproxy"


@dataclass(slots=True)
class Stages:
    """What one case took; each list has a value a round."""

    case: Case
    cost_us: list[float] = field(default_factory=list)
    floor_us: list[float] = field(default_factory=list)
    """Of the proxy that does nothing; empty unless one leg is sent and answered whole."""
    kernel_us: float = 0.0
    """Of `cost_us`, the mean: the kernel counts in ticks, so that one round says little."""
    samples: dict[str, int] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    """By room, for each of what the case counts."""

    def room_us(self, room: str) -> float:
        """CPU of a room, for each of what the case counts."""
        share = self.samples.get(room, 0) / max(1, sum(self.samples.values()))
        return statistics.median(self.cost_us) * share


def run(only: Sequence[str], rounds: int) -> None:
    """Measure and print. `only`: keys of cases, the usual ones if empty. Call it from the main thread."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    cases = [case for case in CASES if case.key in (only or USUAL)]
    with tempfile.TemporaryDirectory() as made:
        found = [_stages(pathlib.Path(made) / case.key, case, cores[-1], rounds) for case in cases]
    show(found)


def _stages(folder: pathlib.Path, case: Case, core: int, rounds: int) -> Stages:
    folder.mkdir()
    found = Stages(case)
    with prepared(folder, [case]) as ground:
        plain = kvproxy(ground.backend.engines, case.mode, tokenizer=ground.model)
        watched = {what: _watched(what, case, ground) for what in What}
        routers = [plain, *watched.values()]
        if case.mode is Mode.ONE_LEG and case.unit is Unit.REQUEST:
            routers.append(floor(ground.backend.engines))
        with started(routers, core, ground) as processes:
            bench = Bench(ground, processes)
            for router in routers:
                bench.take(router, case, WARM_SHARE)
            for number in range(rounds):
                print(f"  round {number + 1}: {case.key}", file=sys.stderr, flush=True)
                _round(found, bench, routers, processes, rounds)
                with _looking(processes[watched[What.SAMPLES]], folder / What.SAMPLES) as looks:
                    bench.take(watched[What.SAMPLES], case, 1.0)
                for room, count in looks.items():
                    found.samples[room] = found.samples.get(room, 0) + round(count)
            beside = _Counted({}, 0)
            if case.mode in BY_CACHE:
                beside = _counted(bench, watched[What.CALLS], processes, folder, case, CALLS_SHARE)
            in_all = _counted(bench, watched[What.CALLS], processes, folder, case, 1.0)
            found.calls = _beyond(in_all, beside)
    return found


class _Counted(NamedTuple):
    calls: dict[str, float]
    units: int


def _counted(
    bench: Bench,
    router: Router,
    processes: Mapping[Router, OwnedProcess],
    folder: pathlib.Path,
    case: Case,
    share: float,
) -> _Counted:
    """What is called during one load."""
    with _looking(processes[router], folder / What.CALLS) as calls:
        units = bench.take(router, case, share).units
    return _Counted(calls, units)


def _beyond(long: _Counted, short: _Counted) -> dict[str, float]:
    """The calls for each unit that the longer load has more."""
    units = long.units - short.units
    return {room: (count - short.calls.get(room, 0)) / units for room, count in long.calls.items()}


def _round(
    found: Stages,
    bench: Bench,
    routers: Sequence[Router],
    processes: Mapping[Router, OwnedProcess],
    rounds: int,
) -> None:
    """What it costs when nobody looks, in one of so many rounds."""
    for router in routers:
        if router.name == _PLAIN:
            pid = processes[router].pid
            before_s = system_cpu_s(pid)
            taken = bench.take(router, found.case, 1.0)
            found.cost_us.append(taken.cost_us)
            found.kernel_us += 1e6 * (system_cpu_s(pid) - before_s) / taken.units / rounds
        elif router.name == FLOOR:
            found.floor_us.append(bench.take(router, found.case, 1.0).cost_us)


def _watched(what: What, case: Case, ground: Ground) -> Router:
    program = sampled.command(what, ground.folder / what)
    router = kvproxy(ground.backend.engines, case.mode, tokenizer=ground.model, program=program)
    return replace(router, name=f"kvproxy, {what}")


@contextmanager
def _looking(process: OwnedProcess, file: pathlib.Path) -> Iterator[dict[str, float]]:
    """What is found by room while the block runs; filled once it has ended."""
    found: dict[str, float] = {}
    file.unlink(missing_ok=True)
    process.send(signal.SIGUSR1)
    yield found
    process.send(signal.SIGUSR2)

    told = asyncio.run(wait_until(partial(_told, file), WRITTEN_S, f"{process.name} tells what it found"))
    found.update(told)


async def _told(file: pathlib.Path) -> dict[str, float]:
    return _read(file)


def _read(file: pathlib.Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def show(found: Sequence[Stages]) -> None:
    """Print it in Markdown: CPU in us, and calls of Python functions in brackets."""
    rooms = {room for one in found for room in (*one.samples, *one.calls)}
    most = sorted(rooms, key=lambda room: -max(one.room_us(room) for one in found))
    print(_line("CPU in us (Python calls), each", *(one.case.name for one in found)))
    print(_line(*["---"] * (len(found) + 1)))
    for room in most:
        print(
            _line(
                room,
                *(f"{one.room_us(room):.1f} ({max(0.0, one.calls.get(room, 0.0)):.0f})" for one in found),
            )
        )
    totals = [f"{statistics.median(one.cost_us):.0f} ({sum(one.calls.values()):.0f})" for one in found]
    print(_line("**in all**", *totals))
    print(_line("of it in the kernel", *map(_kernel, found)))
    floors = [f"{statistics.median(one.floor_us):.0f}" if one.floor_us else "-" for one in found]
    print(_line("a proxy on aiohttp and httptools that does nothing", *floors))


def _kernel(one: Stages) -> str:
    """The kernel's share. It counts by its clock's ticks, which hit streams at the same moment again and
    again.
    """
    if one.case.unit is Unit.CHUNK:
        return "-"
    return f"{one.kernel_us / statistics.fmean(one.cost_us):.0%}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
