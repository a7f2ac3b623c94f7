"""Whether a figure grows: the slope of a straight line through its samples, with the slope's standard error.

Pure. The usual least squares; the error assumes samples that do not depend on each other, so it is rather too small
for a figure that wanders, and a floor says what growth would not matter anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SURE = 2.0
"""Standard errors beyond which a slope is no noise: one flat figure in forty is then called growing."""


@dataclass(frozen=True)
class Trend:
    """A slope per hour and its standard error, in the samples' unit."""

    slope: float
    error: float

    def grows(self, floor: float) -> bool:
        """Whether it grows by more than noise, and by more than `floor` an hour."""
        return self.slope > max(SURE * self.error, floor)


def trend(hours: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of `values` over their times. ValueError for fewer than three samples, or all at one time."""
    count = len(hours)
    if count < 3 or count != len(values):
        raise ValueError(f"a trend needs three samples or more, got {count} times and {len(values)} values")
    mean_t, mean_v = sum(hours) / count, sum(values) / count
    spread = sum((t - mean_t) ** 2 for t in hours)
    if not spread:
        raise ValueError("a trend needs samples of different times")
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(hours, values, strict=True)) / spread
    rest = sum((v - mean_v - slope * (t - mean_t)) ** 2 for t, v in zip(hours, values, strict=True))
    return Trend(slope, math.sqrt(rest / (count - 2) / spread))
