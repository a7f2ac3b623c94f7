"""One run: mixed traffic all along, something new in each phase, then rest, and a judgement of every prefill leg.

All of it in one process beside engines and kvproxys, so that one clock tells when what happened.
"""

import asyncio
import enum
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from live.metrics import read_metrics
from live.quiet import wait_quiet
from live.waiting import wait_until
from vllm_cpu.engine import EngineSpec
from vllm_cpu.fleet import Fleet

from proof.exactness import setting
from proof.exactness import verdict as v
from proof.exactness.history import Asked
from proof.exactness.legs import Crowd, Leg
from proof.exactness.looking import Look, Looks, Meter, grown
from proof.exactness.prompts import MIXED, PRESSURE, Kind, Prompts
from proof.exactness.setting import LEASE_S, START_S, STATE_DIR, Routers, knows
from proof.exactness.witness import Witness
from proof.verdict import Verdict

FIRST, LATE = "first", "late"
"""The kvproxys."""

_SETTLE_S = 90.0
"""For engines and kvproxy to come to rest, beyond the lease of what was stranded by a kill."""
_KNOWN_S = 120.0
"""For kvproxy to know an engine that came back, or all of them when it did."""
_WRITTEN_S = 180.0
_WRAP_S = 300.0
_LATE_S = 600.0
_COUNTED_S = 20.0
_DOWN_S = 3.0
"""How long what was killed stays away."""
_BESIDE_LATE = 2
"""Clients of the first kvproxy that go on beside the late joiner's."""


class Phase(enum.StrEnum):
    """What happens, in this order."""

    MIXED = "mixed"
    PRESSURE = "evictions"
    RESETS = "resets"
    ENGINE = "engine killed"
    ROUTER = "kvproxy killed"
    LATE = "late joiner"
    QUIET = "at rest"


_SHARES = {Phase.MIXED: 0.2, Phase.PRESSURE: 0.2, Phase.RESETS: 0.2, Phase.ENGINE: 0.15, Phase.ROUTER: 0.15}
"""Of the time; the late joiner gets the rest, and the end takes what it takes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seconds: float
    seed: int
    logs: pathlib.Path
    real: bool = False
    phases: Collection[Phase] = tuple(Phase)
    clients: int = 6
    pause_s: float = 0.3
    """Between an answer and the client's next request, on average."""
    prefill_tokens: int = 8192
    decode_tokens: int = 16_384
    buffer_steps: int = 300
    resets: int = 4
    late_requests: int = 200
    quiet_requests: int = 60


