"""A run of chaos: engines fail at random under load, and afterwards every promise is checked.

Warm-up without faults and a rush, vitals, chaos, everything healed, vitals again, verdict. All of it in one
process beside the engines and kvproxy, so that one clock tells when what happened.

In the rush no client pauses: a process keeps the memory of the most that it ever had under way, and frozen
engines let the requests of all clients pile up.
"""

import asyncio
import pathlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import aiohttp

from proxy.tokenizing.engines import CACHE_BYTES
from scripts.workshop.live.metrics import Page
from scripts.workshop.live.quiet import busy
from scripts.workshop.live.waiting import wait_until
from tests.proofs.chaos import verdict as v
from tests.proofs.chaos.clients import Crowd
from tests.proofs.chaos.injector import Injector
from tests.proofs.chaos.journal import Fault, Journal
from tests.proofs.chaos.watching import Watcher
from tests.proofs.chaos.workload import Workload
from tests.proofs.setting import BUFFER_STEPS, LEASE_S, MODEL, Setting, Vitals, processes
from tests.proofs.texts import RightAnswers

SETTLING_S = 30.0
"""For kvproxy and engines to come to rest after the load, beyond the lease of what was stranded."""

BYTES_PER_TOKEN = 4
BYTES_PER_PROMPT = 500
"""Of a prompt whose tokens kvproxy remembers: a number, and what Python needs around an array in a dict."""

PROXY_FLAGS = (
    *("--prefill-timeout", "10", "--first-byte-timeout", "15", "--chunk-timeout", "15"),
    *("--max-attempts", "5"),
)
"""Deadlines so far within the clients' own that a request which meets three hanging engines, one after the
other, can still be served while somebody waits; and more attempts than usual: half of the engines fail at
once here, so one request in ten thousand meets three that do."""

POLICIES = ("least_ms", "cache_affinity")
"""The usual one, by which decode engines serve many requests whole, and one by which every request has two
legs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seconds: float
    seed: int
    logs: pathlib.Path
    clients: int = 200
    prefill: int = 4
    decode: int = 4
    pause_s: float = 1.0
    """Between an answer and the client's next request, on average."""
    every_s: float = 1.5
    """Between two faults, on average."""
    most: int = 2
    """Engines of a role that are touched at a time."""
    faults: Collection[Fault] = ()
    """Those alone; all if there are none."""
    policy: str = POLICIES[0]
    warm_up_s: float = 15.0
    rush_s: float = 15.0
    flags: Sequence[str] = PROXY_FLAGS
    """More words for `kvproxy serve`."""


@dataclass
class Run:
    """What a run was and what came of it."""

    options: Options
    journal: Journal = field(default_factory=Journal)
    crowd: Crowd = field(default_factory=Crowd)
    verdict: v.Verdict = field(default_factory=v.Verdict)
    begun: float = 0.0
    chaos_s: float = 0.0
    before: Vitals | None = None
    after: Vitals | None = None
    page: Page | None = None
    settled_s: float = 0.0

    @property
    def remembered_mib(self) -> float:
        """What kvproxy's tokenizer may remember of the prompts since the first fault."""
        since = self.before.at if self.before is not None else 0.0
        asked = (record for record in self.crowd.records if record.begun >= since)
        size = sum(BYTES_PER_TOKEN * record.plan.prompt_tokens + BYTES_PER_PROMPT for record in asked)
        return min(size, CACHE_BYTES) / (1 << 20)

    @property
    def failures(self) -> list[v.Finding]:
        return self.verdict.findings


def run(options: Options, say: Callable[["Run"], None] = lambda _: None) -> Run:
    """Run it all; `say` is called every second. Call it from the main thread (live/processes.py says why)."""
    made = Run(options)
    flags = ["--policy", options.policy, *options.flags]
    with processes(options.prefill, options.decode, options.logs, profile="unhurried", flags=flags) as (
        fleet,
        proxy,
    ):

        async def within() -> None:
            timeout = aiohttp.ClientTimeout(total=30)
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                await _run(Setting(fleet, proxy, session), made, say)

        asyncio.run(within())
    return made


async def _run(setting: Setting, made: Run, say: Callable[[Run], None]) -> None:
    options = made.options
    made.begun = time.monotonic()
    made.crowd.url = setting.proxy.url
    right = RightAnswers(MODEL)
    talking = asyncio.Event()
    teller = asyncio.get_running_loop().create_task(_tell(made, say, talking), name="teller")
    try:
        await _load(made, right, "w", options.warm_up_s, options.pause_s)
        await _load(made, right, "r", options.rush_s, 0.0)
        await _quiet(setting)
        await asyncio.sleep(5)  # idle connections are closed after 4 s
        made.before = await setting.vitals()
        watcher, over = Watcher(setting), asyncio.Event()
        injector = Injector(
            setting,
            watcher,
            made.journal,
            made.crowd,
            seed=options.seed,
            every_s=options.every_s,
            most=options.most,
            faults=options.faults,
        )
        chaos_begun = time.monotonic()
        try:
            await _chaos(made, right, injector, watcher, over)
        finally:
            injector.thaw()
        made.chaos_s = time.monotonic() - chaos_begun
        await _judge(setting, made, watcher, injector)
    finally:
        talking.set()
        await teller


