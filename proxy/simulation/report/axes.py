"""An axis names round values, few enough to stand apart, and every value of its data lies on it."""

import math
from collections.abc import Iterable, Sequence

import msgspec

_ROUND = (1.0, 2.0, 5.0)
MOST_TICKS = 6
"""So many values are named at most."""
LOG_FROM = 20.0
"""Values that lie so many times apart are shown by their logarithm, or small ones could not be told apart."""
_APART = 0.11
"""The least distance between two names, as a share of the axis."""


class Axis(msgspec.Struct, frozen=True):
    """From `low` to `high`, with the values that are named."""

    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`, and at the nearer end if it is beyond."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def from_zero(greatest: float, *, most: int = MOST_TICKS) -> Axis:
    """An axis from 0 to a round value that is not below the greatest."""
    greatest = greatest if greatest > 0 else 1.0
    step = _round_up(greatest / (most - 1))
    count = math.ceil(greatest / step - 1e-9)
    return Axis(0.0, count * step, [number * step for number in range(count + 1)])


def up_to(end: float, *, most: int = MOST_TICKS) -> Axis:
    """An axis from 0 that ends exactly there, for time: only what is named is round."""
    end = end if end > 0 else 1.0
    step = _round_up(end / (most - 1))
    return Axis(0.0, end, [number * step for number in range(math.floor(end / step + 1e-9) + 1)])


def for_values(values: Iterable[float]) -> Axis:
    """An axis from 0, or a logarithmic one where values lie far apart; they are 0 or more."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < LOG_FROM * min(positive):
        return from_zero(max(positive, default=0.0))
    low, high = _round_down(min(positive)), _round_up(max(positive))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for named in (_ROUND, _ROUND[:1]):
        ticks = [figure * 10.0**decade for decade in decades for figure in named]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= MOST_TICKS:
            break
    return Axis(low, high, ticks, is_log=True)


def of_steps(values: Sequence[float]) -> Axis:
    """An axis that names the values themselves, less those that would stand too close to another."""
    low, high = min(values), max(values)
    axis = Axis(low, high, []) if low < high else Axis(low - 1, high + 1, [])
    ticks: list[float] = []
    for value in sorted(set(values)):
        if not ticks or axis.share(value) - axis.share(ticks[-1]) >= _APART:
            ticks.append(value)
    return Axis(axis.low, axis.high, ticks)


def named(value: float) -> str:
    """A round value as an axis has it."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _round_up(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return next((f * decade for f in _ROUND if f * decade >= value * (1 - 1e-9)), 10.0 * decade)


def _round_down(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return max((f * decade for f in _ROUND if f * decade <= value * (1 + 1e-9)), default=decade)
