"""What simulated time says of a workload, for several seeds: so far do runs differ by what no one decides.

A request that comes some milliseconds later can find another instance the better one, and so can all behind
it. On sockets they come when a machine lets them; so in all runs but the first they are late, by less than
`JITTER_S`.
"""

import dataclasses
import random
from collections.abc import Sequence

import msgspec

from proxy.latency.profiles import Profile
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.replay.figures import Figures
from proxy.simulation.replay.records import Record
from proxy.simulation.replay.run import Run, Setup
from proxy.traces.workload import Workload

JITTER_S = 0.02
"""About what the clients of a busy machine are late."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """The runs of one fleet and policy."""

    figures: Sequence[Figures]
    """Of each seed."""
    records: Sequence[Record]
    """Of the first seed, in the order of the workload."""

    @property
    def ttft_ms(self) -> list[float]:
        """The mean of each seed."""
        return [each.ttft_ms.mean for each in self.figures]

    @property
    def whole_ms(self) -> list[float]:
        return [each.whole_ms.mean for each in self.figures]

    @property
    def reuse(self) -> list[float]:
        return [each.reuse for each in self.figures]


def simulate(
    workload: Workload,
    shape: EngineShape,
    prior: Profile,
    fleet: str,
    policy: str,
    *,
    event_delay_s: float,
    seeds: int,
) -> Simulated:
    """Run the workload with the seeds from 0 on; the speeds of both worlds are in workload and shape."""
    runs = [
        Run(
            _jittered(workload, seed) if seed else workload,
            Setup(fleet=fleet, policy=policy, seed=seed, event_delay_s=event_delay_s),
            shape=shape,
            prior=prior,
        )
        for seed in range(seeds)
    ]
    return Simulated([run.to_end() for run in runs], runs[0].records)


def _jittered(workload: Workload, seed: int) -> Workload:
    dice = random.Random(seed)
    requests = [
        msgspec.structs.replace(each, at_s=each.at_s + JITTER_S * dice.random()) for each in workload.requests
    ]
    return msgspec.structs.replace(workload, requests=requests)