async def _load(made: Run, right: RightAnswers, label: str, seconds: float, pause_s: float) -> None:
    """Loyal clients ask for so long."""
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, until.set)
    await made.crowd.run(_workloads(made, right, label, disloyal=False), until, pause_s)


def _workloads(made: Run, right: RightAnswers, label: str, *, disloyal: bool) -> list[Workload]:
    """Those of all clients; `label` parts their requests from those of other loads."""
    return [
        Workload(f"{label}{n}", made.options.seed, MODEL, right, disloyal=disloyal)
        for n in range(made.options.clients)
    ]


async def _chaos(
    made: Run, right: RightAnswers, injector: Injector, watcher: Watcher, over: asyncio.Event
) -> None:
    """Clients ask until all faults are healed, so that engines that come back are used again."""
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(made.options.seconds, until.set)
    done = asyncio.Event()

    async def faults() -> None:
        await injector.run(until)
        done.set()

    async def clients() -> None:
        await made.crowd.run(_workloads(made, right, "c", disloyal=True), done, made.options.pause_s)
        over.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(faults())
        group.create_task(clients())
        group.create_task(watcher.run(over))


async def _judge(setting: Setting, made: Run, watcher: Watcher, injector: Injector) -> None:
    verdict, journal, records = made.verdict, made.journal, made.crowd.records
    begun = time.monotonic()
    quiet = await _quiet(setting)
    index = await _index(setting)
    back = await _back(setting, made)
    made.settled_s = time.monotonic() - begun
    made.page = page = await setting.metrics()

    judged = [found for record in records if (found := v.judge(record, journal)) is not None]
    for check in (v.ONE_END, v.RIGHT, v.NO_CLEAN_CUT, v.SERVED):
        verdict.add(check, [found for found in judged if found.check == check])
    with setting.proxy.log.open(encoding="utf-8", errors="replace") as lines:
        logged = v.access_log(lines)
    verdict.add(v.COUNTED, v.check_counts(records, logged, page.by("outcome", "kvproxy_requests_total")))
    stranded = int(page.total("kvproxy_holds_total", end="stranded"))
    verdict.add(v.STRANDED, v.check_stranded(stranded, watcher.stranded, journal, LEASE_S, made.begun))
    verdict.add(v.TAKEN_BACK, [*injector.findings, *watcher.silent])
    verdict.add(v.QUIET, quiet)
    verdict.add(v.BACK, back)
    verdict.add(v.INDEX, index)


async def _quiet(setting: Setting) -> list[str]:
    """Wait until engines and kvproxy are at rest; what still is not then."""
    left: list[str] = []

    async def at_rest() -> bool:
        left[:] = await busy(setting.session, [e.url for e in setting.engines], setting.proxy.url)
        held = {spec.name: (await setting.engine(spec.name))["holds"] for spec in setting.engines}
        left.extend(f"{name} has {holds} holds" for name, holds in held.items() if holds)
        left.extend(
            f"/status: {address} has {running} in flight"
            for address, seen in (await setting.status()).items()
            if (running := {phase: n for phase, n in seen["in_flight"].items() if n})
        )
        await asyncio.sleep(0.2)
        return not left

    try:
        await wait_until(at_rest, LEASE_S + SETTLING_S, "engines and kvproxy are at rest")
    except TimeoutError:
        return left
    return []


async def _index(setting: Setting) -> list[str]:
    """Wait until kvproxy knows every engine's cache for certain and counts its very blocks; what it gets
    wrong."""
    wrong: list[str] = []

    async def exact() -> bool:
        wrong[:] = []
        status = await setting.status()
        for spec in setting.engines:
            state, seen = await setting.engine(spec.name), status.get(spec.address)
            if seen is None or seen["state"] != "up":
                wrong.append(f"{spec.name} ({spec.address}) is not up: {seen}")
            elif seen["index"] == "partial" and sum(state["published"]) > BUFFER_STEPS:
                continue  # an engine that published more than it can replay cannot be known wholly
            elif seen["index"] != "exact" or seen["blocks"] != sum(state["cached_blocks"]):
                wrong.append(
                    f"{spec.name} ({spec.address}): {seen['index']}, {seen['blocks']} blocks,"
                    f" the engine has {state['cached_blocks']}"
                )
        await asyncio.sleep(0.2)
        return not wrong

    try:
        await wait_until(exact, SETTLING_S, "the index is exact")
    except TimeoutError:
        return wrong
    return []


async def _back(setting: Setting, made: Run) -> list[str]:
    """Wait until kvproxy's vitals are what they were before; what they are otherwise."""
    before, left = made.before, [""]
    if before is None:
        raise RuntimeError("no vitals were taken before the chaos")

    async def as_before() -> bool:
        made.after = await setting.vitals()
        left[:] = v.check_back(before, made.after, made.remembered_mib)
        await asyncio.sleep(0.3)
        return not left

    try:
        await wait_until(as_before, SETTLING_S, "kvproxy is as before")
    except TimeoutError:
        return left
    return []


async def _tell(made: Run, say: Callable[[Run], None], until: asyncio.Event) -> None:
    while not until.is_set():
        say(made)
        try:
            async with asyncio.timeout(1):
                await until.wait()
        except TimeoutError:
            pass


__all__ = ["Options", "Run", "run"]
