"""Invariant: a quantile is exact over the last observations, and older ones do not count."""

import math
from collections import deque


class RunningError:
    """The error of the last predictions, as |predicted - observed| / observed."""

    __slots__ = ("_last",)

    def __init__(self, last: int) -> None:
        """`last`: of how many predictions."""
        self._last: deque[float] = deque(maxlen=last)

    def add(self, predicted: float, observed: float) -> None:
        """Take a prediction and what came of it, in the same unit; `observed` is above 0."""
        self._last.append(abs(predicted - observed) / observed)

    def quantile(self, share: float) -> float | None:
        """The error that this share (0 to 1) of the predictions does not exceed; None if there were none."""
        if not self._last:
            return None
        return sorted(self._last)[max(math.ceil(share * len(self._last)) - 1, 0)]
