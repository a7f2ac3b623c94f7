"""A policy that prices legs places the prefill leg first and then the decode leg; this adapter makes that one
choice.

So pairs need not be priced. An instance that does both serves the whole request if it gets the prefill leg.
"""

import random
from collections.abc import Iterator, Sequence

from proxy.phases import Phase
from proxy.scheduling.decision import Choice, Pick, Priced, cheapest, checked
from proxy.scheduling.types import Candidate, Leg, LegPolicy, View


class ByLeg:
    """A `Chooser` by a policy that prices legs."""

    reads_all = False

    def __init__(self, policy: LegPolicy) -> None:
        self._policy = policy
        self.unit: str | None = getattr(policy, "unit", None)

    def choose(self, view: View, rng: random.Random) -> Choice:
        """As `Chooser`."""
        if view.whole:
            only = self._pick(Phase.DECODE, view, rng)
            return Choice(only, only)
        prefill = self._pick(Phase.PREFILL, view, rng)
        if prefill.chosen is not None and prefill.chosen.serves_all:
            return Choice(prefill, prefill)
        return Choice(prefill, self._pick(Phase.DECODE, view, rng))

    def choose_decode(self, view: View, rng: random.Random) -> Choice:
        """As `Chooser`; the prefill leg is not priced."""
        (done,) = view.prefill
        return Choice(Pick(done, (Priced(done, None),)), self._pick(Phase.DECODE, view, rng))

    def _pick(self, phase: Phase, view: View, rng: random.Random) -> Pick:
        candidates = view.prefill if phase is Phase.PREFILL else view.decode
        computes = phase is Phase.PREFILL or view.whole
        leg = Leg(phase, view.model, view.prompt_tokens, computes, view.session, rng.random(), view.find_keys)
        if not view.complete:  # all are usable, and there is one
            costs = checked(self._policy.costs(leg, candidates), len(candidates), "candidates")
            return Pick(candidates[cheapest(costs, rng)])
        usable = [candidate for candidate in candidates if candidate.usable]
        if not usable:
            return Pick(None, [Priced(candidate, None) for candidate in candidates])
        costs = checked(self._policy.costs(leg, usable), len(usable), "candidates")
        priced = list(zip(usable, costs, strict=True))
        if phase is Phase.PREFILL and not any(candidate.usable for candidate in view.decode):
            # No decode instance could take over, so an instance that does both is preferred.
            priced = [each for each in priced if each[0].serves_all] or priced
        chosen, _ = priced[cheapest([cost for _, cost in priced], rng)]
        return Pick(chosen, list(_with_costs(candidates, costs)))


def _with_costs(candidates: Sequence[Candidate], costs: Sequence[float]) -> Iterator[Priced]:
    """All candidates with their costs; `costs`: those of the usable ones, in their order."""
    left = iter(costs)
    return (Priced(c, next(left) if c.usable else None) for c in candidates)
