"""Every load goes to every router of its mode in turns, round by round, so that what the machine does
meanwhile hits them alike.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from scripts.workshop.bench.cpu import family, family_cpu_s, machine_cpu_s, memory_mib, on_core
from scripts.workshop.bench.peers.backend import Legs, answers
from scripts.workshop.bench.peers.cases import Case, Unit
from scripts.workshop.bench.peers.ground import Ground, bodies_file
from scripts.workshop.bench.peers.ours import Knew, is_prepared, is_ready, knew
from scripts.workshop.bench.peers.routers import BY_CACHE, Mode, Router
from scripts.workshop.live.processes import OwnedProcess, stop_all
from scripts.workshop.live.waiting import wait_until

READY_S = 60.0
LOAD_S = 100.0
"""The longest that one load may take."""
WARM_UP_S = 0.3


class Taken(NamedTuple):
    """One load at one router."""

    cost_us: float
    """CPU of the router for each of what the case counts."""
    p50_us: float
    other_cores: float
    """CPU that programs took which are none of ours, in cores: a figure with much of it is worth less."""
    units: int
    """How many there were of what the case counts."""


@dataclass(slots=True)
class Measured:
    """What a case took, by the router's name."""

    case: Case
    taken: dict[str, list[Taken]] = field(default_factory=dict)
    direct_p50_us: list[float] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    """Routers that did not serve it as they should, and what was wrong."""

    def cost_us(self, name: str) -> float | None:
        """The median over the rounds, or None if it was not measured."""
        if name in self.wrong or name not in self.taken:
            return None
        return statistics.median(taken.cost_us for taken in self.taken[name])

    def added_p50_us(self, name: str) -> float | None:
        """Beyond what the backend asked directly takes, for one leg."""
        if not self.direct_p50_us or self.cost_us(name) is None:
            return None
        through = statistics.median(taken.p50_us for taken in self.taken[name])
        return through - statistics.median(self.direct_p50_us)


class WrongError(Exception):
    """A load did not go as it should have; the message says how."""


@contextmanager
def started(routers: Sequence[Router], core: int, ground: Ground) -> Iterator[dict[Router, OwnedProcess]]:
    """Routers that answer, on a core; ended afterwards. kvproxy then knows the engines' caches where
    it places by them. RuntimeError or TimeoutError if one does not get ready.
    """
    env = {name: value for name, value in os.environ.items() if name != "ADMIN_API_KEY"}
    processes: dict[Router, OwnedProcess] = {}
    with ExitStack() as stack:
        stack.callback(lambda: stop_all(list(processes.values())))
        for number, router in enumerate(routers):
            log = ground.folder / f"{number}-{router.name}.log"
            with on_core(core):
                processes[router] = OwnedProcess(router.name, router.command, log, env)
        for router, process in processes.items():
            asyncio.run(wait_until(partial(_settled, router, process), READY_S, f"{router.name} answers"))
            if process.exit_code is not None:
                raise RuntimeError(f"{router.name} ended; the end of its log:\n{process.tail()}")
            for mode in router.modes & BY_CACHE if router.ours else ():
                knows = partial(_prepared, router, mode, ground.blocks)
                asyncio.run(wait_until(knows, READY_S, "kvproxy knows what engines have cached"))
        yield processes


async def _settled(router: Router, process: OwnedProcess) -> bool:
    return process.exit_code is not None or (is_ready(router) if router.ours else answers(router.port))


async def _prepared(router: Router, mode: Mode, blocks: int) -> bool:
    return is_prepared(router, mode, blocks)


