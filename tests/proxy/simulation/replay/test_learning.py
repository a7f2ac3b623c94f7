"""In simulated time a router learns what engines take from what it would hear in the service."""

import pytest

from proxy.latency.model import LatencyModel
from proxy.scheduling.policies import CacheAffinity
from proxy.simulation import EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.replay.run import Run, Setup
from tests.proxy.simulation.replay.workloads import conversations

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


def run(setup: Setup, requests: int = 1500, policy: type[CacheAffinity] = Learns) -> Run:
    made = Run(conversations(requests, rate=6.0, longest=300), setup, shape=ENGINE, policy=policy)
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
    made = run(Setup(fleet="1b"), 50, CacheAffinity)
    assert made.routers[0].latency.fitted() == []


@pytest.mark.parametrize("fleet", ["2p2d"])
def test_prefill_and_steps_are_learned_from_the_legs_of_a_run(fleet: str) -> None:
    made = run(Setup(fleet=fleet))
    model = made.routers[0].latency
    for address in made.engines:
        if not address.startswith("d"):
            assert prefill_error(model, address) < 0.05
        if not address.startswith("p"):
            assert step_error(model, address) < 0.05
