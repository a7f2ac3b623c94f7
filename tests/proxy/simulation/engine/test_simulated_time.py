"""The model on a clock of its own: minutes of traffic in a moment, the same every time."""

import heapq
import random

import pytest

from proxy.simulation import EngineModel
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.engine.values import Step
from tests.proxy.simulation.driving import model, request

SECONDS = 600.0


def drive(engine: EngineModel, arrivals: list[tuple[float, list[int]]]) -> list[tuple[str, float, float]]:
    """Time to first token and of the end, by request, of traffic that arrives at given times."""
    queue = [(at_s, number, tokens) for number, (at_s, tokens) in enumerate(arrivals)]
    heapq.heapify(queue)
    now_s, done = 0.0, []
    under_way: Step | None = None
    while queue or engine.unfinished:
        if not engine.unfinished:
            now_s = max(now_s, queue[0][0])
        while queue and queue[0][0] <= now_s:
            at_s, number, tokens = heapq.heappop(queue)
            leg = request(str(number), tokens, 20)
            leg.arrived_s = at_s
            engine.add(leg)
        under_way = engine.begin_step(now_s)
        assert under_way is not None
        now_s += under_way.duration_s
        for output in engine.end_step(under_way, now_s):
            leg = output.request
            if leg.status.finished:
                assert leg.first_token_s is not None
                done.append((leg.id, leg.first_token_s - leg.arrived_s, now_s - leg.arrived_s))
    return done


def traffic(rate: float) -> list[tuple[float, list[int]]]:
    rng = random.Random(7)
    at_s, arrivals = 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < SECONDS:
        shared, own = rng.randrange(4), rng.randrange(1000)
        arrivals.append((at_s, [300 + shared] * 64 + [1300 + own] * 16))
    return arrivals


def loaded(rate: float) -> list[tuple[str, float, float]]:
    engine = model(blocks=512, block_size=16, profile=PROFILES["tiny-cpu"])
    return drive(engine, traffic(rate))


def test_the_same_traffic_takes_the_same_time() -> None:
    assert loaded(1.0) == loaded(1.0)


def test_more_traffic_waits_longer() -> None:
    means = [sum(first for _, first, _ in done) / len(done) for done in (loaded(0.5), loaded(4.0))]
    assert means[0] < means[1]


def test_an_idle_engine_takes_what_its_profile_says() -> None:
    engine = model(blocks=512, block_size=16, profile=PROFILES["tiny-cpu"])
    [(_, first_s, whole_s)] = drive(engine, [(5.0, list(range(300, 400)))])
    assert first_s == pytest.approx(0.012 + 100 * 2e-5)
    assert whole_s - first_s == pytest.approx(19 * (0.005 + 2e-4))
