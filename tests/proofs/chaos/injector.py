"""Hurts engines at random, writes down what it does, and always leaves a prefill and a decode engine alone.

But for want of room: for a moment all engines of a role may be full, and then nobody is lost, but waits. Each
fault is a course: strike, let it last, heal, wait until kvproxy uses the engine again. Until then the engine
counts as touched. What kvproxy does not take back within RECOVERY_S is a finding.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import aiohttp

from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.live.ports import is_free
from scripts.workshop.live.waiting import wait_until
from tests.proofs.chaos.clients import Crowd
from tests.proofs.chaos.journal import Entry, Fault, Journal
from tests.proofs.chaos.watching import Instances, Watcher
from tests.proofs.setting import LEASE_S, MODEL, Setting

RECOVERY_S = 60.0
FALLING_ASLEEP_S = LEASE_S + 15.0
"""An engine stays awake until what it has prefilled is fetched, or its lease is over."""
BURST_SHARE = 0.4
"""Of the cases of engines without room: all of the role that are well but one, at once."""
ALL_FULL_SHARE = 0.15
"""The same without that one, where all are well."""
STARTING_S = 60.0
SLOW_BELOW_S = 2.0
ARRIVING_S = 0.25
"""A request of so long ago may not have reached its engine yet."""
REST_S = 0.5
"""An engine that is back is left alone for so long at least."""

WEIGHTS = {
    Fault.KILL: 3,
    Fault.RESTART: 2,
    Fault.FREEZE: 2,
    Fault.HANG: 1,
    Fault.SLOW: 2,
    Fault.STATUS: 3,
    Fault.FULL: 4,
    Fault.EARLY_ERROR: 3,
    Fault.LATE_ERROR: 3,
    Fault.SLEEP: 2,
    Fault.CUT: 4,
    Fault.EVENT_GAP: 3,
    Fault.EVENT_STALL: 2,
    Fault.DRAIN: 2,
    Fault.REMOVE: 2,
}


class Injector:
    """Strikes about every `every_s` seconds; at most `most` engines of a role are touched at a time."""

    def __init__(
        self,
        setting: Setting,
        watcher: Watcher,
        journal: Journal,
        crowd: Crowd,
        *,
        seed: int,
        every_s: float,
        most: int,
        faults: Collection[Fault] = (),
    ) -> None:
        """`faults`: those alone; all if there are none."""
        smallest = min(len(setting.fleet.of_role(role)) for role in ("prefill", "decode"))
        if not 0 < most < smallest:
            raise ValueError(
                f"of {smallest} engines of a role 1 to {smallest - 1} can be touched, not {most}"
            )
        self._setting = setting
        self._watcher = watcher
        self._journal = journal
        self._crowd = crowd
        self._random = random.Random(seed)  # repeatable on purpose
        self._every_s = every_s
        self._most = most
        self._weights = {fault: weight for fault, weight in WEIGHTS.items() if not faults or fault in faults}
        self._frozen: set[str] = set()
        self.findings: list[str] = []
        self._courses: dict[Fault, Callable[[EngineSpec, Entry], Awaitable[None]]] = {
            Fault.KILL: self._kill,
            Fault.RESTART: self._restart,
            Fault.FREEZE: self._freeze,
            Fault.HANG: self._hang,
            Fault.SLOW: self._slow,
            Fault.STATUS: self._status,
            Fault.FULL: self._full,
            Fault.EARLY_ERROR: self._early_error,
            Fault.LATE_ERROR: self._late_error,
            Fault.SLEEP: self._sleep,
            Fault.CUT: self._cut,
            Fault.EVENT_GAP: self._event_gap,
            Fault.EVENT_STALL: self._event_stall,
            Fault.DRAIN: self._drain,
            Fault.REMOVE: self._remove,
        }

    async def run(self, until: asyncio.Event) -> None:
        """Strike until the event; returns when everything is healed and back."""
        async with asyncio.TaskGroup() as courses:
            while not until.is_set():
                if (spec := self._next()) is not None:
                    fault = self._random.choices(list(self._weights), list(self._weights.values()))[0]
                    for struck in self._burst(spec) if fault is Fault.FULL else [spec]:
                        entry = self._journal.begin(struck.name, struck.address, fault, time.monotonic())
                        courses.create_task(self._course(struck, entry))
                await _pause(until, self._random.expovariate(1 / self._every_s))

    def thaw(self) -> None:
        """Let every process run, so that it can be ended."""
        for name in list(self._frozen):
            self._signal(name, signal.SIGCONT)

    def _next(self) -> EngineSpec | None:
        touched = self._journal.touched()
        fleet = self._setting.fleet
        free: list[EngineSpec] = []
        for role in ("prefill", "decode"):
            specs = fleet.of_role(role)
            well = [spec for spec in specs if spec.name not in touched]
            if len(specs) - len(well) < self._most:
                free += well
        return self._random.choice(free) if free else None

    def _burst(self, spec: EngineSpec) -> list[EngineSpec]:
        """That engine, or with it all others of its role that are well but one; at times that one, too."""
        of_role = self._setting.fleet.of_role(spec.role)
        others = [each for each in of_role if each.name not in {spec.name, *self._journal.touched()}]
        dice = self._random.random()
        if dice < ALL_FULL_SHARE and len(others) == len(of_role) - 1:
            return [spec, *others]
        return [spec, *others[1:]] if dice < ALL_FULL_SHARE + BURST_SHARE else [spec]

    async def _course(self, spec: EngineSpec, entry: Entry) -> None:
        try:
            await self._courses[entry.fault](spec, entry)
            entry.healed = time.monotonic()
            await self._back(spec)
            await asyncio.sleep(REST_S)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.findings.append(f"{type(error).__name__}: {error} after {entry.fault} of {spec.name}")
        finally:
            entry.ended = time.monotonic()

    async def _back(self, spec: EngineSpec) -> None:
        def back(instances: Instances) -> bool:
            seen = instances.get(spec.address)
            return seen is not None and seen["state"] == "up" and seen["index"] != "unknown"

        await self._watcher.until(back, RECOVERY_S, f"kvproxy uses {spec.name} ({spec.address}) again")

    # -- courses ------------------------------------------------------------------------------------------

    async def _lasts(self, entry: Entry, min_s: float, max_s: float) -> None:
        seconds = self._random.uniform(min_s, max_s)
        entry.detail = f"{entry.detail} for {seconds:.1f} s".strip()
        await asyncio.sleep(seconds)

    async def _kill(self, spec: EngineSpec, entry: Entry) -> None:
        await self._count_on_loss(spec, entry)
        entry.begun = time.monotonic()
        self._setting.fleet.kill(spec.name)
        await self._lasts(entry, 0.2, 6)
        await self._start(spec)

    async def _start(self, spec: EngineSpec) -> None:
        async def free() -> bool:
            return is_free(spec.port)

        async def healthy() -> bool:
            try:
                async with self._setting.session.get(f"{spec.url}/health") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await wait_until(free, STARTING_S, f"port {spec.port} of {spec.name} is free")
        self._setting.fleet.start([spec.name])
        await wait_until(healthy, STARTING_S, f"{spec.name} answers again")

    async def _restart(self, spec: EngineSpec, entry: Entry) -> None:
        await self._count_on_loss(spec, entry)
        entry.begun = time.monotonic()
        await self._setting.engine(spec.name, {"do": "restart"})

    async def _freeze(self, spec: EngineSpec, entry: Entry) -> None:
        await self._count_on_loss(spec, entry)
        entry.begun = time.monotonic()
        self._signal(spec.name, signal.SIGSTOP)
        self._frozen.add(spec.name)
        try:
            await self._lasts(entry, 3, 20)
        finally:
            self._signal(spec.name, signal.SIGCONT)
            self._frozen.discard(spec.name)
            self._count_unanswered(spec, entry)

    def _signal(self, name: str, number: signal.Signals) -> None:
        self._setting.fleet.send(name, number)

    async def _hang(self, spec: EngineSpec, entry: Entry) -> None:
        # What hangs goes on hanging afterwards: kvproxy finds out in time, or its deadlines end it.
        await self._fault(spec, {"kind": "hang", "path": "/v1/"})
        await self._lasts(entry, 8, 20)
        await self._clear(spec)
        self._count_unanswered(spec, entry)

    async def _slow(self, spec: EngineSpec, entry: Entry) -> None:
        delay_s = self._random.uniform(0.1, SLOW_BELOW_S)
        entry.detail = f"by {delay_s:.1f} s"
        await self._fault(spec, {"kind": "slow", "path": "/v1/", "delay_s": delay_s})
        await self._lasts(entry, 3, 10)
        await self._clear(spec)

    async def _status(self, spec: EngineSpec, entry: Entry) -> None:
        status = self._random.choice((500, 502, 504))
        path = self._random.choice(("/v1/", "/v1/c"))
        entry.detail = f"{status} on {path}"
        await self._fault(spec, {"kind": "status", "path": path, "status": status})
        await self._lasts(entry, 1, 8)
        await self._clear(spec)

    async def _full(self, spec: EngineSpec, entry: Entry) -> None:
        status, told = self._random.choice((503, 429)), self._random.choice((None, None, "0", "1", "60"))
        times = self._random.choice((None, self._random.randint(1, 100)))
        entry.detail = f"{status} to {times or 'all'} legs, Retry-After {told}"
        fault = {"kind": "status", "path": "/v1/c", "status": status, "times": times, "retry_after": told}
        await self._fault(spec, fault)
        await self._lasts(entry, *self._how_long_full(spec))
        await self._clear(spec)

    def _how_long_full(self, spec: EngineSpec) -> tuple[float, float]:
        """The fewer are left for the others' work, the shorter."""
        full = {
            entry.name for entry in self._journal.entries if entry.fault is Fault.FULL and entry.ended is None
        }
        of_role = [each.name for each in self._setting.fleet.of_role(spec.role)]
        left = sum(name not in full for name in of_role)
        return (0.3, 2) if not left else (1, 4) if left == 1 else (1, 12)

    async def _early_error(self, spec: EngineSpec, entry: Entry) -> None:
        # A chat begins with a chunk that only names the role: nothing real.
        path, chunks = self._random.choice((("/v1/c", 0), ("/v1/chat", 1)))
        times = self._random.randint(1, 12)
        entry.detail = f"{times} answers of {path} after {chunks} chunks"
        await self._fault(
            spec, {"kind": "error", "path": path, "status": 500, "after_chunks": chunks, "times": times}
        )
        await self._lasts(entry, 1, 5)
        await self._clear(spec)

    async def _late_error(self, spec: EngineSpec, entry: Entry) -> None:
        times, chunks = self._random.randint(1, 12), self._random.randint(2, 40)
        entry.detail = f"{times} answers after {chunks} chunks"
        await self._fault(
            spec, {"kind": "error", "path": "/v1/c", "status": 500, "after_chunks": chunks, "times": times}
        )
        await self._lasts(entry, 1, 5)
        await self._clear(spec)
        await asyncio.sleep(3)  # a stream that is to fail goes on until it has come so far

    async def _sleep(self, spec: EngineSpec, entry: Entry) -> None:
        level, mode = self._random.randint(0, 2), self._random.choice(("abort", "wait", "keep"))
        entry.detail = f"at level {level}, mode {mode}"
        entry.cuts = mode == "abort" or (mode == "keep" and level > 0)  # what is kept at level 0 goes on
        timeout = aiohttp.ClientTimeout(total=FALLING_ASLEEP_S)
        asked = {"level": str(level), "mode": mode}
        async with self._setting.session.post(f"{spec.url}/sleep", params=asked, timeout=timeout) as answer:
            answer.raise_for_status()
        await self._lasts(entry, 0.5, 8)
        async with self._setting.session.post(f"{spec.url}/wake_up") as answer:
            answer.raise_for_status()
        if level > 0:  # it tells of its empty cache with its next batch: somebody has to make one
            await self._ask_directly(spec)

    async def _ask_directly(self, spec: EngineSpec) -> None:
        body = {"model": MODEL, "prompt": self._random.choices(range(100, 4000), k=100), "max_tokens": 1}
        async with self._setting.session.post(f"{spec.url}/v1/completions", json=body) as answer:
            answer.raise_for_status()

    async def _cut(self, spec: EngineSpec, entry: Entry) -> None:
        after = 0 if self._random.random() < 0.3 else self._random.randint(1, 6000)
        times = self._random.randint(1, 12)
        entry.detail = f"{times} answers after {after} bytes"
        if spec.role == "prefill":
            entry.may_strand = times  # what is held is named in an answer nobody got
        await self._fault(spec, {"kind": "cut", "path": "/v1/c", "after_bytes": after, "times": times})
        await self._lasts(entry, 1, 5)
        await self._clear(spec)
        # A stream that is to be cut goes on until it has come so far.
        await asyncio.sleep(3)

    async def _event_gap(self, spec: EngineSpec, entry: Entry) -> None:
        count = self._random.randint(1, 30)
        entry.detail = f"of {count} batches"
        await self._setting.engine(spec.name, {"do": "drop_events", "count": count})

    async def _event_stall(self, spec: EngineSpec, entry: Entry) -> None:
        await self._setting.engine(spec.name, {"do": "freeze_events"})
        await self._lasts(entry, 0.5, 8)
        await self._setting.engine(spec.name, {"do": "thaw_events"})

    async def _drain(self, spec: EngineSpec, entry: Entry) -> None:
        self._expect(200, *await self._setting.admin("drain", spec))
        await self._lasts(entry, 0.5, 8)
        self._expect(200, *await self._setting.admin("drain", spec, undo=True))

    async def _remove(self, spec: EngineSpec, entry: Entry) -> None:
        self._expect(200, *await self._setting.admin("remove", spec))

        def gone(instances: Instances) -> bool:
            return spec.address not in instances

        await self._watcher.until(gone, RECOVERY_S, f"{spec.name} is gone once its legs have ended")
        await self._lasts(entry, 0.2, 4)
        self._expect(200, *await self._setting.admin("add", spec))

    def _expect(self, wanted: int, status: int, words: str) -> None:
        if status != wanted:
            self.findings.append(f"the admin API answered {status}, not {wanted}: {words}")

    async def _fault(self, spec: EngineSpec, fault: dict[str, Any]) -> None:
        await self._setting.engine(spec.name, {"add": fault})

    async def _clear(self, spec: EngineSpec) -> None:
        await self._setting.engine(spec.name, {"clear": True})

    async def _count_on_loss(self, spec: EngineSpec, entry: Entry) -> None:
        """Whatever a prefill engine holds or computes now nobody can give back once it is gone."""
        if spec.role != "prefill":
            return
        asked_at = time.monotonic()
        state = await self._setting.engine(spec.name)
        arriving = self._crowd.begun_since(asked_at - ARRIVING_S)
        entry.may_strand = state["holds"] + state["unfinished"] + arriving

    def _count_unanswered(self, spec: EngineSpec, entry: Entry) -> None:
        """Of a prefill leg that is never answered nobody knows what it left behind."""
        entry.may_strand += self._watcher.most_prefills(spec.address, entry.begun)


async def _pause(until: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
