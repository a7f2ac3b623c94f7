"""The parts of a large JSON body are counted before any of it is decoded, in slices, by code that releases
the GIL.

A decoder holds the GIL for as long as it takes, in whatever thread it runs, and the event loop waits for it.
So a decoder gets nothing that is not known to be small: where the members of the top level lie, where their
items and long texts are, how many values they have, and how deep they are nested. The content of texts counts
for nothing, as in JSON. Whether the body is JSON is checked at the same time (`proxy.request.grammar`).
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.errors import BadRequestError
from proxy.request.grammar import Grammar
from proxy.request.json_pieces import Buffer

MAX_DEPTH = 200
"""The deepest nesting: deeper than any real request has (tool schemas reach a few tens), and much less than
what makes an engine's recursive JSON parser give up."""

MAX_MEMBERS = 1024
"""The most members of the top level. Requests of vLLM 0.32 have about 80, those of OpenAI a few more."""

MAX_VALUES = 1 << 20
"""The most values of a whole body, containers included: a chat of 16 000 messages has 100 000. One flat list
of numbers, which the prompt may be, does not count."""

SLICE_BYTES = 256 << 10
"""The bytes that are read at once: a tenth of a millisecond for each of some twenty steps."""

LARGE_BODY_BYTES = 256 << 10
"""A body above this size is worked on (a prompt made, a list taken apart) off the event loop."""

LARGE_TEXT_BYTES = 1 << 20
MANY_COMMAS = 1 << 14
MANY_ESCAPES = 1 << 14
MANY_TEXTS = 1 << 15
"""A body above any of these is split off the event loop, and outlined first. Any other is split in a
millisecond or two: its values are no more than its commas, so all that makes it long is text."""

FEW_PARTS = 1 << 10
"""A body with more commas is not outlined all the same if it has no more lists, objects and texts than this:
what makes it long is text, or numbers, and lists of numbers are not split."""

LONG_TEXT_BYTES = 4096
"""Longer texts are left out of what a decoder gets, and are read by themselves."""

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPENING, _CLOSING = (ord("["), ord("{")), (ord("]"), ord("}"))

Bits = npt.NDArray[np.bool_]


class Span(NamedTuple):
    """One member of the top level, by positions in the text."""

    start: int
    colon: int
    end: int
    items: int
    """The number of items of a value that is a list or an object; an empty one has 1 here."""
    values: int
    """The number of values in its value, at any depth, containers included."""
    is_flat: bool
    """Whether its value is one value, or a list of numbers: nothing is nested in it, and it is no object or
    list of texts."""
    commas: npt.NDArray[np.int64] | None
    """The positions of the commas between its items; None for a long flat list."""
    texts: list[tuple[int, int]]
    """The begin and end of each long text in its value, quotes included."""


class Outline(NamedTuple):
    """A large body by the members of its top level."""

    spans: list[Span]
    values: int
    """The number of values outside of flat lists."""
    items: int
    """The number of items in flat lists."""
    members: int
    """The number of members of objects, at any depth."""
    is_ascii: bool
    has_escapes: bool
    """Whether some text has a backslash."""


class Signs(msgspec.Struct, frozen=True):
    """How many of JSON's signs a text has, also within its texts: no fewer than it is made of."""

    commas: int
    members: int
    """The most members of objects."""
    openings: int
    """The most lists and objects."""
    escapes: int
    """The backslashes: the character after each one may begin half of a surrogate pair."""

    @property
    def is_flat(self) -> bool:
        """Whether it has many values, of which nearly all are numbers."""
        return self.commas > MANY_COMMAS


def signs_of(data: bytes | bytearray) -> Signs | None:
    """What a body may hold that can be split on the event loop; None for a large one, to be outlined."""
    if len(data) > LARGE_TEXT_BYTES:
        return None
    commas, colons, quotes, escapes, openings = _counts(data)
    texts = quotes // 2
    if (
        escapes > MANY_ESCAPES
        or texts > MANY_TEXTS
        or (commas > MANY_COMMAS and openings + texts > FEW_PARTS)
    ):
        return None
    return Signs(commas, min(colons, texts), openings, escapes)


def _counts(data: bytes | bytearray) -> tuple[int, int, int, int, int]:
    """How many commas, colons, quotes, backslashes and opening brackets stand in a text."""
    if len(data) <= _SHORT_BYTES:
        signs = data.translate(None, _NO_SIGNS)
        openings = signs.count(b"[") + signs.count(b"{")
        return signs.count(b","), signs.count(b":"), signs.count(b'"'), signs.count(b"\\"), openings
    # Where signs are frequent, to pick them out takes twice as long as to compare all of the text five times.
    commas = colons = quotes = escapes = openings = 0
    text, count = np.frombuffer(data, np.uint8), np.count_nonzero
    for start in range(0, len(text), _COUNTED_BYTES):
        part = text[start : start + _COUNTED_BYTES]
        commas += int(count(part == _COMMA))
        colons += int(count(part == _COLON))
        quotes += int(count(part == _QUOTE))
        escapes += int(count(part == _BACKSLASH))
        openings += int(count(part | _CASE == _OPENING[1]))
    return commas, colons, quotes, escapes, openings


