"""Of two instances that are drawn a leg goes to the one with fewer outstanding tokens.

That is nearly as even as looking at all of them (Mitzenmacher, 2001), and several kvproxies that do not know
of each other's requests do not all run to the same instance.
"""

import math
from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class PowerOfTwo:
    """Prices the two candidates that are drawn by their outstanding tokens, and the others infinitely."""

    unit = "tokens"
    reads_prompt = False

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`, in tokens."""
        count = len(candidates)
        if count <= 2:  # two are drawn
            return [c.load_tokens for c in candidates]
        one, other = divmod(int(leg.draw * count * (count - 1)), count - 1)
        other += other >= one  # any but the first one, all of them equally often
        costs = [math.inf] * count
        for drawn in (one, other):
            costs[drawn] = candidates[drawn].load_tokens
        return costs
