"""In simulated time a router learns what engines take from what it would hear in the service."""

import math
import random

import pytest

from proxy.latency.model import LatencyModel
from proxy.scheduling.policies import CacheAffinity
from proxy.simulation import EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.replay.run import Outage, Run, Setup
from proxy.simulation.replay.timeline import Turn
from proxy.traces.workload import TraceRequest, Workload

TRUTH = Linear(a=0.01, b=5e-5, c=2e-9, s0=0.008, s1=2e-4, s2=1e-7, transfer_per_token=1e-5, handshake=0.1)
ENGINE = EngineShape(
    block_size=16,
    blocks=60_000,
    max_batched_tokens=8192,
    max_sequences=64,
    profile=TRUTH,
    max_model_len=10**6,
)
PROMPTS = [(32, 32), (64, 2000), (256, 256), (256, 9000), (1000, 4000), (4000, 4000), (8000, 20_000)]
BATCHES = [(1, 1000), (2, 6000), (5, 10_000), (8, 40_000)]


class Learns(CacheAffinity):
    """A policy that would ask what engines take."""

    reads_latency = True


def workload(requests: int, rate: float, *, at_once: int = 1) -> Workload:
    """Prompts of 30 to 20 000 tokens, three fifths of them with the beginning of an earlier one."""
    rng = random.Random(7)
    made: list[TraceRequest] = []
    at_s, fresh = 0.0, 0
    for number in range(requests):
        if number % at_once == 0:
            at_s += rng.expovariate(rate / at_once)
        new = int(math.exp(rng.uniform(math.log(2), math.log(600))))
        before = rng.choice(made) if made and rng.random() < 0.6 else None
        shared = before.blocks[: rng.randrange(600)] if before is not None else ()
        blocks = (*shared, *range(fresh, fresh + new))
        fresh += new
        tokens = len(blocks) * 16 - rng.randrange(16)
        made.append(TraceRequest(at_s, tokens, rng.randrange(1, 200), blocks, 16))
    return Workload("prompts", made, "made at random")


def run(
    setup: Setup,
    requests: int = 600,
    rate: float = 6.0,
    *,
    at_once: int = 1,
    policy: type[CacheAffinity] = Learns,
) -> Run:
    made = Run(workload(requests, rate, at_once=at_once), setup, shape=ENGINE, policy=policy)
    made.to_end()
    return made


def prefill_error(model: LatencyModel, instance: str, speed: float = 1.0) -> float:
    """The mean error over PROMPTS, as a share."""
    off = []
    for uncached, prompt in PROMPTS:
        truth = TRUTH.step_s([(uncached, prompt)], 0, 0, 0.0) * 1000 / speed
        off.append(abs(model.prefill_ms(instance, uncached, prompt) / truth - 1))
    return sum(off) / len(off)


def step_error(model: LatencyModel, instance: str, speed: float = 1.0) -> float:
    """The mean error over BATCHES, as a share."""
    off = []
    for sequences, context in BATCHES:
        truth = TRUTH.step_s((), sequences, context, 0.0) * 1000 / speed
        off.append(abs(model.step_ms(instance, sequences, context) / truth - 1))
    return sum(off) / len(off)


def test_a_policy_that_reads_no_latency_has_nothing_learned() -> None:
    made = run(Setup(fleet="1b"), 50, policy=CacheAffinity)
    assert made.routers[0].latency.fitted() == []


@pytest.mark.parametrize("fleet", ["3b", "2p2d", "1p1d2b"])
def test_prefill_and_steps_are_learned_from_the_legs_of_a_run(fleet: str) -> None:
    made = run(Setup(fleet=fleet))
    model = made.routers[0].latency
    for address in made.engines:
        if not address.startswith("d"):
            assert prefill_error(model, address) < 0.05
        if not address.startswith("p"):
            assert step_error(model, address) < 0.05


def test_transfers_and_handshakes_are_learned_from_decode_legs() -> None:
    made = run(Setup(fleet="2p2d"))
    model = made.routers[0].latency
    assert model.handshake_ms("p0:1", "d0:1") == 0.0
    for tokens in (2000, 8000):  # and a part of a step, which the leg waits for
        assert model.transfer_ms("p0:1", "d1:1", tokens) == pytest.approx(tokens * 0.01 + 10, rel=0.25)
    model.restarted("d0:1")
    assert model.handshake_ms("p0:1", "d0:1") == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(("fleet", "slow"), [("3b", "b1:1"), ("2p2d", "p1:1")])
def test_one_slow_instance_is_told_apart_from_the_others(fleet: str, slow: str) -> None:
    made = run(Setup(fleet=fleet, speeds={slow: 0.5}))
    for address in made.engines:
        if not address.startswith("d"):
            speed = 0.5 if address == slow else 1.0
            assert prefill_error(made.routers[0].latency, address, speed) < 0.05


def test_legs_that_died_with_their_engine_teach_nothing() -> None:
    outages = [Outage("b1:1", at_s, 5.0) for at_s in range(10, 90, 10)]
    model = run(Setup(fleet="3b", outages=outages)).routers[0].latency
    assert prefill_error(model, "b1:1") < 0.05
    assert step_error(model, "b1:1") < 0.05


@pytest.mark.parametrize("fleet", ["2p2d", "3b"])
@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_a_change_of_speed_is_followed_within_200_requests(speed: float, fleet: str) -> None:
    made = Run(workload(600, 4.0), Setup(fleet=fleet), shape=ENGINE, policy=Learns)

    def change() -> None:
        for engine in made.engines.values():
            engine._speed = speed

    made.time.at(made._requests[400].at_s, Turn.END, change)
    made.to_end()
    model = made.routers[0].latency
    for address in made.engines:
        if not address.startswith("d"):
            assert prefill_error(model, address, speed) < 0.05
        if not address.startswith("p"):
            assert step_error(model, address, speed) < 0.05


def test_what_other_routers_send_fools_nobody() -> None:
    made = run(Setup(fleet="2p2d", routers=2))
    for router in made.routers:
        assert prefill_error(router.latency, "p0:1") < 0.05
        assert step_error(router.latency, "d0:1") < 0.10
