"""A long run at a share of what kvproxy can do: its memory must stay flat, and so must its latency.

First it finds the most requests a second, arriving at random, that kvproxy, engines and clients keep up with
together on this machine. (A closed loop gets more done, since it never lets them run dry, but tells nothing
of that.) Then comes a rush of clients at once: a process keeps the memory of the most that it ever had under
way, and without the rush a machine that stands still for a moment, at any time in the run, would look like a
leak. Then requests arrive as a Poisson process at a share of that rate, whether or not earlier ones are
answered, so that a kvproxy which slows down is not spared.
"""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from scripts.workshop.bench.load import post, read_answer, run
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.words import prose
from tests.proofs.setting import MODEL, Setting, Vitals, processes
from tests.proofs.trend import Trend, trend

CONCURRENCY = 64
"""Of the closed loop, which tells where to look."""
STEP_SHARE = 0.05
"""Of the closed loop's rate: by so much the rate goes up while they keep up."""
STEP_S = 10.0
KEPT_UP_S = 1.0
"""They keep up with a rate if 99 of 100 requests of a step are answered within that time; a tenth more than
lasts may pass."""
STEP_TRIES = 2
"""A machine may stand still for a moment."""
RUSH_CLIENTS = 1024
RUSH_S = 15.0
STREAM_TOKENS = 40
MAX_UNDER_WAY = 4000
"""More requests at once mean that kvproxy falls behind for good; the run ends there."""

IDLE_S = 20.0
"""kvproxy closes connections that are idle for longer than 75 s."""

MEMORY_STEP_MIB = 1.0
"""Python takes memory in arenas of 1 MiB (obmalloc.c, ARENA_SIZE): one more in the whole time is no
growth."""
MIN_LATELY = 20
"""Samples of the later half: fewer tell nothing of how far they depend on each other."""
FLOOR_SHARE = 0.05
"""As above for all other figures: a share of their mean."""
_READ_LIMIT = 1 << 24
_SETTLE_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seconds: float
    share: float
    seed: int
    logs: Path
    prefill: int = 2
    decode: int = 2
    sample_s: float = 30.0
    settle_s: float = 180.0
    """What is sampled before that is shown and not judged: caches of a bounded size fill."""


def settle_s(seconds: float) -> float:
    """Return how long caches are given to fill in a run of so many seconds; a short run shows its course and
    no more."""
    return max(180.0, _SETTLE_SHARE * seconds) if seconds > 600 else seconds / 3


@dataclass(frozen=True)
class Sample:
    """What one stretch of time showed. Latencies are the clients'."""

    at_s: float
    """Seconds from the beginning of the load to the end of the stretch."""
    requests_per_s: float
    failures: int
    under_way: int
    memory_mib: float
    sockets: int
    tasks: int
    cpu_us_per_request: float
    unary_p50_ms: float
    unary_p99_ms: float
    first_byte_p50_ms: float
    """Of streams."""
    first_byte_p99_ms: float
    mean_ms: float
    """Of all requests to their last byte."""
    engines_mean_ms: float
    """What the engines say that both legs of a request took them."""


LATENCIES = ("unary_p50_ms", "unary_p99_ms", "first_byte_p50_ms", "first_byte_p99_ms")
JUDGED = ("memory_mib", "sockets", "tasks", *LATENCIES)


