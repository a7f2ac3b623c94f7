"""An engine as little as can be, which shares no code with what is tried: a queue in order of arrival, worked
off in steps of at most `chunk` tokens, or one prompt after the other."""

import dataclasses
import heapq
import math
import random
from collections.abc import Callable, Iterable

from proxy.latency.service_times import Leg


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the engine takes, in milliseconds."""

    a: float = 18.0
    b: float = 0.06
    c: float = 4e-7
    overhead: float = 4.0
    chunk: int | None = 8192
    """None: each prompt is a step of its own."""

    def chunk_ms(self, new: int, context: int) -> float:
        return self.b * new + self.c * (context**2 - (context - new) ** 2) / 2

    def alone_ms(self, uncached: int, prompt: int) -> float:
        steps = 1 if self.chunk is None else max(math.ceil(uncached / self.chunk), 1)
        return steps * self.a + self.chunk_ms(uncached, prompt)


@dataclasses.dataclass
class Asked:
    at: float
    uncached: int
    prompt: int
    foreign: bool = False
    left: int = 0
    ended_at: float = 0.0
    scheduled_at: float | None = None


def work(
    asked: Iterable[Asked],
    truth: Truth,
    rng: random.Random,
    *,
    noise: float = 0.1,
    speed: Callable[[float], float] = lambda _: 1.0,
    jitter_ms: float = 0.3,
    outliers: float = 0.0,
) -> list[Asked]:
    """All of them with the times of their ends, in that order. `speed`: how many times as slow at a time."""
    before, after = truth.overhead * 0.75 / 1000, truth.overhead * 0.25 / 1000
    coming = sorted(asked, key=lambda each: each.at)
    for each in coming:
        each.left = each.uncached
    waiting: list[Asked] = []
    done: list[Asked] = []
    now, index = 0.0, 0
    while index < len(coming) or waiting:
        while index < len(coming) and coming[index].at + before <= now:
            waiting.append(coming[index])
            index += 1
        if not waiting:
            now = coming[index].at + before
            continue
        budget, step_ms, ended = truth.chunk, truth.a, []
        for each in list(waiting):
            if budget is not None and budget <= 0:
                break
            if each.scheduled_at is None:
                each.scheduled_at = now
            new = each.left if budget is None else min(each.left, budget)
            step_ms += truth.chunk_ms(new, each.prompt - each.left + new)
            each.left -= new
            if not each.left:
                waiting.remove(each)
                ended.append(each)
            if budget is None:
                break
            budget -= new
        step_ms *= speed(now) * math.exp(rng.gauss(-(noise**2) / 2, noise))
        if rng.random() < outliers:
            step_ms *= rng.uniform(3, 10)
        now += step_ms / 1000
        for each in ended:
            each.ended_at = now + after + rng.expovariate(1 / jitter_ms) / 1000
            done.append(each)
    return sorted(done, key=lambda each: each.ended_at)


def prompts(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Uncached and all tokens: chats with what is cached of them, and some long documents."""
    found = []
    for _ in range(count):
        prompt = min(int(rng.lognormvariate(8.3, 1.1)) + 20, 120_000)
        cached = int(rng.choice((0, 0, rng.random(), rng.random(), 0.97)) * prompt) // 16 * 16
        found.append((max(prompt - cached, 1), prompt))
    return found


def poisson(rng: random.Random, truth: Truth, count: int, load: float, start: float = 0.0) -> list[Asked]:
    """Prompts that come at random, so that the engine works for this share of the time."""
    wanted = prompts(rng, count)
    mean_s = sum(truth.alone_ms(*each) for each in wanted) / count / 1000
    found, at = [], start
    for uncached, prompt in wanted:
        at += rng.expovariate(load / mean_s)
        found.append(Asked(at, uncached, prompt))
    return found


def bursts(rng: random.Random, truth: Truth, count: int, size: int, load: float) -> list[Asked]:
    """As `poisson`, but `size` at the same instant."""
    single = poisson(rng, truth, count, load)
    for index, each in enumerate(single):
        each.at = single[index // size * size].at
    return single


def as_leg(each: Asked, *, told: bool = False) -> Leg:
    """What a router sees of it; `told`: with the engine's own times."""
    assert each.scheduled_at is not None
    engine_end = each.ended_at - 0.001 if told else 0.0
    return Leg(
        each.at,
        each.ended_at,
        each.uncached,
        each.prompt,
        first_token_ms=(engine_end - each.scheduled_at) * 1000 if told else None,
    )


GRID = [
    (uncached, prompt)
    for prompt in (64, 512, 2048, 8192, 30_000, 100_000)
    for uncached in sorted({16, 256, 2048, prompt // 4, prompt // 2, prompt})
    if uncached <= prompt
]


def grid_error(
    predicted: Callable[[int, int], float], truth: Truth, speed: float = 1.0
) -> tuple[float, float]:
    """|predicted - true| / true over prompts of all kinds: mean and worst."""
    errors = [abs(predicted(*each) / (truth.alone_ms(*each) * speed) - 1) for each in GRID]
    return sum(errors) / len(errors), max(errors)


def merged(*engines: tuple[str, list[Asked]]) -> list[tuple[str, Asked]]:
    """What several engines did, in the order of the ends."""
    streams = [[(each.ended_at, name, i, each) for i, each in enumerate(done)] for name, done in engines]
    return [(name, each) for _, name, _, each in heapq.merge(*streams)]
