"""A rank serves LoRA adapters in the order in which their legs came there, and each as long as it has legs.

An engine computes requests for so many adapters at once as it has slots (vLLM's `--max-loras`); those for
another one wait until an adapter that has a slot has no request left.
"""

from collections.abc import Collection

FIRST_USUAL_S = 5.0
"""How long a leg is supposed to take before one has ended: some hundred tokens."""

USUAL_SHARE = 0.1
"""What a leg that has ended changes of the average: the last ten or so count."""


class AdapterLegs:
    """The running legs of one rank by their adapter."""

    __slots__ = ("_legs", "usual_s")

    def __init__(self) -> None:
        self._legs: dict[str, int] = {}
        self.usual_s = FIRST_USUAL_S
        """How long a leg takes in the average of the latest."""

    def begin(self, adapter: str) -> None:
        """A leg for an adapter runs from now on."""
        self._legs[adapter] = self._legs.get(adapter, 0) + 1

    def end(self, adapter: str, lasted_s: float) -> None:
        """One of its legs is over."""
        left = self._legs[adapter] - 1
        if left:
            self._legs[adapter] = left
        else:
            del self._legs[adapter]
        self.usual_s += USUAL_SHARE * (lasted_s - self.usual_s)

    def wait_ms(self, adapter: str, slots: int, others: Collection[str]) -> float:
        """How long a leg for an adapter is predicted to wait for a slot there.

        `slots`: how many adapters it serves at once, at least 1; `others`: adapters that have legs of other
        routers there, which come first, since nothing is known of their order.
        """
        own = self._legs
        before = sum(each not in own for each in others if each != adapter)
        for each in own:
            if each == adapter:
                break
            before += 1
        if adapter in others and adapter not in own:
            before = min(before, slots - 1)
        return 1000 * self.usual_s * (before // slots)
