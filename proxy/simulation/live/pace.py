"""Invariant: steps that follow each other take as long as they are to, though each ends a little late.

A busy machine wakes nobody in time. Were each step timed from the end of the one before, an engine would be
slower than its profile by every delay of its machine.
"""

CAUGHT_UP_S = 0.02
"""The most that a step is shorter for those before it: what stood still longer has lost that time."""


class Pace:
    """Says when each step of an engine is to end."""

    def __init__(self) -> None:
        self._due_s: float | None = None

    def ends_s(self, now_s: float, duration_s: float) -> float:
        """When the step that begins now is to end: so long after the one before was to."""
        begin_s = now_s if self._due_s is None else max(self._due_s, now_s - CAUGHT_UP_S)
        self._due_s = begin_s + duration_s
        return self._due_s

    def rests(self) -> None:
        """There is no step now: the next one begins when it begins."""
        self._due_s = None
