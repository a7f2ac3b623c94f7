"""No two requests get the same id, whichever replica names them.

An id is no secret, and nothing is allowed by it. It is drawn at random all the same: engines pair KV by the
ids of legs, so none may be known before there is a request that has it.
"""

import os

ID_CHARS = 32
"""128 bits as hexadecimal digits, as many as a UUID has."""

_DRAWN_BYTES = 4096
"""Asked of the system at once: the call takes longer than all else that is done for an id."""


class Ids:
    """Draws ids."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def draw(self) -> str:
        """An id that nobody has had."""
        begin = self._at
        if begin == len(self._digits):
            self._digits = os.urandom(_DRAWN_BYTES).hex()
            begin = 0
        self._at = end = begin + ID_CHARS
        return self._digits[begin:end]


new_id = Ids().draw
"""An id that nobody has had."""
