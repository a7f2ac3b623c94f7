"""A prompt goes where the longest part of it was sent before, unless that makes one instance much busier than
another.

For engines without KV events: what they have cached is guessed from what they were sent. The rule and its
figures are those of SGLang's router (`cache_aware`).
"""

import math
from collections.abc import Sequence

from proxy.scheduling.routing_history import RoutingHistory
from proxy.scheduling.types import CacheLost, Candidate, Granted, Leg, Told

LEAST_SHARE = 0.3
"""A match counts if it is more than this share of the prompt: shorter ones are beginnings that all prompts
have, and would draw all of them to one instance."""

UNEVEN_LEGS = 64
UNEVEN_RATIO = 1.5
"""Matches do not count while the busiest instance has this many more legs running than the idlest, and this
many times as many."""


class ApproxPrefix:
    """Prices the instances that hold the longest match by their running legs, and the others infinitely; all
    by their running legs if there is no match that counts. So it does for decode legs.
    """

    unit = "legs"

    def __init__(self, history: RoutingHistory | None = None) -> None:
        """`history`: what was sent where; None for an empty one."""
        self._history = RoutingHistory() if history is None else history

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`, in legs."""
        legs = [c.running_legs for c in candidates]
        least, most = min(legs), max(legs)
        if not leg.computes or (most - least > UNEVEN_LEGS and most > UNEVEN_RATIO * least):
            return [float(count) for count in legs]
        keys = leg.block_keys
        matches = self._history.matches(keys)
        matched = [matches.get((c.instance, c.rank), 0) for c in candidates]
        longest = max(matched)
        if longest <= LEAST_SHARE * len(keys):
            return [float(count) for count in legs]
        return [
            float(count) if there == longest else math.inf for count, there in zip(legs, matched, strict=True)
        ]

    def learn(self, told: Told) -> None:
        """As `Learner`: remember where a prompt was sent, and forget what an instance has lost."""
        match told:
            case Granted():
                place = (told.prefill.instance, told.prefill.rank)
                self._history.sent(place, told.block_keys)
            case CacheLost():
                self._history.forget(told.instance)
