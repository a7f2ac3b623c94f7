"""A kind of request that an engine counted otherwise is not believed to be known, for a while; few kinds are
remembered.
"""

from collections import OrderedDict
from collections.abc import Callable

DISTRUST_S = 600.0
"""How long a kind of request stays unknown after an engine counted its prompt otherwise: long enough not to
route by a wrong count, short enough that a passing cause (an engine replaced in between) heals."""

MAX_KINDS = 256
"""Members that clients make up are part of a kind. The one distrusted longest ago is forgotten for a new
one."""


class Distrust:
    """The kinds that are distrusted now; names of members in them are bounded in length by who makes
    kinds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, kind: str) -> None:
        """An engine counted a prompt of this kind otherwise now."""
        self._until[kind] = self._clock() + DISTRUST_S
        self._until.move_to_end(kind)
        if len(self._until) > MAX_KINDS:
            self._until.popitem(last=False)

    def __contains__(self, kind: str) -> bool:
        """Whether it is distrusted now."""
        return self._until.get(kind, 0.0) > self._clock()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._until)
