"""Of the pairs that are predicted to meet a goal for the first token, what costs others least is best.

A client that says when it needs its first token has no use for an earlier one. So what the request itself
waits is not counted against a pair that meets its goal, only the price of what it costs others; where no pair
does, prices are what they are without a goal. Pure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

SURE_SHARE = 0.8
"""A prediction meets a goal if it is within this share of the time that is left: predictions are off by a
tenth or so, and one that is just as long as the goal would be missed half of the time."""

OWN_SHARE = 1e-3
"""What the time to its own first token counts beside what a pair costs others: of equal ones it decides."""


def prices_within(prices: Sequence[float], ttft_ms: Sequence[float], left_ms: float) -> Sequence[float]:
    """The prices of pairs for a request whose first token is wanted in `left_ms`.

    `prices`: without that; `ttft_ms`: when each has its first token, as is predicted, which its price counts.
    """
    sure_ms = SURE_SHARE * left_ms
    meeting = {
        place: price - (1 - OWN_SHARE) * own_ms
        for place, (price, own_ms) in enumerate(zip(prices, ttft_ms, strict=True))
        if own_ms <= sure_ms
    }
    if not meeting:
        return prices
    most = max(meeting.values())
    behind = math.nextafter(most, math.inf)  # a price may be too small to change the sum
    return [
        meeting[place] if place in meeting else max(most + price, behind)
        for place, price in enumerate(prices)
    ]


class Lateness(NamedTuple):
    """When a first token is predicted, and when it is wanted."""

    ttft_ms: float
    """From now, as predicted."""
    left_ms: float
    """From now, as wanted; below 0 it is late already."""
    goal_ms: float
    """As wanted, from the request's arrival."""

    def is_far(self, factor: float) -> bool:
        """Whether it comes later, counted from the request's arrival, than `factor` times the goal; 0 for
        never.
        """
        return factor > 0 and self.goal_ms - self.left_ms + self.ttft_ms > factor * self.goal_ms
