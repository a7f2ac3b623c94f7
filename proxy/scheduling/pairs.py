"""Of all pairs that could serve a request the cheapest is chosen: both legs are placed by one price."""

import random
from collections.abc import Mapping, Sequence

from proxy.scheduling.decision import Choice, Pick, Priced, PricedPairs, cheapest, checked
from proxy.scheduling.types import Candidate, Policy, View


class ByPair:
    """A `Chooser` by a policy that prices pairs."""

    reads_all = True

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.unit: str | None = policy.unit

    def choose(self, view: View, rng: random.Random) -> Choice:
        """As `Chooser`."""
        pairs = view.pairs
        if not pairs:
            prefill, decode = (
                Pick(None, [Priced(c, None) for c in each]) for each in (view.prefill, view.decode)
            )
            return Choice(decode if view.whole else prefill, decode)
        prices = checked(self._policy.prices(view), len(pairs), "pairs")
        chosen = pairs[cheapest(prices, rng)]
        prefill_costs: dict[tuple[str, int], float] = {}
        decode_costs: dict[tuple[str, int], float] = {}
        for pair, price in zip(pairs, prices, strict=True):
            for leg, costs in ((pair.prefill, prefill_costs), (pair.decode, decode_costs)):
                at = (leg.instance, leg.rank)
                costs[at] = min(price, costs.get(at, price))
        prefill = _pick(chosen.prefill, view.prefill or view.decode, prefill_costs)
        decode = _pick(chosen.decode, view.decode or view.prefill, decode_costs)
        return Choice(prefill, decode, PricedPairs(pairs, prices))

    def choose_decode(self, view: View, rng: random.Random) -> Choice:
        """As `Chooser`."""
        return self.choose(view, rng)


def _pick(chosen: Candidate, candidates: Sequence[Candidate], costs: Mapping[tuple[str, int], float]) -> Pick:
    return Pick(
        chosen, [Priced(c, costs.get((c.instance, c.rank)) if c.usable else None) for c in candidates]
    )
