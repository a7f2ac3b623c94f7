"""Every run that is made is kept, so that whenever the search ends its runs are a plan.

Limits are looked for on a sample of the workload, the stretch with the most requests; then the best are tried
with all of it, until the best limit is one of these, or MOST_PROVEN were tried.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from proxy.errors import ConfigError
from proxy.simulation.planning import search, splits
from proxy.simulation.planning.outcome import (
    IDLE,
    Carries,
    Plan,
    Sample,
    Task,
    met,
    plan_of,
)
from proxy.simulation.planning.splits import Both
from proxy.simulation.planning.trial import Trial, attempt
from proxy.simulation.replay.fleets import parse_fleet
from proxy.simulation.replay.run import Progress, Setup
from proxy.traces.shaping import between
from proxy.traces.workload import Workload

MOST_PROVEN = 3
"""So many splits are tried with the whole workload at most."""
PROVING_STEP = 1.12
"""Between loads that are tried with the whole workload: the limit is already known roughly."""
SAMPLE = 1500
SAMPLE_OF_INSTANCE = 150
"""A sample has so many requests, or so many for each instance if that is more."""

Watch = Callable[[str], Progress | None]
"""Called with what is run next; what it returns hears of that run's progress."""


class Planner:
    """Looks for the split that carries most."""

    def __init__(
        self,
        workload: Workload,
        setup: Setup,
        *,
        gpus: int,
        gpus_per_instance: int = 1,
        share: float = 0.95,
        both: Both = Both.ALL,
        fleets: Sequence[str] = (),
        sample: int | None = None,
        watch: Watch = lambda _: None,
    ) -> None:
        """`setup`: what all runs have in common. `fleets`: the only ones to try, by default all that `both`
        says. `sample`: requests of it, 0 for the whole workload. Raises ConfigError.
        """
        self.instances = splits.instances_of(gpus, gpus_per_instance)
        self._fleets = list(fleets) or self._all(both)
        for fleet in self._fleets:
            if (count := len(parse_fleet(fleet))) != self.instances:
                words = f"{count} instances, but --gpus makes {self.instances}"
                raise ConfigError(f"--fleet {fleet!r}: {words}")
        if not self._fleets:
            raise ConfigError(f"--gpus {gpus}: one instance cannot be split")
        size = max(SAMPLE, SAMPLE_OF_INSTANCE * self.instances) if sample is None else sample
        self._workload = workload
        self._sample, stretch = _busiest(workload, size)
        self.task = Task(
            workload=workload.name,
            source=workload.source,
            requests=len(workload.requests),
            per_s=_per_s(workload),
            gpus=gpus,
            gpus_per_instance=gpus_per_instance,
            share=share,
            setup=setup,
            sample=stretch,
        )
        self._chosen = bool(fleets)
        self._watch = watch
        self.trials: list[Trial] = []

    def _all(self, both: Both) -> list[str]:
        found = splits.parted(self.instances)
        if both is not Both.NONE:
            found.append(splits.whole(self.instances))
        if both is Both.SOME:
            found += splits.mixed(self.instances)
        return found

    def plan(self, *, finished: bool = True) -> Plan:
        """What is known so far."""
        return plan_of(self.task, self._fleets, self.trials, finished=finished)

    def left_s(self) -> float | None:
        """About how many seconds of this machine the rest takes; None before the first run."""
        if not self.trials:
            return None
        sampled = [trial for trial in self.trials if trial.whole == (self.task.sample is None)]
        each_s = sum(trial.wall_s for trial in sampled) / max(1, len(sampled))
        seen = {trial.fleet for trial in sampled}
        line = len(self._line())
        fleets = len(self._fleets) - line + min(line, splits.FEW + 5)
        runs = search.most_runs()
        left = max(0, fleets - len(seen)) * runs
        left += max(0, runs - sum(trial.fleet == self.trials[-1].fleet for trial in sampled))
        left_s = left * each_s
        if self.task.sample is not None:
            proven = sum(trial.whole for trial in self.trials)
            times = self.task.requests / self.task.sample.requests
            left_s += max(0, 2 * 3 - proven) * each_s * times
        return left_s

    # -- which runs ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Make all runs. Raises ConfigError."""
        guess = 1.0
        for fleet in self._order():
            guess = self._search(fleet, guess) or guess
        if self.task.sample is None:
            return
        for _ in range(MOST_PROVEN):
            best = self._best()
            if best is None or best.whole or best.meets is None:
                break
            self._search(best.fleet, best.meets, whole=True)

    def _best(self) -> Carries | None:
        """Whoever carries most by what was seen last."""
        able = [split for split in self.plan().splits if split.meets is not None]
        return max(able, key=lambda split: split.meets or 0.0, default=None)

    def _order(self) -> Iterator[str]:
        """Of many splits in order some, and then those around the best, until its neighbours were tried."""
        line = self._line()
        tried = splits.first_of(line)
        for place in tried:
            yield line[place]
        while tried:
            limits = {split.fleet: split.meets or 0.0 for split in self.plan().splits}
            best = max(sorted(tried), key=lambda place: limits.get(line[place], 0.0))
            if not (more := splits.next_of(tried, best)):
                break
            for place in more:
                tried.append(place)
                yield line[place]
        yield from (fleet for fleet in self._fleets if fleet not in line)

    def _line(self) -> list[str]:
        """The splits of which, if they are many, only some are tried."""
        if self._chosen:
            return []
        parted = set(splits.parted(self.instances))
        return [fleet for fleet in self._fleets if fleet in parted]

    def _search(self, fleet: str, guess: float, *, whole: bool = False) -> float | None:
        """The highest load that meets the goals; None if not even an idle fleet does."""
        if whole:
            found = search.search(
                lambda load: self._meets(fleet, load, whole=True), guess,
                step=PROVING_STEP, lowest=IDLE, highest=guess * 2,
            )  # fmt: skip
        else:
            found = search.search(lambda load: self._meets(fleet, load), guess, lowest=IDLE)
        return found.meets

    def _meets(self, fleet: str, load: float, *, whole: bool = False) -> bool:
        load = search.round_load(load)
        whole = whole or self.task.sample is None
        known = [t for t in self.trials if (t.fleet, t.whole) == (fleet, whole) and t.speed == load]
        if not known:
            setup = msgspec.structs.replace(self.task.setup, fleet=fleet, speed=load)
            words = f"{fleet} at {load:g} times the load"
            known = [
                attempt(
                    self._workload if whole else self._sample,
                    setup,
                    self.task.share,
                    whole=whole,
                    leaves=load > IDLE,
                    progress=self._watch(words),
                )
            ]
            self.trials += known
        return met(known[0], self.task.share)


def _busiest(workload: Workload, size: int) -> tuple[Workload, Sample | None]:
    """The stretch of a workload in which so many requests come in the least time; all of a small one."""
    count = len(workload.requests)
    if not 0 < size < count:
        return workload, None
    at_s = np.sort(np.array([request.at_s for request in workload.requests], np.float64))
    begin = int(np.argmin(at_s[size - 1 :] - at_s[: count - size + 1]))
    from_s, to_s = float(at_s[begin]), float(np.nextafter(at_s[begin + size - 1], np.inf))
    sample = between(workload, from_s, to_s)
    if len(sample.requests) == count:
        return workload, None
    return sample, Sample(len(sample.requests), from_s, to_s)


def _per_s(workload: Workload) -> float | None:
    requests = workload.requests
    if any(request.after is not None for request in requests):
        return None
    span_s = max(request.at_s for request in requests) - min(request.at_s for request in requests)
    return len(requests) / span_s if span_s > 0 else None
