"""A workload, a fleet, a policy and a seed make the same figures every time, but for the machine's time."""

import itertools
import math
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from kvevents import Event
from proxy.config import Admission
from proxy.errors import ConfigError
from proxy.latency.profiles import PROFILES as BELIEVED
from proxy.latency.profiles import UNKNOWN, EngineSize, read_profile
from proxy.latency.profiles import Profile as Believed
from proxy.scheduling.policies import POLICIES, load_policy
from proxy.scheduling.types import AnyPolicy, reads_latency
from proxy.simulation.engine.kv_cache import blocks_for
from proxy.simulation.engine.latency import PROFILES, Linear, Profile
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.replay.attempt import Call
from proxy.simulation.replay.baselines import BASELINES
from proxy.simulation.replay.contents import NamedContents, Names
from proxy.simulation.replay.figures import Figures, Goals, figures_of
from proxy.simulation.replay.fleets import parse_fleet
from proxy.simulation.replay.instance import ReplayedInstance
from proxy.simulation.replay.records import End, Record
from proxy.simulation.replay.router import MODEL, Router
from proxy.simulation.replay.timeline import Timeline, Turn
from proxy.traces.workload import Workload

SEEDS_APART = 1000
"""Between the seeds of two routers."""

SCRAPE_S = 1.0
"""Between two looks at the gauges, for a policy that reads what engines take: as `--scrape-s` has it."""

PROGRESS_EVERY = 256
"""Requests between two calls of `progress`."""


def engine_of(profile: str) -> EngineShape:
    """An engine with a named latency profile, as large as the one of ai-dynamo's offline replay: 16384 blocks
    of 64 tokens, 256 sequences, 8192 tokens a step. Or one whose figures are in the file of that name. Raises
    ConfigError.
    """
    if profile in PROFILES:
        latencies: Profile = PROFILES[profile]
        size, chunk_tokens = EngineSize(), 8192
    else:
        file = read_profile(pathlib.Path(profile), "--profile", PROFILES)
        latencies, size, chunk_tokens = Linear.of(file), file.engine, file.chunk_tokens
    return EngineShape(
        model=MODEL,
        block_size=size.block_size,
        blocks=size.blocks + 1,  # block 0 is the engine's own
        max_batched_tokens=chunk_tokens,
        max_sequences=size.max_sequences,
        profile=latencies,
    )


class Outage(msgspec.Struct, frozen=True):
    """An instance dies, and is there again with an empty cache."""

    address: str
    at_s: float
    down_s: float


class Setup(msgspec.Struct, frozen=True):
    """Everything that a run depends on, besides its workload."""

    fleet: str = "8b"
    """As `parse_fleet` reads it."""
    policy: str = "least_ms"
    """The name of a policy of kvproxy or of a baseline, or `package.module:Class`."""
    profile: str = "dynamo-replay"
    speed: float = 1.0
    """How many times as fast requests arrive, or sessions begin, as the workload says. Users think as long as
    ever."""
    seed: int = 0
    event_delay_s: float = 0.005
    """From the end of an engine's step until the router's index has its events."""
    unknown_share: float = 0.0
    """The share of prompts whose tokens the router does not know."""
    bypass_tokens: int | None = None
    """Which requests decode instances serve whole, as `--bypass` says: None for auto, 0 for off."""
    routers: int = 1
    """So many kvproxies route to the fleet, each with claims and predictions of its own; a request comes to
    one of them at random."""
    speeds: Mapping[str, float] = {}
    """How many times as fast as the profile an instance is, by address; 1 for those that are missing."""
    outages: Sequence[Outage] = ()
    admission: Admission = Admission()
    goals: Goals = Goals()
    skips: bool = True
    """Whether steps that are alike are taken at once; the figures are the same either way."""

    def check(self) -> None:
        """Raise ConfigError if it cannot be run."""
        if not MIN_SPEED <= self.speed <= MAX_SPEED:
            words = f"a number from {MIN_SPEED:g} to {MAX_SPEED:g} is needed"
            raise ConfigError(f"--speed {self.speed:g}: {words}")
        if not 1 <= self.routers <= MAX_ROUTERS:
            raise ConfigError(f"--routers {self.routers}: a number from 1 to {MAX_ROUTERS} is needed")
        if self.bypass_tokens is not None and self.bypass_tokens < 0:
            raise ConfigError(f"--bypass must be at least 0, not {self.bypass_tokens}")
        if not all(speed > 0 and math.isfinite(speed) for speed in self.speeds.values()):
            raise ConfigError("--instance-speed: numbers above 0 are needed")
        engine_of(self.profile)
        there = {address for address, _ in parse_fleet(self.fleet)}
        strangers = {*self.speeds, *(outage.address for outage in self.outages)} - there
        if strangers:
            names = ", ".join(sorted(address.partition(":")[0] for address in strangers))
            raise ConfigError(f"--instance-speed, --outage: {names}: not in the fleet {self.fleet}")
        outages = sorted(self.outages, key=lambda outage: (outage.address, outage.at_s))
        for first, then in itertools.pairwise(outages):
            if first.address == then.address and then.at_s < first.at_s + first.down_s:
                name = first.address.partition(":")[0]
                raise ConfigError(f"--outage: {name} dies again before it is back")


