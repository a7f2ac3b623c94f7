"""A JSON body whose top level can be changed while every other value keeps the very text its author wrote."""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from proxy.errors import BadRequestError
from proxy.request.outline import (
    LARGE_BODY_BYTES,
    MAX_DEPTH,
    MAX_MEMBERS,
    Buffer,
    Outline,
    Span,
    contains,
    slices,
    too_many_members,
)

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_PIECE_BYTES = 256 << 10
_SURROGATE_MARKS = (b"\\ud", b"\\uD")
_PAIRED = re.compile(
    rb"(?:[^\\]++|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|[^u]))*+",
    re.DOTALL,
)
"""JSON text in which every escaped surrogate is half of a pair, up to an escape that is not seen whole."""

MAX_NAME_BYTES = 4096
"""Of a member, as text."""
MAX_SCALAR_BYTES = 64 << 10
"""Of a value where only numbers and short texts are of use."""
_WHOLE_BYTES = 64 << 10
"""Larger values are sent on as they lie in memory; smaller ones are copied together."""

_decode_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Pieces:
    """A text to be sent, in parts that are never copied together."""

    def __init__(self, parts: Iterable[Buffer]) -> None:
        self._parts = tuple(parts)
        self._size_bytes = sum(map(len, self._parts))

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self._parts)

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)


Encoded = bytes | Pieces


class Body:
    """The top-level members of a JSON object, by decoded name, each value as raw text.

    A name given twice keeps its last value, as engines read it.
    """

    def __init__(
        self, members: dict[str, msgspec.Raw], size_bytes: int, counts: Mapping[str, Span] | None = None
    ) -> None:
        self._members = members
        self.size_bytes = size_bytes
        self._counts = counts or {}

    @classmethod
    def parse(cls, data: bytes) -> "Body":
        """Read a request body that is small. Raises BadRequestError for anything that is not a JSON object of sane depth."""
        if not data.strip():
            raise BadRequestError("the request body is empty: a JSON object is needed")
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
            raise BadRequestError(f"the request body is nested more than {MAX_DEPTH} levels deep")
        _check_text(data)
        try:
            members = _decode_top(data)
        except _UNREADABLE as error:
            raise BadRequestError(f"the request body is not a JSON object: {error}") from None
        if len(members) > MAX_MEMBERS:
            raise too_many_members()
        return cls(members, len(data))

    @classmethod
    def of_outline(cls, data: bytes | bytearray, found: Outline) -> "Body":
        """Read a request body that may be large, whose values stay where they lie. Raises BadRequestError."""
        _check_text(data)
        view = memoryview(data)
        members: dict[str, msgspec.Raw] = {}
        counts: dict[str, Span] = {}
        for span in found.spans:
            if span.colon - span.start > MAX_NAME_BYTES:
                raise BadRequestError(f"a member's name is longer than {MAX_NAME_BYTES} bytes")
            try:
                name = _decode_name(view[span.start : span.colon])
                members[name] = _checked(view[span.colon + 1 : span.end], span)
            except _UNREADABLE as error:
                raise BadRequestError(f"the request body is not a JSON object: {error}") from None
            counts[name] = span
        return cls(members, len(data), counts)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> Collection[str]:
        """The names of the members."""
        return self._members.keys()

    def raw(self, name: str) -> bytes | None:
        """The text of a member's value; None if there is none."""
        value = self._members.get(name)
        return None if value is None else bytes(value)

    def view(self, name: str) -> memoryview | None:
        """The text of a member's value where it lies; None if there is none."""
        value = self._members.get(name)
        return None if value is None else memoryview(value)

    def gives(self, name: str) -> bool:
        """Whether there is a member with a value other than null."""
        view = self.view(name)
        return view is not None and (len(view) != len(_NULL) or view != _NULL)

    @property
    def is_counted(self) -> bool:
        """Whether it was large, so that what its members hold was counted."""
        return bool(self._counts)

    def values_in(self, name: str) -> int:
        """How many values a member holds at any depth, as far as they were counted: of a small body they are few."""
        span = self._counts.get(name)
        return 0 if span is None else span.values

    def items_in(self, name: str) -> int:
        """How many items a member that is a list or an object has, as far as they were counted."""
        span = self._counts.get(name)
        return 0 if span is None else span.items

    def value(self, name: str) -> Any:
        """A member's value, decoded; None also if there is none.

        Raises BadRequestError naming the member, also for a value longer than MAX_SCALAR_BYTES.
        """
        value = self._members.get(name)
        if value is None:
            return None
        if len(memoryview(value)) > MAX_SCALAR_BYTES:
            raise BadRequestError(f"{name} is longer than {MAX_SCALAR_BYTES} bytes", param=name)
        try:
            return msgspec.json.decode(value)
        except _UNREADABLE as error:
            raise BadRequestError(f"{name} is not valid JSON: {error}", param=name) from None

    def raw_items(self, name: str) -> list[msgspec.Raw]:
        """The items of a member that is a list, each as raw text. Raises BadRequestError naming the member."""
        try:
            return _decode_items(self._members[name])
        except _UNREADABLE as error:
            raise BadRequestError(f"{name} is not valid JSON: {error}", param=name) from None

    def changed(
        self,
        put: Mapping[str, Any] | None = None,
        drop: Collection[str] = (),
        *,
        size_bytes: int | None = None,
    ) -> "Body":
        """A copy in which the members of `put` have new values and those of `drop` are gone.

        It counts as large as this one unless `size_bytes` says otherwise.
        """
        members = {name: raw for name, raw in self._members.items() if name not in drop}
        counts = self._counts
        for name, value in (put or {}).items():
            members[name] = value if isinstance(value, msgspec.Raw) else msgspec.Raw(_encode(value))
            if name in counts:
                counts = {other: span for other, span in counts.items() if other != name}
        return Body(members, self.size_bytes if size_bytes is None else size_bytes, counts)

    def encoded(self) -> bytes:
        """The body as JSON text."""
        return _encode(self._members)

    def to_send(self) -> Encoded:
        """The same, in pieces if it is large."""
        if sum(len(memoryview(raw)) for raw in self._members.values()) <= LARGE_BODY_BYTES:
            return self.encoded()
        parts: list[Buffer] = []
        small = bytearray(b"{")
        for number, (name, raw) in enumerate(self._members.items()):
            small += (b"," if number else b"") + _encode(name) + b":"
            view = memoryview(raw)
            if len(view) <= _WHOLE_BYTES:
                small += view
            else:
                parts += small, view
                small = bytearray()
        small += b"}"
        return Pieces([*parts, small])


