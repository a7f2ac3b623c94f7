"""A decision carries every candidate with its terms, so that it can be explained long after it was made."""

import math
import random
from collections.abc import Sequence

import msgspec

from proxy.scheduling.types import Candidate, Leg, Policy


class Priced(msgspec.Struct, frozen=True):
    """A candidate and its cost; no cost if it was not usable."""

    candidate: Candidate
    cost: float | None


class Pick(msgspec.Struct, frozen=True):
    """The outcome for one leg."""

    chosen: Candidate | None
    """None if no candidate was usable."""
    candidates: tuple[Priced, ...]


class Decision(msgspec.Struct, frozen=True):
    """Where a request goes. `prefill.chosen` and `decode.chosen` are the same for one that is served in one leg."""

    policy: str
    prompt_tokens: int | None
    prefill: Pick
    decode: Pick

    @property
    def admissible(self) -> bool:
        """Whether both legs have somewhere to go."""
        return self.prefill.chosen is not None and self.decode.chosen is not None

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        prefill, decode = self.prefill.chosen, self.decode.chosen
        return prefill is not None and decode is not None and prefill.instance == decode.instance


def pick(policy: Policy, leg: Leg, candidates: Sequence[Candidate], rng: random.Random) -> Pick:
    """Let `policy` price the usable candidates and take the cheapest, ties at random.

    A price that is no number counts as infinitely high. Raises ValueError if the policy does not answer with
    one price a candidate.
    """
    usable = [candidate for candidate in candidates if candidate.usable]
    if not usable:
        return Pick(None, tuple(Priced(candidate, None) for candidate in candidates))
    costs = [math.inf if math.isnan(cost) else float(cost) for cost in policy.costs(leg, usable)]
    if len(costs) != len(usable):
        raise ValueError(f"the policy gave {len(costs)} costs for {len(usable)} candidates")
    lowest = min(costs)
    chosen = rng.choice([c for c, cost in zip(usable, costs, strict=True) if cost == lowest])
    prices = iter(costs)
    return Pick(chosen, tuple(Priced(c, next(prices) if c.usable else None) for c in candidates))
