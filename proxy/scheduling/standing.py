"""Which ranks there are, and whose instance serves a model, is kept until the fleet changes.

What changes without the fleet's saying so, how well an instance is and what its engine has said of its room,
is asked each time; of one that is well that is a single look.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.fleet import Fleet, Instance
from proxy.phases import Phase, Role
from proxy.scheduling.types import Candidate

MAX_MODELS = 256
"""More models are not remembered at once: clients name them."""


class Rank:
    """One rank of an instance that takes legs of a phase."""

    __slots__ = ("address", "at", "instance", "kept", "kept_at", "limited", "load", "number", "serves_all")

    def __init__(self, instance: Instance, number: int, phase: Phase) -> None:
        self.instance = instance
        self.address = instance.address
        self.number = number
        self.at = (self.address, number)
        self.load = instance.load.on(phase, number)
        self.serves_all = instance.role is Role.BOTH
        # An instance that does both serves the request in one leg, which weighs as much as a decode leg.
        self.limited = Phase.DECODE if self.serves_all else phase
        self.kept: Candidate
        """What it was for a request whose prompt is not known, when `load.changes` was `kept_at`."""
        self.kept_at = -1


class Served(NamedTuple):
    """The instances that a request for a model may go to."""

    ranks: Sequence[Rank]
    instances: Sequence[Instance]
    shortest_context: float


class Standing:
    """Who takes legs of a phase, in the fleet's order."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._ranks: dict[Phase, Sequence[tuple[Instance, Sequence[Rank]]]] = {}
        self._served: dict[tuple[Phase, str], Served] = {}
        self._changes = -1

    def ranks(self, phase: Phase) -> Sequence[tuple[Instance, Sequence[Rank]]]:
        """Every instance with its ranks."""
        if self._changes != self._fleet.changes:
            self._renew()
        return self._ranks[phase]

    def served(self, phase: Phase, model: str) -> Served:
        """Those whose instance is up, not drained, and serves a model."""
        if self._changes != self._fleet.changes:
            self._renew()
        served = self._served.get((phase, model))
        if served is None:
            usable = [each for each in self._ranks[phase] if each[0].why_unusable(model) is None]
            served = Served(
                [rank for _, ranks in usable for rank in ranks],
                [instance for instance, _ in usable],
                min((instance.max_model_len for instance, _ in usable), default=0),
            )
            if len(self._served) >= MAX_MODELS:
                self._served.clear()
            self._served[phase, model] = served
        return served

    def well(self, phase: Phase, served: Served, now: float) -> Sequence[Rank]:
        """Those of them that nothing sets apart: as good as any, given room."""
        apart = [i for i in served.instances if i.breaker.restless_until > now or i.fullness.is_known]
        if not apart:
            return served.ranks
        aside = self._fleet.set_aside(phase, now)
        left = {i.address for i in apart if i.address in aside or i.says_full(now)}
        return [rank for rank in served.ranks if rank.address not in left]

    def _renew(self) -> None:
        self._changes = self._fleet.changes
        self._served.clear()
        self._ranks = {
            phase: [
                (instance, [Rank(instance, number, phase) for number in instance.ranks])
                for instance in self._fleet.of(phase)
            ]
            for phase in Phase
        }