_NULL = b"null"


def _checked(value: memoryview, span: Span) -> msgspec.Raw:
    """A value without the white space around it. Raises as msgspec does for what is no JSON.

    Long lists of numbers and long texts are read part by part: all at once would stop everything for a quarter of a second.
    """
    if span.values == 0 and len(value) > _PIECE_BYTES:
        value = _trimmed(value)
        for text in _parts_of_text(value):
            _decode_value(text)
        return msgspec.Raw(value)
    if not span.is_flat or span.values <= _NUMBERS_AT_ONCE:
        return _decode_value(value)
    for numbers in lists_of_numbers(value):
        _decode_value(numbers)
    return msgspec.Raw(_trimmed(value))


_NUMBERS_AT_ONCE = 1 << 17
_LIST_BYTES = 128 << 10


def lists_of_numbers(value: memoryview) -> Iterator[bytes]:
    """A long flat list as several lists that follow one another. Raises msgspec.DecodeError for what is no list."""
    view = _trimmed(value)
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


def _parts_of_text(value: memoryview) -> Iterator[bytes]:
    """A long text as several that follow one another. Raises msgspec.DecodeError for what is no text."""
    if bytes(value[:1]) != b'"' or bytes(value[-1:]) != b'"':
        raise msgspec.DecodeError("a text is expected")
    value = value[1:-1]
    at = 0
    while at < len(value):
        found = _PAIRED.match(value, at, min(len(value), at + _PIECE_BYTES))
        if found is None or found.end() == at:
            raise msgspec.DecodeError("a text is malformed")
        yield b'"%b"' % bytes(value[at : found.end()])
        at = found.end()


def _trimmed(view: memoryview) -> memoryview:
    while len(view) and len(begin := bytes(view[:_LIST_BYTES])) != len(rest := begin.lstrip(_BLANK)):
        view = view[len(begin) - len(rest) :]
    while len(view) and len(end := bytes(view[-_LIST_BYTES:])) != len(rest := end.rstrip(_BLANK)):
        view = view[: len(view) - (len(end) - len(rest))]
    return view


_BLANK = b" \t\r\n"


def _check_text(data: bytes | bytearray) -> None:
    """Raises BadRequestError for what is no text.

    Values are passed on unread, and an engine that gets half a character fails with a 500 that says nothing of
    whose fault it is.
    """
    if not data.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for part in slices(data, _PIECE_BYTES):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise BadRequestError(f"the request body is not UTF-8: {error.reason}") from None
    if any(contains(data, mark) for mark in _SURROGATE_MARKS):
        at = 0
        while at < len(data):
            found = _PAIRED.match(data, at, min(len(data), at + _PIECE_BYTES))
            if found is None or found.end() == at:
                raise BadRequestError("the request body holds half of a surrogate pair, or half of an escape")
            at = found.end()


def _depth(data: bytes) -> int:
    """How deep the text is nested; at least MAX_DEPTH + 1 if it is deeper than that."""
    depth = deepest = 0
    for char in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        if char in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    break
        else:
            depth -= 1
    return deepest
