"""The top level of a JSON body can be changed, and every other value keeps the very text that its author
wrote.
"""

import bisect
import codecs
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np

from proxy.errors import BadRequestError
from proxy.request.json_pieces import (
    PIECE_BYTES,
    Buffer,
    contains,
    has_half_pairs,
    joined,
    slices,
    trimmed,
)
from proxy.request.outline import MAX_DEPTH, MAX_MEMBERS, Outline, Signs, Span, too_many_members

_BRACKETS = re.compile(rb"[\[\]{}]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ESCAPE = b"\\u"
_find_escape = re.compile(re.escape(_ESCAPE)).search
_SEARCHED_BYTES = 4 << 10
_SURROGATE_MARKS = (b"\\ud", b"\\uD")

MAX_NAME_BYTES = 4096
"""The longest name of a member, as text."""
MAX_SCALAR_BYTES = 64 << 10
"""Of a value where only numbers and short texts are of use."""
WHOLE_BYTES = 16 << 10
"""Larger values are sent on as they lie in memory, so that a leg that waits for its engine has no copy of its
request; smaller ones are copied together."""

_decode = msgspec.json.Decoder().decode
_decode_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Pieces:
    """A text to be sent, in parts that are never copied into one."""

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
    """The top-level members of a JSON object by decoded name, each value as raw text.

    Of a name that is given twice the last value counts, as for engines.
    """

    def __init__(
        self,
        members: dict[str, msgspec.Raw],
        size_bytes: int,
        whole: "_Whole | None" = None,
        *,
        flat: bool = False,
    ) -> None:
        """`whole`: the text that a large body was cut from; `flat`: many numbers may stand in it."""
        self._members = members
        self.size_bytes = size_bytes
        self._whole = whole
        self._flat = flat

    @classmethod
    def parse(cls, data: bytes, signs: Signs | None = None) -> "Body":
        """Read a request body that is not large; `signs`: of this body, if they were counted.

        Raises BadRequestError for what is no JSON object, or is nested too deeply.
        """
        if not data.strip():
            raise BadRequestError("the request body is empty: a JSON object is needed")
        openings = signs.openings if signs is not None else data.count(b"[") + data.count(b"{")
        if openings > MAX_DEPTH and _depth(data) > MAX_DEPTH:
            raise BadRequestError(f"the request body is nested more than {MAX_DEPTH} levels deep")
        has_escapes = signs.escapes > 0 if signs is not None else b"\\" in data
        _check_text(data, is_ascii=data.isascii(), has_escapes=has_escapes)
        try:
            members = _decode_top(data)
        except _UNREADABLE as error:
            raise BadRequestError(f"the request body is not a JSON object: {error}") from None
        if len(members) > MAX_MEMBERS:
            raise too_many_members()
        return cls(members, len(data), flat=signs is not None and signs.is_flat)

    @classmethod
    def of_outline(cls, data: bytes | bytearray, found: Outline) -> "Body":
        """Read a request body that may be large; its values stay where they lie. Raises BadRequestError."""
        _check_text(data, is_ascii=found.is_ascii, has_escapes=found.has_escapes)
        view = memoryview(data)
        members: dict[str, msgspec.Raw] = {}
        spans: dict[str, Span] = {}
        for span in found.spans:
            if span.colon - span.start > MAX_NAME_BYTES:
                raise BadRequestError(f"a member's name is longer than {MAX_NAME_BYTES} bytes")
            try:
                name = _decode_name(view[span.start : span.colon])
            except _UNREADABLE as error:
                raise BadRequestError(f"the request body is not a JSON object: {error}") from None
            members[name] = msgspec.Raw(trimmed(view[span.colon + 1 : span.end]))
            spans[name] = span
        return cls(members, len(data), _Whole(view, spans))

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> Collection[str]:
        """The names of the members."""
        return self._members.keys()

    def raw(self, name: str) -> bytes | None:
        """The text of a member's value; None if there is no such member."""
        value = self._members.get(name)
        return None if value is None else bytes(value)

    def view(self, name: str) -> memoryview | None:
        """The text of a member's value, without a copy; None if there is no such member."""
        value = self._members.get(name)
        return None if value is None else memoryview(value)

    def given(self, names: frozenset[str]) -> frozenset[str]:
        """Those of `names` that are members."""
        return names & self._members.keys()

    def has_none_of(self, names: frozenset[str]) -> bool:
        """Whether no one of `names` is a member."""
        return names.isdisjoint(self._members)

    def gives(self, name: str) -> bool:
        """Whether a member has a value other than null."""
        view = self.view(name)
        return view is not None and (len(view) != len(_NULL) or view != _NULL)

    @property
    def is_counted(self) -> bool:
        """Whether its members may hold many values, which are counted then."""
        return self._flat or self._whole is not None

    def values_in(self, name: str) -> int:
        """The number of values in a member at any depth, if the body was counted; a small body has few."""
        if self._flat:
            return _without_texts(bytes(self.view(name) or b"")).count(b",") + 1
        span = self._span(name)
        return 0 if span is None else span.values

    def items_in(self, name: str) -> int:
        """The number of items of a member that is a list or an object, if the body was counted."""
        if self._flat:
            return _items(_without_texts(bytes(self.view(name) or b"")))
        span = self._span(name)
        return 0 if span is None else span.items

    def _span(self, name: str) -> Span | None:
        return self._whole.spans.get(name) if self._whole is not None else None

    def value(self, name: str) -> Any:
        """A member's value, decoded; None if it is null or there is no such member.

        Raises BadRequestError, which names the member, also for a value longer than MAX_SCALAR_BYTES.
        """
        value = self._members.get(name)
        if value is None:
            return None
        if self.size_bytes > MAX_SCALAR_BYTES and len(memoryview(value)) > MAX_SCALAR_BYTES:
            raise BadRequestError(f"{name} is longer than {MAX_SCALAR_BYTES} bytes", param=name)
        try:
            return _decode(value)
        except _UNREADABLE as error:
            raise BadRequestError(f"{name} is not valid JSON: {error}", param=name) from None

    def raw_items(self, name: str) -> list[msgspec.Raw]:
        """The items of a member that is a list, each as raw text. Raises BadRequestError, which names the
        member.
        """
        span = self._span(name)
        if self._whole is not None and span is not None and span.commas is not None:
            return [msgspec.Raw(item) for item in self._whole.items(span)]
        try:
            return _decode_items(self._members[name])
        except _UNREADABLE as error:
            raise BadRequestError(f"{name} is not valid JSON: {error}", param=name) from None

    def each_item(self, name: str) -> Iterator[memoryview]:
        """As `raw_items`, one after the other: a million at once would take a hundred times the bytes of
        their text.
        """
        span = self._span(name)
        if self._whole is not None and span is not None and span.commas is not None:
            return self._whole.items(span)
        return map(memoryview, self.raw_items(name))

    def short_items(self, name: str) -> Iterator[bytes]:
        """The items of a list, with marks in place of long texts: see `text` and `whole_bytes`.

        Raises msgspec.DecodeError if the member is no list.
        """
        view = self.view(name)
        if view is None or bytes(view[:1]) != b"[":
            raise msgspec.DecodeError("a list is expected")
        span = self._span(name)
        if self._whole is None or span is None or span.commas is None:
            yield from map(bytes, _decode_items(view))
        else:
            yield from self._whole.short_items(span)

    def short(self, name: str) -> bytes:
        """A member's value with marks in place of long texts."""
        span = self._span(name)
        if self._whole is None or span is None:
            return self.raw(name) or b""
        return self._whole.short(span.colon + 1, span.end)

    def text(self, raw: Buffer) -> memoryview:
        """The text that a mark stands for; anything else is returned as it is."""
        view = memoryview(raw)
        return view if self._whole is None else self._whole.text(view)

    def marked(self, text: str) -> memoryview | None:
        """The text that a decoded mark stands for; None if `text` is no mark."""
        if self._whole is None or len(text) > _MARK_BYTES:
            return None
        view = memoryview(f'"{text}"'.encode(errors="replace"))
        found = self._whole.text(view)
        return None if found is view else found

    def whole_bytes(self, short: bytes) -> int:
        """The length of `short` with the texts that its marks stand for."""
        return len(short) if self._whole is None else self._whole.size_bytes(short)

    def whole(self, short: bytes) -> bytes | bytearray:
        """`short` with the texts that its marks stand for."""
        return short if self._whole is None else self._whole.restored(short)

    def changed(
        self,
        put: Mapping[str, Any] | None = None,
        drop: Collection[str] = (),
        *,
        size_bytes: int | None = None,
    ) -> "Body":
        """A copy in which the members of `put` have new values, and those of `drop` are missing.

        Its size is taken to be that of this body, unless `size_bytes` says otherwise.
        """
        members = self._members.copy()
        for name in drop:
            members.pop(name, None)
        if put:
            for name, value in put.items():
                members[name] = value if type(value) is msgspec.Raw else msgspec.Raw(_encode(value))
        whole = self._whole
        if whole is not None and put and not whole.spans.keys().isdisjoint(put):
            whole = whole.without(put)
        size_bytes = self.size_bytes if size_bytes is None else size_bytes
        return Body(members, size_bytes, whole, flat=self._flat)

    def encoded(self) -> bytes:
        """The body as JSON text."""
        return _encode(self._members)

    def to_send(self) -> Encoded:
        """The same, in pieces unless it is small."""
        if (
            self.size_bytes <= WHOLE_BYTES
            or sum([len(memoryview(raw)) for raw in self._members.values()]) <= WHOLE_BYTES
        ):
            return self.encoded()
        parts: list[Buffer] = []
        small = bytearray(b"{")
        for number, (name, raw) in enumerate(self._members.items()):
            small += (b"," if number else b"") + _encode(name) + b":"
            view = memoryview(raw)
            if len(view) <= WHOLE_BYTES:
                small += view
            else:
                parts += small, view
                small = bytearray()
        small += b"}"
        return Pieces([*parts, small])


_NULL = b"null"


class _Whole:
    """The text that a large body was cut from, and the places of its values."""

    def __init__(self, view: memoryview, spans: Mapping[str, Span], mark: str | None = None) -> None:
        self._view = view
        self.spans = spans
        self._name = mark or secrets.token_hex(
            8
        )  # no client can know it, so no body has it by chance or design
        self._texts = sorted(text for span in spans.values() for text in span.texts)
        self._marks = re.compile(rb'"%b:(\d+)"' % self._name.encode())

    def without(self, names: Collection[str]) -> "_Whole":
        """The text without the places of these members."""
        spans = {name: span for name, span in self.spans.items() if name not in names}
        return _Whole(self._view, spans, self._name)

    def items(self, span: Span) -> Iterator[memoryview]:
        """The items of a list."""
        for start, end in _edges(span):
            item = trimmed(self._view[start:end])
            item = trimmed(item[1:]) if start == span.colon + 1 else item
            item = trimmed(item[:-1]) if end == span.end else item
            if len(item):  # otherwise the list is empty
                yield item

    def short_items(self, span: Span) -> Iterator[bytes]:
        """The items of a list, with marks in place of long texts."""
        for start, end in _edges(span):
            item = self.short(start, end)
            item = item[1:].strip() if start == span.colon + 1 else item
            item = item[:-1].strip() if end == span.end else item
            if item:
                yield item

    def short(self, start: int, end: int) -> bytes:
        """The text between two places, with marks in place of long texts."""
        parts: list[Buffer] = []
        first = bisect.bisect_left(self._texts, start, key=itemgetter(0))
        for number in range(first, len(self._texts)):
            text = self._texts[number]
            if text[1] > end:
                break
            parts += [self._view[start : text[0]], b'"%b:%d"' % (self._name.encode(), number)]
            start = text[1]
        return b"".join([*parts, self._view[start:end]]).strip()

    def text(self, view: memoryview) -> memoryview:
        found = self._marks.fullmatch(view) if len(view) <= _MARK_BYTES else None
        return view if found is None else self._view[slice(*self._texts[int(found[1])])]

    def size_bytes(self, short: bytes) -> int:
        return len(short) + sum(self._length(found) - len(found[0]) for found in self._marks.finditer(short))

    def restored(self, short: bytes) -> bytes | bytearray:
        parts: list[Buffer] = []
        at = 0
        for found in self._marks.finditer(short):
            parts += [short[at : found.start()], self.text(memoryview(found[0]))]
            at = found.end()
        return joined([*parts, short[at:]]) if parts else short

    def _length(self, mark: re.Match[bytes]) -> int:
        return len(self.text(memoryview(mark[0])))


_MARK_BYTES = 64
_COMMAS_AT_ONCE = 4096


def _edges(span: Span) -> Iterator[tuple[int, int]]:
    """The begin and end of each item of a list; the brackets belong to the first and the last."""
    start = span.colon + 1
    commas = span.commas if span.commas is not None else np.empty(0, np.int64)
    for first in range(0, len(commas), _COMMAS_AT_ONCE):
        for comma in commas[first : first + _COMMAS_AT_ONCE].tolist():
            yield start, comma
            start = comma + 1
    yield start, span.end


def _check_text(data: bytes | bytearray, *, is_ascii: bool, has_escapes: bool) -> None:
    """Raises BadRequestError if the body is no valid text.

    Values are passed on unread, and an engine that gets half a character answers with a 500 that does not say
    why.
    """
    if not is_ascii:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for part in slices(data, PIECE_BYTES):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise BadRequestError(f"the request body is not UTF-8: {error.reason}") from None
    if not (has_escapes and _names_characters(data)):
        return
    if any(contains(data, mark) for mark in _SURROGATE_MARKS) and has_half_pairs(data):
        raise BadRequestError("the request body holds half of a surrogate pair, or half of an escape")


def _names_characters(data: bytes | bytearray) -> bool:
    """Whether some escape may give a character by its number."""
    if len(data) <= _SEARCHED_BYTES:
        return _find_escape(data) is not None  # `in` stops at every u, which takes five times as long
    return contains(data, _ESCAPE)


def _items(text: bytes) -> int:
    """How many items the list or object in `text` has, which has no texts and few brackets."""
    if text.count(b"[") + text.count(b"{") == 1:
        return text.count(b",") + 1
    depth = at = commas = 0
    for bracket in _BRACKETS.finditer(text):
        if depth == 1:
            commas += text.count(b",", at, bracket.start())
        depth += 1 if bracket[0] in b"[{" else -1
        at = bracket.end()
    return commas + 1


def _depth(data: bytes) -> int:
    """How deep the text is nested."""
    brackets = np.frombuffer(_without_texts(data).translate(None, _NOT_BRACKETS), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.cumsum(np.where(opening, 1, -1)).max(initial=0))


def _without_texts(data: bytes) -> bytes:
    """JSON without what stands in its texts, by steps that cost a nanosecond a byte."""
    return b"".join(data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