@dataclass
class Soak:
    """A run and what came of it."""

    options: Options
    saturation_per_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def judged(self) -> list[Sample]:
        """The samples that trends are taken from."""
        return [sample for sample in self.samples if sample.at_s > self.options.settle_s]

    @property
    def lately(self) -> list[Sample]:
        """Their later half."""
        return self.judged[len(self.judged) // 2 :]

    def trend(self, name: str) -> Trend | None:
        """Of one figure; None if there are too few samples."""
        return _trend(self.judged, name) if len(self.judged) >= 3 else None

    def findings(self) -> list[str]:
        """What must not be; none means that all stayed flat."""
        found = (
            [f"{len(self.failures)} requests failed, such as: {self.failures[0]}"] if self.failures else []
        )
        if self.trend("memory_mib") is None:
            return [
                *found,
                f"{len(self.judged)} samples after the first {self.options.settle_s:g} s are too few",
            ]
        windows = {"": self.judged} | ({"lately ": self.lately} if len(self.lately) >= MIN_LATELY else {})
        for name in JUDGED:
            for when, samples in windows.items():
                measured = _trend(samples, name)
                if measured.grows(_floor(samples, name)):
                    found.append(
                        f"{name} {when}grows by {measured.slope:.3g} (+- {measured.error:.2g}) an hour"
                    )
                    break
        return found

    def write(self, folder: Path) -> Path:
        """All figures, as JSON."""
        path = folder / "soak.json"
        trends = {name: self.trend(name) for name in JUDGED}
        told: dict[str, Any] = {
            "options": asdict(self.options) | {"logs": str(self.options.logs)},
            "saturation_per_s": self.saturation_per_s,
            "samples": [asdict(sample) for sample in self.samples],
            "trends_per_hour": {name: asdict(found) for name, found in trends.items() if found is not None},
            "findings": self.findings(),
        }
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return path


def _trend(samples: list[Sample], name: str) -> Trend:
    return trend([s.at_s / 3600 for s in samples], [float(getattr(s, name)) for s in samples])


def _floor(samples: list[Sample], name: str) -> float:
    """The slope an hour that would not matter."""
    if name == "memory_mib":  # a step in the middle of a window is a slope of one and a half steps
        return 1.5 * MEMORY_STEP_MIB / ((samples[-1].at_s - samples[0].at_s) / 3600)
    return FLOOR_SHARE * statistics.fmean(getattr(s, name) for s in samples)


def requests(seed: int) -> Iterator[tuple[bool, bytes]]:
    """Requests without end: whether it is a stream, and its bytes. Prefixes are shared, no prompt comes
    twice."""
    dice = random.Random(seed)  # repeatable on purpose
    prefixes = [prose(dice.randint(50, 300), f"soak/{seed}/{n}") for n in range(16)]
    tails = [prose(dice.randint(5, 60), f"soak tail/{seed}/{n}") for n in range(500)]
    for number in itertools.count():
        stream = dice.random() < 0.5
        body: dict[str, Any] = {"model": MODEL, "temperature": 0, "ignore_eos": True}
        body |= {"max_tokens": STREAM_TOKENS, "stream": True} if stream else {"max_tokens": 8}
        prefix, tail = dice.choice(prefixes), f"{number} {dice.choice(tails)}"
        if dice.random() < 0.5:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "system", "content": prefix}, {"role": "user", "content": tail}]
        else:
            path = "/v1/completions"
            body["prompt"] = f"{prefix} {tail}"
        yield stream, post(path, json.dumps(body).encode())


