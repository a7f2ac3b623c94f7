"""A large body is JSON, or refused, and no decoder gets more of it at once than a few slices.

The text is cut behind commas. What is open where a piece begins is opened before it, with a value in front of
the comma; what is open where it ends is closed behind it, with a value after its comma. So each piece is JSON
by itself exactly if all of them together are. What makes a piece long is left out of it: long texts, which
are checked by themselves, and slices of nothing but white space.
"""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.errors import BadRequestError
from proxy.request.json_pieces import check_text

MAX_PIECE_BYTES = 1 << 20
"""The most bytes between two commas, without long texts and white space. As deep as values may be nested,
names below `LONG_TEXT_BYTES` make less than that."""

_BEFORE = {ord("["): b"[", ord("{"): b'{"":'}
_BEFORE_LAST = {ord("["): b"[0,", ord("{"): b'{"":0,'}
_BEHIND_LAST = {ord("["): b"0]", ord("{"): b'"":0}'}
_BEHIND = {ord("["): b"]", ord("{"): b"}"}

Text = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]

_decode = msgspec.json.Decoder(msgspec.Raw).decode


class Grammar:
    """Checks a text that comes in slices, from left to right."""

    def __init__(self, text: memoryview, max_depth: int) -> None:
        self._text = text
        self._begun = 0
        self._open: bytes = b""
        """Brackets that are open where the piece begins, the outermost first."""
        self._bracket_at = np.zeros(max_depth + 1, np.uint8)
        """The bracket that opened each level last."""
        self._left_out: list[tuple[int, int, bytes]] = []
        """What is left out of this piece: begin, end, and what stands there instead."""
        self.checked_bytes = 0
        """The most bytes that a decoder got at once."""

    def leave_out(self, start: int, end: int) -> None:
        """A long text was found, with its quotes. Raises BadRequestError if it is no JSON text."""
        try:
            check_text(self._text[start:end])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _refused(error) from None
        self._left_out.append((start, end, b'""'))

    def slice(self, at: int, part: Text, depth: npt.NDArray[np.int32], opening: Bits, commas: Bits) -> None:
        """Check the next slice of the text; given are its depth behind each byte, and what stands outside of
        texts.

        Raises BadRequestError for what is no JSON.
        """
        cuts = np.flatnonzero(commas)
        opened = np.flatnonzero(opening)
        if len(cuts):
            cut = int(cuts[-1])
            before = opened[: np.searchsorted(opened, cut)]
            self._bracket_at[depth[before]] = part[before]
            opened = opened[len(before) :]
            is_open = self._bracket_at[1 : int(depth[cut]) + 1].tobytes()
            self._piece(at + cut + 1, is_open)
            self._begun, self._open = at + cut + 1, is_open
        self._bracket_at[depth[opened]] = part[opened]

    def blank(self, at: int, length: int) -> None:
        """The next slice is white space outside of texts."""
        self._left_out.append((at, at + length, b" "))

    def end(self) -> None:
        """The text has ended. Raises BadRequestError for what is no JSON."""
        self._piece(len(self._text), b"")

    def _piece(self, end: int, is_open: bytes) -> None:
        outer, last = self._open[:-1], self._open[-1:]
        parts: list[Any] = [b"".join([_BEFORE[bracket] for bracket in outer])]
        parts += [_BEFORE_LAST[bracket] for bracket in last]
        at = self._begun
        later: list[tuple[int, int, bytes]] = []
        for start, stop, instead in self._left_out:
            if start >= end:
                later.append((start, stop, instead))
                continue
            parts += [self._text[at:start], instead]
            at = stop
        self._left_out = later
        parts.append(self._text[at:end])
        parts += [_BEHIND_LAST[bracket] for bracket in is_open[-1:]]
        parts += [_BEHIND[bracket] for bracket in reversed(is_open[:-1])]
        size_bytes = sum(map(len, parts))
        self.checked_bytes = max(self.checked_bytes, size_bytes)
        if size_bytes > MAX_PIECE_BYTES:
            raise BadRequestError(
                f"the request body has more than {MAX_PIECE_BYTES} bytes without a comma or a text"
            )
        try:
            _decode(b"".join(parts))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refused(error) from None


def _refused(error: Exception) -> BadRequestError:
    words = str(error).partition(" (byte ")[0]  # a position within a piece would tell the client nothing
    return BadRequestError(f"the request body is not a JSON object: {words}")
