"""A long JSON text is read in pieces: no step holds the GIL for a time in proportion to all of it.

A decoder, a search and a copy hold the GIL for as long as they take, in whatever thread they run, and the
event loop waits for it. Between two pieces a thread releases it.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

Buffer = bytes | bytearray | memoryview

PIECE_BYTES = 256 << 10
"""The bytes that are decoded or counted at once: much less than a millisecond for most, two for the smallest
numbers."""

TEXT_BYTES = 32 << 10
"""The bytes of a text that are matched and decoded at once: a millisecond if all of it is escaped."""

COPIED_BYTES = 1 << 20
"""The bytes that are copied or searched at once: a third of a millisecond."""

_SHORT_BYTES = 8 << 10
_SEARCHED_BYTES = 128 << 10
_FEW_PLACES = 64
"""In a longer text words are looked for at the first of its quotes, or backslashes, and then by their first
and last byte at all places at once: JSON has the bytes of words so often that the usual search, which skips,
takes five times as long. Where that finds more places than this in a piece, the usual search is as good."""

_LIST_BYTES = 128 << 10
_BLANK = b" \t\r\n"
_PAIRED = re.compile(
    rb"(?:[^\\]+|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|[^u]))*",
    re.DOTALL,
)
"""Matches JSON text in which every escaped surrogate is half of a pair, up to an escape that is cut off.
Nothing follows that could make it go back; `*+`, which says so, ends too early in Python before 3.11.5."""

_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_decode_text = msgspec.json.Decoder(str).decode


def slices(data: Buffer, size_bytes: int = COPIED_BYTES, overlap: int = 0) -> Iterator[bytes]:
    """Copies of a text, part by part; each part also has the first `overlap` bytes of what follows."""
    view: Any = memoryview(data)
    for start in range(0, len(view), size_bytes):
        yield bytes(view[start : start + size_bytes + overlap])


def contains(data: Buffer, words: bytes) -> bool:
    """Whether `words`, which are two bytes or more, with a quote or a backslash, stand in `data`."""
    if isinstance(data, memoryview) and len(data) <= _SEARCHED_BYTES:
        data = bytes(data)
    if len(data) <= _SHORT_BYTES:  # which is less than _SEARCHED_BYTES: no view comes here
        return words in data
    sign = words.find(b"\\" if b"\\" in words else b'"')
    may_be_few, start = isinstance(data, memoryview), 0  # which cannot be searched but at all places
    if not isinstance(data, memoryview):
        at = -1
        for _ in range(_FEW_PLACES):
            at = data.find(words[sign : sign + 1], at + 1)
            if at < 0:
                return False
            if at >= sign and data.startswith(words, at - sign):
                return True
        start = max(0, at - sign)
    text, apart = np.frombuffer(data, np.uint8), len(words) - 1
    for begin in range(start, len(text), _SEARCHED_BYTES):
        part = text[begin : begin + _SEARCHED_BYTES + apart]
        begins = part[:-apart]
        if may_be_few:
            places = np.flatnonzero(part[sign : len(begins) + sign] == words[sign])
            may_be_few = len(places) <= _FEW_PLACES
        if not may_be_few:
            places = np.flatnonzero((begins == words[0]) & (part[apart:] == words[apart]))
        if len(places) > _FEW_PLACES:
            if words in part.tobytes():
                return True
        elif any(part[place : place + apart + 1].tobytes() == words for place in places.tolist()):
            return True
    return False


def matches(data: Buffer, words: re.Pattern[bytes], longest: int) -> bool:
    """Whether something in `data` matches; no match has more than `longest` bytes."""
    if len(data) <= COPIED_BYTES:
        return words.search(data) is not None
    return any(words.search(part) for part in slices(data, overlap=longest - 1))


def joined(parts: list[Buffer]) -> bytearray:
    """The parts together, copied a slice at a time."""
    whole = bytearray(sum(map(len, parts)))
    at = 0
    for part in parts:
        for piece in slices(part):
            whole[at : at + len(piece)] = piece
            at += len(piece)
    return whole


def trimmed(view: memoryview) -> memoryview:
    """A text without the white space around it."""
    while len(view) and len(begin := bytes(view[:_LIST_BYTES])) != len(rest := begin.lstrip(_BLANK)):
        view = view[len(begin) - len(rest) :]
    while len(view) and len(end := bytes(view[-_LIST_BYTES:])) != len(rest := end.rstrip(_BLANK)):
        view = view[: len(view) - (len(end) - len(rest))]
    return view


def only_item(view: memoryview) -> memoryview:
    """The item of a list with one item. Raises msgspec.DecodeError if it is no list."""
    view = trimmed(view)
    if bytes(view[:1]) != b"[" or bytes(view[-1:]) != b"]":
        raise msgspec.DecodeError("a list is expected")
    return trimmed(view[1:-1])


def lists_of_numbers(value: memoryview) -> Iterator[bytes]:
    """A long flat list as several consecutive lists. Raises msgspec.DecodeError if it is no list."""
    view = trimmed(value)
    if bytes(view[:1]) != b"[" or bytes(view[-1:]) != b"]":
        raise msgspec.DecodeError("a list of numbers is expected")
    view = view[1:-1]
    while len(view) > _LIST_BYTES:
        end = bytes(view[:_LIST_BYTES]).rfind(b",")
        if end < 0:
            raise msgspec.DecodeError("a list of numbers is expected")
        yield b"[%b]" % bytes(view[:end])
        view = view[end + 1 :]
        if not bytes(view[:_LIST_BYTES]).strip():
            raise msgspec.DecodeError("a number is expected behind a comma")
    yield b"[%b]" % bytes(view)


def parts_of_text(value: memoryview, part_bytes: int = TEXT_BYTES) -> Iterator[bytes]:
    """A long text as several consecutive ones. Raises msgspec.DecodeError if it is no text."""
    if len(value) < 2 or bytes(value[:1]) != b'"' or bytes(value[-1:]) != b'"':
        raise msgspec.DecodeError("a text is expected")
    value = value[1:-1]
    at = 0
    while at < len(value):
        end = _end_of_escapes(value, at, part_bytes)
        if end is None:
            raise msgspec.DecodeError("a text holds half of a surrogate pair, or half of an escape")
        yield b'"%b"' % bytes(value[at:end])
        at = end


def check_text(value: memoryview) -> None:
    """Raises msgspec.DecodeError if `value` is no JSON text."""
    for part in parts_of_text(value):
        _decode_value(part)


def decoded_text(value: memoryview, part_bytes: int = TEXT_BYTES) -> str:
    """A JSON text, decoded in parts. Raises msgspec.DecodeError if it is none."""
    return "".join([_decode_text(part) for part in _in_characters(value, part_bytes)])


def has_half_pairs(data: Buffer) -> bool:
    """Whether an escape in a text is half of a surrogate pair, or half an escape."""
    view, at = memoryview(data), 0
    while at < len(view):
        end = _end_of_escapes(view, at, TEXT_BYTES)
        if end is None:
            return True
        at = end
    return False


def _end_of_escapes(view: memoryview, at: int, max_bytes: int) -> int | None:
    found = _PAIRED.match(view, at, min(len(view), at + max_bytes))
    return None if found is None or found.end() == at else found.end()


def _in_characters(value: memoryview, part_bytes: int) -> Iterator[bytes]:
    """As `parts_of_text`; no part begins within a character."""
    kept = b""
    for part in parts_of_text(value, part_bytes):
        text = kept + part[1:-1]
        # The last character may be cut off: its first byte and up to two bytes that continue it.
        whole = len(text)
        for back in range(1, min(4, len(text)) + 1):
            byte = text[-back]
            if byte & 0xC0 != 0x80:
                needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                whole = len(text) - back if needed > back else len(text)
                break
        text, kept = text[:whole], text[whole:]
        yield b'"%b"' % text
    if kept:
        raise msgspec.DecodeError("a text ends within a character")
