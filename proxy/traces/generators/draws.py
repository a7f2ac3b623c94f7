"""What is drawn at random comes from one stream of dice, so that a seed says all of it."""

import numpy as np

from proxy.errors import TraceError

MOST_TIMES = 5_000_000
"""So many times of arrival are drawn at most, which takes some seconds; more are a mistake in the figures."""


class Draws:
    """Dice of one workload."""

    def __init__(self, seed: int) -> None:
        self._dice = np.random.default_rng(seed)

    def length(self, mean: float, spread: float = 0.8) -> int:
        """A length in tokens, at least 1: log-normal, as lengths are in every trace."""
        return max(round(self.seconds(mean, spread)), 1)

    def seconds(self, mean: float, spread: float = 0.8) -> float:
        """A time, log-normal. `spread`: the standard deviation of its logarithm."""
        return float(self._dice.lognormal(0.0, spread)) * mean / float(np.exp(spread * spread / 2))

    def turns(self, mean: float) -> int:
        """How often something happens that may end each time: geometric, at least 1."""
        return int(self._dice.geometric(1 / max(mean, 1.0)))

    def happens(self, share: float) -> bool:
        """Whether something happens that does so in this share of all cases."""
        return float(self._dice.random()) < share

    def between(self, least: float, most: float) -> float:
        """A number from the one to the other, all equally likely."""
        return float(self._dice.uniform(least, max(least, most)))

    def times(self, per_s: float, duration_s: float, burst: float = 1.0) -> list[float]:
        """Times of arrival. `burst`: the deviation of gaps as a share of their mean: 1 is Poisson, more comes
        in bursts, 0 is a clock. Raises TraceError if there are more than `MOST_TIMES`.
        """
        found: list[float] = []
        at_s = 0.0
        while per_s > 0:
            if burst > 0:
                shape = 1 / (burst * burst)
                at_s += float(self._dice.gamma(shape, 1 / (per_s * shape)))
            else:
                at_s += 1 / per_s
            if at_s >= duration_s:
                break
            if len(found) == MOST_TIMES:
                raise TraceError(f"these figures make more than {MOST_TIMES} arrivals")
            found.append(at_s)
        return found

    def popular(self, count: int, exponent: float) -> "Popular":
        """Things of which the n-th most popular is wanted n**-exponent as often as the first (Zipf)."""
        return Popular(self._dice, count, exponent)


class Popular:
    """Draws one of several things, the first ones most often."""

    def __init__(self, dice: np.random.Generator, count: int, exponent: float) -> None:
        self._dice = dice
        self._sums = np.cumsum(np.arange(1, count + 1, dtype=float) ** -exponent)

    def draw(self) -> int:
        """One of them, by its rank from 0."""
        drawn = self._dice.random() * self._sums[-1]
        return min(int(np.searchsorted(self._sums, drawn, side="right")), len(self._sums) - 1)
