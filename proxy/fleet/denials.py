"""An engine that answers 404 twice in a row for a model that it lists gets no legs for it for a while.

Pure: times are passed in. One 404 may only mean that the list was read before the model was unloaded. After
two the engine does not serve what it lists, or not on this path. Each try costs a leg, and for a decode
engine a prefill leg, too.
"""

from collections import Counter

IN_A_ROW = 2
"""How many 404s in a row leave an instance out."""

LEFT_OUT_S = 60.0
"""How long an instance is left out for a model before another leg tries it. A model is rarely there again: it
takes a new adapter, or a new release."""

MAX_MODELS = 256
"""The most models remembered of one engine: their names come from clients."""


class Denials:
    """The models that one instance has denied. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._in_a_row)

    def denied(self, model: str, now: float) -> bool:
        """The instance answered 404 for a model that it lists. True if it is left out for the model from now
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
        """The instance has served a request for the model."""
        self._in_a_row.pop(model, None)
        self._until.pop(model, None)

    def left_out(self, model: str, now: float) -> bool:
        """Whether the instance gets no legs for a model now."""
        return now < self._until.get(model, now)

    def forget(self) -> None:
        """Another process runs at the address: nothing is known of it."""
        self._in_a_row.clear()
        self._until.clear()
