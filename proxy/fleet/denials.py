"""An engine that answers 404 for a model it lists is believed the second time in a row, and then for a while.

Pure: times are passed in. Once may be a list that was read before the model was unloaded. Twice is an engine
that does not serve what it lists, or not on this path; each try costs a leg, and of a decode engine a prefill
leg, too.
"""

from collections import Counter

IN_A_ROW = 2

LEFT_OUT_S = 60.0
"""So long it gets no leg for that model, and then one that tries it: as rare as a new adapter, or a new
release."""

MAX_MODELS = 256
"""More of one engine are not remembered: clients name them."""


class Denials:
    """What one instance has denied. Times are seconds of any one monotonic clock."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._in_a_row)

    def denied(self, model: str, now: float) -> bool:
        """It answered 404 for a model that it lists. Tells whether it is left out for that model from now
        on.
        """
        if model not in self._in_a_row and len(self._in_a_row) >= MAX_MODELS:
            return False
        self._in_a_row[model] += 1
        out = self._in_a_row[model] >= IN_A_ROW and not self.left_out(model, now)
        if out:
            self._until[model] = now + LEFT_OUT_S
        return out

    def served(self, model: str) -> None:
        """It has served one."""
        self._in_a_row.pop(model, None)
        self._until.pop(model, None)

    def left_out(self, model: str, now: float) -> bool:
        """Whether it is left out for a model."""
        return now < self._until.get(model, now)

    def forget(self) -> None:
        """It is another process."""
        self._in_a_row.clear()
        self._until.clear()
