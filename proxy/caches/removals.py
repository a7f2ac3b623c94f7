"""The blocks of a rank that were removed since a leg was decided are remembered while a leg asks for them, no
longer.
"""

from collections.abc import Sequence

MAX_REMOVED = 65_536
"""The most removals that are remembered of a rank: those of a cache of a million tokens that is emptied once,
8 MiB."""


class Removals:
    """The latest removals of one rank, by block key."""

    __slots__ = ("_forgot", "_last", "_open", "_serial", "_tickets")

    def __init__(self) -> None:
        self._serial = 0
        self._tickets = 0
        self._open: dict[int, int] = {}  # ticket -> serial when it was given; both ascend
        self._last: dict[int, int] = {}  # key -> serial of its last removal; in ascending order of serials
        self._forgot = 0  # any block may have been removed up to this serial

    def __len__(self) -> int:
        """The number of removals that are remembered."""
        return len(self._last)

    def begin(self) -> int:
        """Remember removals from now on. Returns a ticket for `since`."""
        self._tickets += 1
        self._open[self._tickets] = self._serial
        return self._tickets

    def end(self, ticket: int) -> None:
        """The ticket is not used any more."""
        self._open.pop(ticket, None)
        oldest = next(iter(self._open.values()), self._serial)
        while self._last and self._last[key := next(iter(self._last))] <= oldest:
            del self._last[key]

    def add(self, keys: Sequence[int] | None) -> None:
        """These blocks were removed; None: all blocks."""
        if not self._open:
            return
        if keys is None:
            self._serial += 1
            self._forgot = self._serial
            self._last.clear()
            return
        for key in keys:
            self._serial += 1
            self._last.pop(key, None)
            self._last[key] = self._serial
        while len(self._last) > MAX_REMOVED:
            self._forgot = self._last.pop(next(iter(self._last)))

    def since(self, ticket: int, key: int) -> bool:
        """Whether a block was removed after the ticket was given, or may have been because too many were
        removed.
        """
        begun = self._open[ticket]
        return self._forgot > begun or self._last.get(key, 0) > begun