@dataclass
class Run:
    """What a run was and what came of it."""

    options: Options
    verdict: Verdict = field(default_factory=Verdict)
    legs: list[Leg] = field(default_factory=list)
    quiet: list[v.QuietLeg] = field(default_factory=list)
    misses: list[v.Miss] = field(default_factory=list)
    meters: dict[str, dict[str, Meter]] = field(default_factory=dict)
    """By phase and kvproxy."""
    journal: list[tuple[float, str]] = field(default_factory=list)
    kills: list[tuple[float, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.time)
    metered: bool = False
    phase: str = "starting"
    wrong: list[str] = field(default_factory=list)
    """What was to happen and did not."""

    def note(self, words: str) -> None:
        self.journal.append((time.time(), words))

    @property
    def failures(self) -> int:
        return len(self.verdict.findings)


def run(
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    tell: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Run it all; `tell` is called every second. Call it from the main thread (live/processes.py says why)."""
    wanted = setting.specs(
        prefill_tokens=options.prefill_tokens,
        decode_tokens=options.decode_tokens,
        buffer_steps=options.buffer_steps,
    )
    made = Run(options)
    with setting.engines(wanted, options.logs, real=options.real, say=say) as fleet:
        routers = Routers(fleet)
        try:
            with Witness(fleet.of_role("prefill")) as witness:
                asyncio.run(_whole(fleet, routers, witness, made, tell))
        finally:
            routers.stop()
    return made


async def _whole(
    fleet: Fleet, routers: Routers, witness: Witness, made: Run, tell: Callable[[Run], None]
) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        show = _Show(fleet, routers, witness, session, made)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_tell(made, tell, over), name="teller")
            try:
                await show.all()
            finally:
                over.set()


async def _tell(made: Run, tell: Callable[[Run], None], over: asyncio.Event) -> None:
    while not over.is_set():
        tell(made)
        await _wait(over, 1.0)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        pass


class _Show:
    """The phases of one run."""

    def __init__(
        self,
        fleet: Fleet,
        routers: Routers,
        witness: Witness,
        session: aiohttp.ClientSession,
        made: Run,
    ) -> None:
        self._fleet = fleet
        self._routers = routers
        self._witness = witness
        self._session = session
        self._made = made
        self._options = made.options
        self._prefill: list[EngineSpec] = fleet.of_role("prefill")
        self._looks: dict[str, Looks] = {}
        self._crowds: dict[str, Crowd] = {}
        self._over = asyncio.Event()

    async def all(self) -> None:
        self._made.begun = time.time()
        try:
            async with asyncio.TaskGroup() as group:
                await self._join(group, FIRST)
                await self._traffic(group)
                await self._rest()
                self._over.set()
        finally:
            self._over.set()
        await self._judge()

    async def _join(self, group: asyncio.TaskGroup, name: str) -> None:
        """Start a kvproxy and wait until it knows something of every engine."""
        proxy = self._routers.start(name)
        await asyncio.to_thread(proxy.wait_status, "/ready", 200, START_S)
        self._looks[name] = Looks(proxy, self._session)
        self._crowds[name] = Crowd(
            name,
            proxy.url,
            self._session,
            self._options.seed,
            self._options.pause_s,
            mix=MIXED,
            legs=self._made.legs,
        )
        group.create_task(self._looks[name].run(self._over), name=f"looks at {name}")
        self._made.note(f"kvproxy {name} started")
        await self._known(name, {"exact"} if name == FIRST else {"exact", "partial"})

    async def _known(self, name: str, worth: set[str]) -> None:
        """Wait until a kvproxy's index of every prefill engine is worth something."""
        seen: list[str] = []

        async def known() -> bool:
            look = await self._looks[name].look()
            seen[:] = [look.worth(spec.address) for spec in self._prefill] if look else ["no answer"]
            return set(seen) <= worth

        try:
            await wait_until(known, _KNOWN_S, f"kvproxy {name} knows the engines")
        except TimeoutError:
            self._made.wrong.append(f"kvproxy {name} had {seen} for {_KNOWN_S:.0f} s, not {sorted(worth)}")

    async def _traffic(self, group: asyncio.TaskGroup) -> None:
        """Clients of the first kvproxy ask all along."""
        acts: Mapping[Phase, Callable[[], Awaitable[None]]] = {
            Phase.MIXED: self._mixed,
            Phase.PRESSURE: self._pressure,
            Phase.RESETS: self._resets,
            Phase.ENGINE: self._engine,
            Phase.ROUTER: self._router,
        }
        until = asyncio.Event()
        clients = group.create_task(self._crowds[FIRST].run(self._options.clients, until), name="clients")
        try:
            for phase, act in acts.items():
                if phase not in self._options.phases:
                    continue
                async with self._phase(phase):
                    end = time.monotonic() + self._options.seconds * _SHARES[phase]
                    await act()
                    await asyncio.sleep(end - time.monotonic())
            if Phase.LATE in self._options.phases:
                await self._wrap()
        finally:
            until.set()
        await clients
        if Phase.LATE in self._options.phases:
            await self._late(group)

    @asynccontextmanager
    async def _phase(self, phase: Phase) -> AsyncIterator[None]:
        self._made.phase = phase
        self._made.note(f"phase {phase}")
        for crowd in self._crowds.values():
            crowd.phase = phase
        before = await self._meters()
        yield
        after = await self._meters()
        self._made.meters[phase] = {name: grown(before.get(name, {}), after[name]) for name in after}

    async def _meters(self) -> dict[str, Meter]:
        for looks in self._looks.values():
            await looks.look()
        return {name: looks.meter for name, looks in self._looks.items()}

    # ---- the phases ---------------------------------------------------------------------------------------

    async def _mixed(self) -> None:
        self._crowds[FIRST].mix = MIXED

    async def _pressure(self) -> None:
        """Long documents push everything else out."""
        self._crowds[FIRST].mix = PRESSURE
        await asyncio.sleep(self._options.seconds * _SHARES[Phase.PRESSURE])
        self._crowds[FIRST].mix = MIXED

    async def _resets(self) -> None:
        """Each prefill engine's cache is cleared in turn, at rest, for an engine at work refuses."""
        every_s = self._options.seconds * _SHARES[Phase.RESETS] / self._options.resets
        cleared = {spec.address: self._witness[spec.address].cleared for spec in self._prefill}
        due = dict.fromkeys(cleared, 0)
        for n in range(self._options.resets):
            spec = self._prefill[n % len(self._prefill)]
            begun = time.monotonic()
            async with self._at_rest() as resting:
                if resting:
                    async with self._session.post(f"{spec.url}/reset_prefix_cache") as answer:
                        answer.raise_for_status()
                    due[spec.address] += 1
                    self._made.note(f"{spec.name} ({spec.address}) was reset")
            await asyncio.sleep(begun + every_s - time.monotonic())
        for address, count in due.items():
            seen = self._witness[address].cleared - cleared[address]
            if count and not seen:
                self._made.wrong.append(f"{address} was reset {count} times and told of none")

    @asynccontextmanager
    async def _at_rest(self) -> AsyncIterator[bool]:
        """Nobody asks meanwhile, and nothing is held; False if that could not be had."""
        crowd = self._crowds[FIRST]
        crowd.go.clear()
        try:
            urls = [spec.url for spec in self._fleet.specs.values()]
            try:
                await wait_quiet(self._session, urls, self._routers[FIRST].url, LEASE_S + _SETTLE_S)
                yield True
            except TimeoutError as error:
                self._made.wrong.append(f"no rest for a reset: {error}")
                yield False
        finally:
            crowd.go.set()

    async def _engine(self) -> None:
        """A prefill engine dies at work and comes back at its address."""
        spec = self._prefill[0]
        begun = time.time()
        self._fleet.kill(spec.name)
        self._made.note(f"{spec.name} ({spec.address}) was killed")
        await asyncio.sleep(_DOWN_S)
        self._witness.killed(spec.address, begun)  # what it had sent by then has been heard
        self._fleet.restart(spec.name)
        await asyncio.to_thread(self._fleet.wait_healthy, [spec.name], START_S)
        await self._known(FIRST, {"exact"})
        self._made.note(f"{spec.name} is back")
        self._made.kills.append((begun, time.time()))

    async def _router(self) -> None:
        """Kvproxy dies at work and comes back on its port and its state directory."""
        looks = self._looks[FIRST]
        if knows(STATE_DIR):
            await self._written(time.time())
        await looks.look()
        begun = time.time()
        looks.dies()
        self._routers.kill(FIRST)
        self._made.note(f"kvproxy {FIRST} was killed")
        proxy = self._routers.start(FIRST)
        await asyncio.to_thread(proxy.wait_status, "/ready", 200, START_S)
        looks.lives(proxy)
        self._made.note(f"kvproxy {FIRST} is back")
        if knows(STATE_DIR):
            wrong = len(self._made.wrong)
            await self._known(FIRST, {"exact"})
            self._made.verdict.add(v.RETURNED, self._made.wrong[wrong:])
            del self._made.wrong[wrong:]
        else:
            await self._known(FIRST, {"exact", "partial"})
        self._made.kills.append((begun, time.time()))

    async def _written(self, since: float) -> None:
        """Wait for snapshots of all engines: of one that has just come back, an old one tells nothing."""

        async def written() -> bool:
            return self._routers.snapshots(FIRST, since) >= len(self._fleet.specs)

        try:
            await wait_until(written, _WRITTEN_S, "kvproxy writes its snapshots")
        except TimeoutError as error:
            self._made.wrong.append(str(error))

    async def _wrap(self) -> None:
        """Wait until no prefill engine can replay all it has published."""

        async def wrapped() -> bool:
            return all(
                self._witness[spec.address].published > self._options.buffer_steps for spec in self._prefill
            )

        try:
            await wait_until(wrapped, _WRAP_S, "the replay buffers wrap")
        except TimeoutError:
            told = {spec.name: self._witness[spec.address].published for spec in self._prefill}
            self._made.wrong.append(
                f"the replay buffers of {self._options.buffer_steps} did not wrap: {told}"
            )

    async def _late(self, group: asyncio.TaskGroup) -> None:
        """Another kvproxy joins, and its clients ask beside the first one's."""
        until = asyncio.Event()
        beside = group.create_task(self._crowds[FIRST].run(_BESIDE_LATE, until), name="clients beside")
        try:
            await self._join(group, LATE)
            crowd = self._crowds[LATE]
            async with self._phase(Phase.LATE):
                enough = asyncio.Event()
                clients = group.create_task(crowd.run(self._options.clients, enough), name="late clients")

                async def asked() -> bool:
                    return sum(leg.served for leg in self._of(LATE)) >= self._options.late_requests

                try:
                    await wait_until(asked, _LATE_S, "the late joiner has served enough")
                except TimeoutError as error:
                    self._made.wrong.append(str(error))
                finally:
                    enough.set()
                await clients
        finally:
            until.set()
        await beside

    def _of(self, router: str) -> list[Leg]:
        return [leg for leg in self._made.legs if leg.router == router]

    # ---- rest and judgement -------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Requests one by one, each compared with the engines' own counters."""
        urls = [spec.url for spec in self._fleet.specs.values()]
        try:
            for name in self._crowds:
                await wait_quiet(self._session, urls, self._routers[name].url, LEASE_S + _SETTLE_S)
        except TimeoutError as error:
            self._made.wrong.append(f"no rest at the end: {error}")
        async with self._phase(Phase.QUIET):
            for name, crowd in self._crowds.items():
                prompts = Prompts(f"{name} alone", self._options.seed)
                for _ in range(self._options.quiet_requests // len(self._crowds)):
                    await self._alone(crowd, prompts)

    async def _alone(self, crowd: Crowd, prompts: Prompts) -> None:
        before = await self._counters()
        leg = await crowd.one(prompts)

        async def counted() -> bool:
            """The engine has counted the whole prompt as asked for."""
            now = await self._counters()
            return now.get(leg.prefill, (0, 0))[1] >= before.get(leg.prefill, (0, 0))[1] + leg.prompt_tokens

        try:
            if leg.served:
                await wait_until(counted, _COUNTED_S, "the engine counts the request")
        except TimeoutError as error:
            self._made.wrong.append(str(error))
        now = await self._counters()
        self._made.quiet.append(
            v.QuietLeg(leg, {address: now[address][0] - before[address][0] for address in now})
        )

    async def _counters(self) -> dict[str, tuple[int, int]]:
        """Cached tokens and all tokens that each prefill engine counted."""
        found = {}
        for spec in self._prefill:
            page = await read_metrics(self._session, spec.url)
            hits = page.total("vllm:prefix_cache_hits_total")
            found[spec.address] = int(hits), int(page.total("vllm:prefix_cache_queries_total"))
        return found

    async def _judge(self) -> None:
        made, verdict = self._made, self._made.verdict
        for leg in made.legs:
            leg.index = self._looks[leg.router].worth(leg.prefill, leg.begun, leg.ended)
        made.metered = self._looks[FIRST].metered
        loud = [leg for leg in made.legs if leg.phase != Phase.QUIET]
        for leg in made.legs:
            if leg.judged and not leg.right:
                made.misses.append(v.explain(leg, await self._asked(leg), self._witness[leg.prefill]))
        verdict.add(v.SHARE, v.check_share(loud))
        verdict.add(v.EXPLAINED, [words(m, made) for m in made.misses if m.cause != "race"])
        if made.metered:
            verdict.add(v.METERED, v.check_meter({name: looks.meter for name, looks in self._looks.items()}))
        if Phase.LATE in self._options.phases:
            verdict.add(v.JOINED, v.check_late(self._of(LATE), self._options.late_requests))
        verdict.add(v.DUST, v.check_quiet(made.quiet))
        if last := self._looks[FIRST].last:
            verdict.add(v.EXACT, self._inexact(last))
        verdict.add(v.SERVED, v.check_served(made.legs, made.kills))
        if not any(self._witness[spec.address].removed for spec in self._prefill):
            made.wrong.append("nothing was evicted: the caches are too large")
        verdict.add(v.HAPPENED, [*made.wrong, *v.check_judged(loud, before=Phase.ENGINE)])
        lost = [
            f"{spec.name} at {at:.2f}" for spec in self._prefill for at in self._witness[spec.address].lost
        ]
        verdict.add(v.HEARD, lost + ([repr(self._witness.error)] if self._witness.error else []))

    def _inexact(self, look: Look) -> list[str]:
        return [
            f"{spec.name} ({spec.address}): {look.worth(spec.address)}"
            for spec in self._prefill
            if look.worth(spec.address) != "exact"
        ]

    async def _asked(self, leg: Leg) -> Asked | None:
        """The prompt as the engine reads it."""
        body = leg.plan.body
        if leg.plan.kind is Kind.IDS or isinstance(body.get("prompt"), list):
            return Asked(body["prompt"], leg.plan.adapter, leg.plan.salt)
        question = {key: body[key] for key in ("model", "prompt", "messages") if key in body}
        async with self._session.post(f"http://{leg.prefill}/tokenize", json=question) as answer:
            if answer.status != 200:
                return None
            return Asked((await answer.json())["tokens"], leg.plan.adapter, leg.plan.salt)


def words(miss: v.Miss, made: Run) -> str:
    """All that is known of a miss."""
    leg = miss.leg
    what = f"{leg.phase}, {leg.plan.kind}, kvproxy {leg.router}, prefill {leg.prefill}, decode {leg.decode}"
    how = f"predicted {leg.predicted}, reported {leg.reported} of {leg.prompt_tokens} tokens: {miss.cause}"
    when = f"{leg.begun - made.begun:.3f} to {leg.ended - made.begun:.3f} s"
    lines = [f"{leg.id} ({what}): {how}", f"  {when}", *(f"  {told}" for told in miss.told)]
    lines += [
        f"  | {at - made.begun:.2f} s: {done}"
        for at, done in made.journal
        if leg.begun - 10 <= at <= leg.ended
    ]
    return "\n".join(lines)
