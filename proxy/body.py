"""A JSON body whose top level can be changed while every other value keeps the very text its author wrote."""

import codecs
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from proxy.errors import BadRequestError

MAX_DEPTH = 200
"""Deeper nesting than any real request has (tool schemas reach a few tens), and well below what makes an
engine's recursive JSON parser give up."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UTF8_PIECE_BYTES = 1 << 20
_SURROGATE_MARKS = (b"\\ud", b"\\uD")
_HALF_ESCAPES = rb"u[dD][89a-fA-F]"
_PAIRED = re.compile(
    rb"(?:[^\\]++|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?!"
    + _HALF_ESCAPES
    + rb").))*+",
    re.DOTALL,
)
"""JSON text in which every escaped surrogate is half of a pair."""

_decode_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Body:
    """The top-level members of a JSON object, by decoded name, each value as raw text.

    A name given twice keeps its last value, as engines read it.
    """

    def __init__(self, members: dict[str, msgspec.Raw], size_bytes: int) -> None:
        self._members = members
        self.size_bytes = size_bytes

    @classmethod
    def parse(cls, data: bytes) -> "Body":
        """Read a request body. Raises BadRequestError for anything that is not a JSON object of sane depth."""
        if not data.strip():
            raise BadRequestError("the request body is empty: a JSON object is needed")
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
            raise BadRequestError(f"the request body is nested more than {MAX_DEPTH} levels deep")
        _check_text(data)
        try:
            return cls(_decode_top(data), len(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"the request body is not a JSON object: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> Collection[str]:
        """The names of the members."""
        return self._members.keys()

    def raw(self, name: str) -> bytes | None:
        """The text of a member's value; None if there is none."""
        value = self._members.get(name)
        return None if value is None else bytes(value)

    def value(self, name: str) -> Any:
        """A member's value, decoded; None also if there is none. Raises BadRequestError naming the member."""
        value = self._members.get(name)
        if value is None:
            return None
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"{name} is not valid JSON: {error}", param=name) from None

    def raw_items(self, name: str) -> list[msgspec.Raw]:
        """The items of a member that is a list, each as raw text. Raises BadRequestError naming the member."""
        try:
            return _decode_items(self._members[name])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
        for name, value in (put or {}).items():
            members[name] = value if isinstance(value, msgspec.Raw) else msgspec.Raw(_encode(value))
        return Body(members, self.size_bytes if size_bytes is None else size_bytes)

    def encoded(self) -> bytes:
        """The body as JSON text."""
        return _encode(self._members)


def _check_text(data: bytes) -> None:
    """Raises BadRequestError for what is no text.

    Values are passed on unread, and an engine that gets half a character fails with a 500 that says nothing of
    whose fault it is.
    """
    if not data.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, len(data), _UTF8_PIECE_BYTES):
                decoder.decode(data[start : start + _UTF8_PIECE_BYTES])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise BadRequestError(f"the request body is not UTF-8: {error.reason}") from None
    if any(mark in data for mark in _SURROGATE_MARKS) and not _PAIRED.fullmatch(data):
        raise BadRequestError("the request body holds half of a surrogate pair")


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