MIN_SPEED, MAX_SPEED = 1e-3, 1e6
MAX_ROUTERS = 1024
"""Beyond these a run would take for ever."""

Progress = Callable[[int, int, float], None]
"""Called with how many requests have ended, how many there are, and the second of the run."""


def named_policy(name: str) -> AnyPolicy:
    """A policy of kvproxy's, a baseline, or a user's own. Raises ConfigError."""
    made = BASELINES.get(name)
    if made is not None:
        return made()
    if name not in POLICIES and ":" not in name:
        names = ", ".join([*POLICIES, *BASELINES])
        raise ConfigError(f"--policy {name!r} is not known: give {names}, package.module:Class, or all")
    return load_policy(name)


class Run:
    """One run; `records` and `figures` are there once it is over."""

    def __init__(
        self,
        workload: Workload,
        setup: Setup,
        *,
        shape: EngineShape | None = None,
        policy: Callable[[], AnyPolicy] | None = None,
        prior: Believed = BELIEVED[UNKNOWN],
        progress: Progress | None = None,
    ) -> None:
        """`shape`: the engines, if they are not of a named profile; `policy`: makes one that is not to be
        had by its name; `prior`: what routers believe of engines before they have learned. Raises ConfigError
        for a setup that cannot be run.
        """
        setup.check()
        self.setup = setup
        self.time = Timeline()
        self.records: list[Record] = []
        self._requests = workload.requests
        self._shape = shape = shape or engine_of(setup.profile)
        self._names = Names(shape.block_size)
        self._progress = progress
        self._over = 0
        self._next: dict[int, list[int]] = {}
        policies = [policy() if policy else named_policy(setup.policy) for _ in range(setup.routers)]
        models = {request.model or MODEL for request in workload.requests} or {MODEL}
        self.routers = [
            Router(
                self.time,
                made,
                setup.policy,
                self._names,
                models=sorted(models),
                limits=setup.admission,
                seed=setup.seed + number * SEEDS_APART,
                event_delay_s=setup.event_delay_s,
                unknown_share=setup.unknown_share,
                bypass_tokens=setup.bypass_tokens,
                profile=prior,
            )
            for number, made in enumerate(policies)
        ]
        self._dice = random.Random(setup.seed - 1)  # noqa: S311  # no secret
        self._scrape_s: float | None = getattr(
            policies[0], "scrape_s", SCRAPE_S if reads_latency(policies[0]) else None
        )
        self._scrapes = False
        """Whether the next scrape is planned. While nothing runs, gauges are not looked at: they stay."""
        hears = self.routers[0].reads_prompt
        contents = NamedContents(self._names, told=hears)
        self.engines: dict[str, ReplayedInstance] = {}
        for address, role in parse_fleet(setup.fleet):
            self.engines[address] = engine = ReplayedInstance(
                self.time,
                address,
                shape,
                contents,
                publish=self._publisher(address) if hears else None,
                speed=setup.speeds.get(address, 1.0),
                skips=setup.skips,
            )
            for router in self.routers:
                router.join(engine, role)
        self._plan()

    def _publisher(self, address: str) -> "Callable[[list[Event]], None]":
        def publish(events: list[Event]) -> None:
            for router in self.routers:
                router.heard(address, events)

        return publish

    # -- what arrives ---------------------------------------------------------------------------------------

    def _plan(self) -> None:
        speed = self.setup.speed
        for number, request in enumerate(self._requests):
            self.records.append(Record(math.inf, request.input_tokens, request.output_tokens))
            if request.after is not None:
                if not 0 <= request.after < number:
                    raise ConfigError(f"request {number} waits for request {request.after}, not before it")
                self._next.setdefault(request.after, []).append(number)
                continue
            self.time.at(request.at_s / speed, Turn.ASK, self._arrive, number)
        for outage in self.setup.outages:
            self.time.at(outage.at_s, Turn.END, self._die, outage)

    def _arrive(self, number: int) -> None:
        request, record = self._requests[number], self.records[number]
        record.asked_s = self.time.now_s
        self._scrape_again()

        def over() -> None:
            self._ended(number)

        call = Call(number, request, record, self._names.of_prompt(request), over)
        needed = blocks_for(request.input_tokens + request.output_tokens, self._shape.block_size)
        if needed > self._shape.blocks - 1:
            self.routers[0].end(call, End.REFUSED)
        else:
            self._dice.choice(self.routers).ask(call)

    def _ended(self, number: int) -> None:
        self._over += 1
        for follower in self._next.pop(number, ()):
            self.time.after(self._requests[follower].think_s, Turn.ASK, self._arrive, follower)
        if self._progress is not None and (
            self._over % PROGRESS_EVERY == 0 or self._over == len(self._requests)
        ):
            self._progress(self._over, len(self._requests), self.time.now_s)

    # -- what else happens ----------------------------------------------------------------------------------

    def _die(self, outage: Outage) -> None:
        engine = self.engines[outage.address]
        if not engine.alive:
            return
        lost = engine.die()
        for router in self.routers:
            router.went_down(outage.address, lost)
        self.time.after(outage.down_s, Turn.END, self._come_back, outage.address)

    def _come_back(self, address: str) -> None:
        self.engines[address].come_back()
        for router in self.routers:
            router.came_up(address)

    def _scrape_again(self) -> None:
        """Scrape now, for the first time since all was idle, and go on."""
        if self._scrape_s is not None and not self._scrapes:
            self._scrapes = True
            self._look(self._scrape_s)

    def _look(self, every_s: float) -> None:
        gauges = {address: engine.gauges() for address, engine in self.engines.items()}
        for router in self.routers:
            router.scraped(gauges)
        self.time.after(every_s, Turn.HEAR, self._scrape, every_s)

    def _scrape(self, every_s: float) -> None:
        if self.at_rest:
            self._scrapes = False
        else:
            self._look(every_s)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is claimed, waits or runs."""
        return all(router.at_rest for router in self.routers)

    # -- the run --------------------------------------------------------------------------------------------

    def to_end(self) -> Figures:
        """Let everything happen."""
        step = self.time.step
        while self._over < len(self._requests) and step():
            pass
        left = len(self._requests) - self._over
        if left:
            raise RuntimeError(f"{left} requests have no end, and nothing is planned")
        return figures_of(
            self.records, {address: engine.use for address, engine in self.engines.items()}, self.setup.goals
        )


def replay(workload: Workload, setup: Setup, *, progress: Progress | None = None) -> Figures:
    """The figures of a workload on a fleet. Raises ConfigError."""
    return Run(workload, setup, progress=progress).to_end()
