"""What simulated time says of a workload, for several seeds: so far do runs differ by what is drawn."""

import dataclasses
from collections.abc import Sequence

from proxy.latency.profiles import Profile
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.replay.figures import Figures
from proxy.simulation.replay.records import Record
from proxy.simulation.replay.run import Run, Setup
from proxy.traces.workload import Workload


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
            workload,
            Setup(fleet=fleet, policy=policy, seed=seed, event_delay_s=event_delay_s),
            shape=shape,
            prior=prior,
        )
        for seed in range(seeds)
    ]
    return Simulated([run.to_end() for run in runs], runs[0].records)
