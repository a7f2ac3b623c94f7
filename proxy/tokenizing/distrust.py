"""A kind of request whose prompt an engine counted differently is unknown for a while; few kinds are
remembered.
"""

from collections import OrderedDict
from collections.abc import Callable

DISTRUST_S = 600.0
"""Seconds that a kind of request stays unknown after an engine counted its prompt differently.

They are enough not to route by a wrong count, and few enough that a passing cause (an engine that was
replaced meanwhile) is soon over."""

MAX_KINDS = 256
"""The most kinds that are remembered: members that clients make up are part of a kind. For a new one the kind
that was distrusted longest ago is forgotten."""


class Distrust:
    """The kinds that are distrusted now; names of members in a kind are bounded where it is made."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, kind: str) -> None:
        """An engine has just counted a prompt of this kind differently."""
        self._until[kind] = self._clock() + DISTRUST_S
        self._until.move_to_end(kind)
        if len(self._until) > MAX_KINDS:
            self._until.popitem(last=False)

    def __contains__(self, kind: str) -> bool:
        """Whether a kind is distrusted now."""
        until = self._until.get(kind)
        return until is not None and until > self._clock()

    def __len__(self) -> int:
        """The number of kinds that are remembered."""
        return len(self._until)
