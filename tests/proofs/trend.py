"""Whether a figure grows: the slope of a straight line through its samples, with the slope's standard error.

Pure. The usual least squares. Samples of one process depend on those before them (a burst's memory is kept
for a while), so the error is made larger by what their residuals have in common with the next: as if there
were fewer samples, n * (1 - r) / (1 + r) for a first-order autoregression with autocorrelation r (Bayley and
Hammersley, 1946). A floor says what growth would not matter anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_ALIKE = 0.9
"""The largest autocorrelation that is believed: an hour of samples is then worth six."""

SURE = 3.0
"""Standard errors beyond which a slope is no noise: one flat figure in 700 is then called growing. A soak
judges 14."""


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
    off = [v - mean_v - slope * (t - mean_t) for t, v in zip(hours, values, strict=True)]
    rest = sum(one * one for one in off)
    alike = sum(one * then for one, then in pairwise(off)) / rest if rest else 0.0
    alike = min(max(alike, 0.0), MAX_ALIKE)
    return Trend(slope, math.sqrt(rest / (count - 2) / spread * (1 + alike) / (1 - alike)))