_SHORT_BYTES = 64 << 10
_COUNTED_BYTES = 128 << 10
_CASE = 0x20
"""The bit in which the two opening brackets differ."""

_NO_SIGNS = bytes(set(range(256)) - set(b',:"[{\\'))


def is_large(data: bytes | bytearray) -> bool:
    """Whether a body has to be outlined, and split off the event loop."""
    return signs_of(data) is None


def outline(
    data: Buffer, *, slice_bytes: int = SLICE_BYTES, long_text_bytes: int = LONG_TEXT_BYTES
) -> Outline:
    """Count the parts of a body. Raises BadRequestError for too many, and for what is no JSON object.

    `slice_bytes`: the bytes of one step; `long_text_bytes`: longer texts are noted.
    """
    return _Outliner(memoryview(data), long_text_bytes).read(slice_bytes)


class _Outliner:
    """Reads a text once, from left to right."""

    def __init__(self, data: memoryview, long_text_bytes: int) -> None:
        self._long_text_bytes = long_text_bytes
        self._text = np.frombuffer(data, np.uint8)
        self._grammar = Grammar(data, MAX_DEPTH)
        self._spans: list[Span] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False  # whether the first byte of the next slice is escaped
        self._ended = self._finished = False
        self._members = 0
        self._start: int | None = None
        self._colon: int | None = None
        self._items = self._values = self._nested = 0  # of the member that is being read
        self._commas: list[npt.NDArray[np.int64]] = []
        self._texts: list[tuple[int, int]] = []
        self._quote = 0  # the position of the last quote that begins or ends a text
        self._counted = 0  # the number of values in members that are not flat
        self._is_ascii, self._has_escapes = True, False

    def read(self, slice_bytes: int) -> Outline:
        for start in range(0, len(self._text), slice_bytes):
            self._slice(start, self._text[start : start + slice_bytes])
        if not self._spans or not self._ended or self._in_string:
            raise _not_an_object()
        self._grammar.end()
        items = sum(span.values for span in self._spans if span.is_flat)
        return Outline(self._spans, self._counted, items, self._members, self._is_ascii, self._has_escapes)

    def _slice(self, at: int, part: npt.NDArray[np.uint8]) -> None:
        self._is_ascii = self._is_ascii and int(part.max()) < 0x80
        outside = self._outside(at, part)
        opening = (part == _OPENING[0]) | (part == _OPENING[1])
        opening &= outside
        closing = (part == _CLOSING[0]) | (part == _CLOSING[1])
        closing &= outside
        commas = (part == _COMMA) & outside
        colons = (part == _COLON) & outside
        self._members += int(np.count_nonzero(colons))
        change = opening.view(np.int8) - closing.view(np.int8)
        if change.any():
            depth = np.cumsum(change, dtype=np.int32)
            depth += self._depth
        else:
            depth = np.full(len(part), self._depth, np.int32)
            if bool(outside.all()) and _is_blank(part):
                self._grammar.blank(at, len(part))
        if int(depth.max(initial=0)) > MAX_DEPTH:
            raise BadRequestError(f"the request body is nested more than {MAX_DEPTH} levels deep")
        self._begin_and_end(at, part, depth)
        self._depth = int(depth[-1])
        self._grammar.slice(at, part, depth, opening, commas)
        top = commas & (depth == 1)
        if len(self._spans) + int(np.count_nonzero(top)) >= MAX_MEMBERS:
            raise too_many_members()
        items = commas & (depth == 2)
        values = (commas | opening) & (depth > 1)
        nested = (opening & (depth > 2)) | ((part == _QUOTE) & (depth > 1))
        named = np.flatnonzero(colons & (depth == 1))
        begun = 0
        for end in [*np.flatnonzero(top).tolist(), len(part)]:
            between = np.flatnonzero(items[begun:end])
            self._items += len(between)
            if len(between) and self._items <= MAX_VALUES:  # otherwise it is flat, or is refused
                self._commas.append(between + (at + begun))
            self._values += int(np.count_nonzero(values[begun:end]))
            self._nested += int(np.count_nonzero(nested[begun:end]))
            if self._colon is None and np.searchsorted(named, begun) < np.searchsorted(named, end):
                self._colon = at + int(named[np.searchsorted(named, begun)])
            begun = end
            if end < len(part):
                self._member(at + end)
            elif self._ended and self._start is not None and not self._finished:
                self._last(at, part, depth)
            self._judge()

    def _begin_and_end(self, at: int, part: npt.NDArray[np.uint8], depth: npt.NDArray[np.int32]) -> None:
        """Find the braces of the body, which only white space may surround."""
        if self._start is None:
            begun = np.flatnonzero(depth > 0)
            outside = part if not len(begun) else part[: begun[0]]
            if not _is_blank(outside) or (len(begun) and part[begun[0]] != _OPENING[1]):
                raise _not_an_object()
            if not len(begun):
                return
            self._start = at + int(begun[0]) + 1
            depth = depth[begun[0] :]
            part = part[begun[0] :]
        if self._ended:
            if not _is_blank(part):
                raise _not_an_object()
            return
        ends = np.flatnonzero(depth < 1)
        if len(ends):
            if part[ends[0]] != _CLOSING[1] or not _is_blank(part[ends[0] + 1 :]):
                raise _not_an_object()
            self._ended = True

    def _last(self, at: int, part: npt.NDArray[np.uint8], depth: npt.NDArray[np.int32]) -> None:
        self._finished = True
        if self._spans or self._colon is not None:
            closing = np.flatnonzero((part == _CLOSING[1]) & (depth == 0))
            self._member(at + int(closing[0]))

    def _member(self, end: int) -> None:
        start = self._start
        if start is None or self._colon is None:
            raise _not_an_object()
        flat = self._nested == 0
        commas = None
        if not flat or self._items < MANY_COMMAS:
            commas = np.concatenate([_NONE, *self._commas])
        texts = [text for text in self._texts if text[1] <= end]
        self._texts = self._texts[len(texts) :]
        texts = [text for text in texts if text[0] > self._colon]  # the member's name may be long as well
        self._spans.append(Span(start, self._colon, end, self._items + 1, self._values, flat, commas, texts))
        self._commas = []
        if not flat:
            self._counted += self._values
        self._start, self._colon = end + 1, None
        self._items = self._values = self._nested = 0

    def _judge(self) -> None:
        if self._counted + (self._values if self._nested else 0) > MAX_VALUES:
            raise BadRequestError(f"the request body has more than {MAX_VALUES} values")

    def _outside(self, at: int, part: npt.NDArray[np.uint8]) -> Bits:
        """Which bytes stand outside of texts. Notes the long texts that end here."""
        quotes = part == _QUOTE
        slashes = part == _BACKSLASH
        escaped, self._escaped = self._escaped, False
        if escaped:
            quotes[0] = False
            slashes[0] = False
        if slashes.any():
            self._has_escapes = True
            # In a run of backslashes every second one is escaped, and so is what follows a run of odd length.
            places = np.flatnonzero(slashes)
            first = np.flatnonzero(np.diff(places, prepend=-2) != 1)
            lengths = np.diff(first, append=len(places))
            behind = places[first] + lengths
            behind = behind[lengths % 2 == 1]
            if len(behind) and behind[-1] == len(part):
                self._escaped = True
                behind = behind[:-1]
            quotes[behind] = False
        self._note_texts(at, np.flatnonzero(quotes))
        inside = np.bitwise_xor.accumulate(quotes.view(np.uint8))
        if self._in_string:
            inside ^= 1
        self._in_string = bool(inside[-1])
        outside: Bits = inside == 0
        return outside

    def _note_texts(self, at: int, quotes: npt.NDArray[np.intp]) -> None:
        """Note the long texts among those that the quotes of a slice begin and end."""
        if not len(quotes):
            return
        lengths = np.diff(quotes, prepend=self._quote - at)
        ends = np.arange(len(quotes)) % 2 == (0 if self._in_string else 1)
        for n in np.flatnonzero(ends & (lengths >= self._long_text_bytes)).tolist():
            end = at + int(quotes[n]) + 1
            text = (end - int(lengths[n]) - 1, end)
            self._texts.append(text)
            self._grammar.leave_out(*text)
        self._quote = at + int(quotes[-1])


_NONE: npt.NDArray[np.int64] = np.empty(0, np.int64)


def _is_blank(part: npt.NDArray[np.uint8]) -> bool:
    return bool(((part == 32) | (part == 9) | (part == 10) | (part == 13)).all())


def _not_an_object() -> BadRequestError:
    return BadRequestError("the request body is not a JSON object")


def too_many_members() -> BadRequestError:
    """The error for more members than any request has."""
    return BadRequestError(f"the request body has more than {MAX_MEMBERS} members")
