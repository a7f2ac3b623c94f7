"""No two requests get the same id, whichever replica of kvproxy draws it.

An id is no secret, and gives no access. It is drawn at random all the same: engines pair KV by the ids of
legs, so nobody may know an id before its request exists.
"""

import os

ID_CHARS = 32
"""128 bits as hexadecimal digits, as many as a UUID has."""

_DRAWN_BYTES = 4096
"""How many random bytes are asked of the system at once: that call takes longer than all else for an id."""


class Ids:
    """Draws ids."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def draw(self) -> str:
        """A new id."""
        begin = self._at
        if begin == len(self._digits):
            self._digits = os.urandom(_DRAWN_BYTES).hex()
            begin = 0
        self._at = end = begin + ID_CHARS
        return self._digits[begin:end]


new_id = Ids().draw
"""Draws a new id."""
