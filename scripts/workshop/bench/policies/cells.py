"""A cell is one run: equal words and an equal seed make equal figures, but for what this machine takes."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping

import msgspec

from proxy.scheduling.types import AnyPolicy
from proxy.simulation.replay.figures import Figures
from proxy.simulation.replay.run import Run, Setup, named_policy
from proxy.traces.workload import Workload
from scripts.workshop.bench.policies.ablation import WITHOUT
from scripts.workshop.bench.policies.reference import Today


class Asked(msgspec.Struct, frozen=True, order=True):
    """What is run."""

    traffic: str
    fleet: str
    policy: str
    speed: float = 1.0
    seed: int = 0
    event_delay_s: float = 0.005
    unknown_share: float = 0.0
    slow: tuple[str, ...] = ()
    """Instances at half speed, by address."""

    @property
    def place(self) -> "Asked":
        """The same for any policy and seed: what is compared with each other."""
        return msgspec.structs.replace(self, policy="", seed=0)

    def __str__(self) -> str:
        """As people say it."""
        words = [self.traffic, self.fleet, f"{self.speed:g}x"]
        if self.event_delay_s != Asked.__struct_defaults__[2]:
            words.append(f"events after {1000 * self.event_delay_s:g} ms")
        if self.unknown_share:
            words.append(f"{self.unknown_share:.0%} of prompts unknown")
        if self.slow:
            words.append(f"half speed: {', '.join(each.partition(':')[0] for each in self.slow)}")
        return ", ".join(words)


class OfOne(msgspec.Struct, frozen=True):
    """What one instance did."""

    requests: int
    prefill_use: float
    decode_use: float
    prefilled_tokens: int
    generated_tokens: int
    preemptions: int


class Got(msgspec.Struct, frozen=True):
    """What came out. Milliseconds and shares, as `Figures` has them."""

    asked: Asked
    requests: int
    served: int
    reuse: float
    ttft_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    itl_p99_ms: float
    whole_ms: float
    good: float
    balance: float
    preemptions: int
    decision_us: float
    cpu_s: float
    instances: Mapping[str, OfOne]


def run_cell(asked: Asked, workload: Workload) -> Got:
    """Run it; `workload`: its traffic. Raises ConfigError."""
    setup = Setup(
        fleet=asked.fleet,
        policy=asked.policy,
        speed=asked.speed,
        seed=asked.seed,
        event_delay_s=asked.event_delay_s,
        unknown_share=asked.unknown_share,
        speeds=dict.fromkeys(asked.slow, 0.5),
    )
    begun = time.process_time()
    part = WITHOUT.get(asked.policy)
    with part.around() if part else contextlib.nullcontext():
        figures = Run(workload, setup, policy=part.make if part else _maker(asked.policy)).to_end()
    return _got(asked, figures, time.process_time() - begun)


def _maker(name: str) -> Callable[[], AnyPolicy]:
    return Today if name == "today" else functools.partial(named_policy, name)


def _got(asked: Asked, figures: Figures, cpu_s: float) -> Got:
    return Got(
        asked=asked,
        requests=figures.requests,
        served=figures.served,
        reuse=figures.reuse,
        ttft_ms=figures.ttft_ms.mean,
        ttft_p50_ms=figures.ttft_ms.p50,
        ttft_p90_ms=figures.ttft_ms.p90,
        ttft_p99_ms=figures.ttft_ms.p99,
        itl_p99_ms=figures.itl_ms.p99,
        whole_ms=figures.whole_ms.mean,
        good=figures.good,
        balance=figures.balance,
        preemptions=figures.preemptions,
        decision_us=figures.decision_us.p50,
        cpu_s=cpu_s,
        instances={
            name: OfOne(
                requests=each.requests,
                prefill_use=each.prefill_use,
                decode_use=each.decode_use,
                prefilled_tokens=each.prefilled_tokens,
                generated_tokens=each.generated_tokens,
                preemptions=each.preemptions,
            )
            for name, each in figures.instances.items()
        },
    )