class Bench:
    """Loads, and what they cost each router."""

    def __init__(self, ground: Ground, routers: Mapping[Router, OwnedProcess]) -> None:
        self._ground = ground
        self._routers = routers

    def run(self, cases: Sequence[Case], rounds: int, share: float) -> list[Measured]:
        """All of them, after a warm-up. `share`: of each load's usual length."""
        measured = [Measured(case) for case in cases]
        for one in measured:
            self._round(one, min(share, WARM_UP_S / one.case.seconds))
            one.taken.clear()
            one.direct_p50_us.clear()
        for number in range(rounds):
            for one in measured:
                begun = time.monotonic()
                self._round(one, share)
                took = time.monotonic() - begun
                print(f"  round {number + 1}: {one.case.key} {took:.0f} s", file=sys.stderr, flush=True)
        return measured

    def _round(self, one: Measured, share: float) -> None:
        case = one.case
        if case.latency:
            told = self._send(self._ground.backend.engines.decode[0], case, share)
            one.direct_p50_us.append(told["lat_us"]["p50"])
        for router in self._routers:
            if case.mode in router.modes and router.name not in one.wrong:
                try:
                    one.taken.setdefault(router.name, []).append(self.take(router, case, share))
                except WrongError as wrong:
                    one.wrong[router.name] = str(wrong)

    def take(self, router: Router, case: Case, share: float) -> Taken:
        """Send one load to one router. Raises WrongError."""
        process = self._routers[router]
        before = knew(router, case.mode) if router.ours and case.mode in BY_CACHE else None
        legs, backend_s = self._ground.backend.legs(), family_cpu_s(self._ground.backend.process.pid)
        machine_s, used_s, begun = machine_cpu_s(), family_cpu_s(process.pid), time.monotonic()
        told = self._send(router.port, case, share)
        used_s, lasted_s = family_cpu_s(process.pid) - used_s, time.monotonic() - begun
        backend_s = family_cpu_s(self._ground.backend.process.pid) - backend_s
        others_s = machine_cpu_s() - machine_s - used_s - backend_s - told["cpu"]
        check(told, self._ground.backend.legs().since(legs), router, case)
        if before is not None:
            check_knowledge(told, knew(router, case.mode).since(before))
        units = told["chunks"] if case.unit is Unit.CHUNK else told["completed"]
        return Taken(1e6 * used_s / units, told["lat_us"]["p50"], max(0.0, others_s / lasted_s), units)

    def _send(self, port: int, case: Case, share: float) -> dict[str, Any]:
        """What the load generator told of one load; WrongError if not all was answered well."""
        file = bodies_file(self._ground.folder, case)
        command = [str(self._ground.load), "-p", str(port), "-u", case.path, "-B", str(file)]
        command += ["-t"] if case.with_ids else []
        command += ["-c", str(case.at_once), "-d", str(case.seconds * share), "-r", str(case.spread_us)]
        if case.asked.stream:
            command += ["-s", "-k", str(case.asked.max_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, check=False)
        if done.returncode:
            raise WrongError(f"the load generator failed: {done.stderr.strip()}")
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def check(told: Mapping[str, Any], legs: Legs, router: Router, case: Case) -> None:
    """WrongError unless every request was answered well, once, through as many legs as it should.

    `told`: by the load generator. `legs`: those of the engines meanwhile.
    """
    answered = told["completed"]
    amiss = {what: told[what] for what in ("errors", "badstatus", "incomplete") if told[what]}
    if amiss or not answered:
        raise WrongError(f"{answered} answered, {amiss}")
    two = case.mode is not Mode.ONE_LEG
    wanted = Legs(answered * two, answered, answered * (two and router.passes_params))
    if legs != wanted:
        raise WrongError(f"the engines served {legs}, not {wanted}")


def check_knowledge(told: Mapping[str, Any], known: Knew) -> None:
    """WrongError unless kvproxy knew the tokens of every prompt, and what of it was cached."""
    if known.prompts != told["completed"]:
        raise WrongError(f"it knew the tokens of {known.prompts} prompts of {told['completed']}")
    if not known.predicted or known.predicted != known.reported:
        raise WrongError(f"it took {known.predicted} tokens for cached, engines reported {known.reported}")


def memory_of(process: OwnedProcess) -> float:
    """MiB of a router, its children included."""
    return sum(map(memory_mib, family(process.pid)))