class Load:
    """Poisson arrivals over connections that are kept; what it saw since it was last asked."""

    def __init__(self, address: str, rate_per_s: float, seed: int) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._rate = rate_per_s
        self._requests = requests(seed)
        self._dice = random.Random(f"{seed}/arrivals")  # repeatable on purpose
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.under_way = 0
        self.fell_behind = False
        """So many requests were under way at once that it ended early."""
        self.failures: list[str] = []
        self.whole_s: list[float] = []
        self.unary_s: list[float] = []
        self.first_byte_s: list[float] = []

    async def run(self, seconds: float) -> None:
        """Send until the time is over, then await all answers."""
        end = due = time.perf_counter()
        end += seconds
        async with asyncio.TaskGroup() as group:
            while due < end and self.under_way < MAX_UNDER_WAY:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._one(*next(self._requests), due))
                due += self._dice.expovariate(self._rate)
        self.fell_behind = due < end
        for _, _, writer in self._idle:
            writer.close()

    async def _one(self, stream: bool, request: bytes, due: float) -> None:
        self.under_way += 1
        try:
            reader, writer = await self._connection()
            writer.write(request)
            answer = await read_answer(reader)
            self._idle.append((time.monotonic(), reader, writer))
        except (OSError, EOFError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return
        finally:
            self.under_way -= 1
        if answer.failure is not None:
            self.failures.append(answer.failure)
            return
        took_s = time.perf_counter() - due
        self.whole_s.append(took_s)
        if stream:
            self.first_byte_s.append(answer.head_at - due)
        else:
            self.unary_s.append(took_s)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that was used last, or a new one. A burst's are closed when they were idle for
        long."""
        now = time.monotonic()
        while self._idle and now - self._idle[0][0] > IDLE_S:
            self._idle.pop(0)[2].close()
        if self._idle:
            _, reader, writer = self._idle.pop()
            return reader, writer
        return await asyncio.open_connection(self._host, self._port, limit=_READ_LIMIT)


def soak(options: Options, say: Callable[[Soak], None] = lambda _: None) -> Soak:
    """Run it all; `say` is called after each sample. Call it from the main thread."""
    made = Soak(options)
    flags = ["--bypass", "off"]  # each request costs both legs
    with processes(options.prefill, options.decode, options.logs, profile="zero", flags=flags) as (
        fleet,
        proxy,
    ):

        async def within() -> None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                await _soak(Setting(fleet, proxy, session), made, say)

        asyncio.run(within())
    return made


async def _soak(setting: Setting, made: Soak, say: Callable[[Soak], None]) -> None:
    options = made.options
    address = setting.proxy.url.removeprefix("http://")
    made.saturation_per_s = await _saturation(address, options.seed + 2)
    _none_failed((await run(address, _until(requests(options.seed + 1), RUSH_S), RUSH_CLIENTS)).failures)
    load = Load(address, made.saturation_per_s * options.share, options.seed)
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(load.run(options.seconds))
        before, engines_before = await setting.vitals(), await _engine_seconds(setting)
        while not running.done():
            await asyncio.wait({running}, timeout=options.sample_s)
            after, engines_after = await setting.vitals(), await _engine_seconds(setting)
            sample = _sample(load, before, after, time.perf_counter() - begun, engines_after - engines_before)
            if sample is not None:
                made.samples.append(sample)
                say(made)
            before, engines_before = after, engines_after
    made.failures = load.failures
    if load.fell_behind:
        made.failures.append(f"{MAX_UNDER_WAY} requests at once: it has fallen behind")


async def _saturation(address: str, seed: int) -> float:
    """The highest rate of random arrivals that is kept up with."""
    closed = await run(address, _until(requests(seed), STEP_S), CONCURRENCY)
    _none_failed(closed.failures)
    most = closed.requests / closed.seconds
    found = 0.0
    for number in range(round(0.5 / STEP_SHARE)):
        rate = (0.5 + STEP_SHARE * number) * most
        if not await _keeps_up(address, rate, seed + 1 + STEP_TRIES * number):
            break
        found = rate
    if not found:
        raise RuntimeError(
            f"{most:.0f} requests/s in a closed loop, and not half of that at random: too busy a machine"
        )
    return found


async def _keeps_up(address: str, rate_per_s: float, seed: int) -> bool:
    for number in range(STEP_TRIES):
        load = Load(address, rate_per_s, seed + number)
        await load.run(STEP_S)
        if load.fell_behind:
            continue
        _none_failed(load.failures)
        if _percentiles_ms(load.whole_s)[1] < 1000 * KEPT_UP_S:
            return True
    return False


def _none_failed(failures: list[str]) -> None:
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed at full load: {failures[0]}")


def _until(source: Iterator[tuple[bool, bytes]], seconds: float) -> Iterator[bytes]:
    end = time.perf_counter() + seconds
    for _, request in source:
        if time.perf_counter() > end:
            return
        yield request


async def _engine_seconds(setting: Setting) -> float:
    """Seconds that all engines say they spent on all requests so far."""
    pages = [await read_metrics(setting.session, spec.url) for spec in setting.engines]
    return sum(page.total("vllm:e2e_request_latency_seconds_sum") for page in pages)


def _sample(load: Load, before: Vitals, after: Vitals, at_s: float, engines_s: float) -> Sample | None:
    whole, unary, first = load.whole_s, load.unary_s, load.first_byte_s
    load.whole_s, load.unary_s, load.first_byte_s = [], [], []
    if len(unary) < 2 or len(first) < 2:
        return None  # the end of the run cut it short
    p50, p99 = _percentiles_ms(unary)
    first_p50, first_p99 = _percentiles_ms(first)
    return Sample(
        at_s=at_s,
        requests_per_s=len(whole) / (after.at - before.at),
        failures=len(load.failures),
        under_way=load.under_way,
        memory_mib=after.memory_mib,
        sockets=after.sockets,
        tasks=after.tasks,
        cpu_us_per_request=1e6 * (after.cpu_s - before.cpu_s) / len(whole),
        unary_p50_ms=p50,
        unary_p99_ms=p99,
        first_byte_p50_ms=first_p50,
        first_byte_p99_ms=first_p99,
        mean_ms=1000 * statistics.fmean(whole),
        engines_mean_ms=1000 * engines_s / len(whole),
    )


def _percentiles_ms(seconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[98]
