"""Answers are read strictly, without I/O: what is not HTTP, or not an answer kvproxy may give, raises
WrongAnswerError."""

import json
import re
from dataclasses import dataclass
from typing import Any

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [\x20-\x7e]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
_MAX_HEAD_BYTES = 64 << 10

ENGINES_FAILURE = b'"message":"a fault"'
"""In the 500 of a stand-in that was told to fail: passed on where there is no other decode engine."""

ENGINES_NOT_FOUND = (404, b'{"detail":"Not Found"}')
"""Of an engine whose model does not serve the route: passed on."""

_NAMED_ENDS = tuple(
    b"event: " + name + b"\n"
    for name in (b"response.completed", b"response.incomplete", b"response.failed", b"message_stop")
)
_ENVELOPE = {"message", "type", "param", "code"}


class WrongAnswerError(Exception):
    """What came is not what a server like kvproxy may send."""


@dataclass(slots=True)
class Answer:
    """One response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = b""
    cut: bool = False
    """The connection ended before the answer did."""

    @property
    def closes(self) -> bool:
        """Whether the server said that it is the connection's last."""
        return self.headers.get(b"connection", b"").lower() == b"close"

    @property
    def content_type(self) -> bytes:
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    @property
    def broken_off(self) -> bool:
        """Whether it is a stream that was cut after an error event, as one ends whose engine failed."""
        last = self.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        return self.cut and self.content_type == b"text/event-stream" and last.startswith(b'data: {"error"')


class AnswerParser:
    """Cuts the bytes of one connection into answers."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: Answer | None = None
        self._left: int | None = 0
        """Bytes of the body to come; None: it is chunked."""

    @property
    def idle(self) -> bool:
        """Whether nothing of an unfinished answer is here."""
        return not self._data and self._answer is None

    def feed(self, data: bytes, *, bodiless: bool = False) -> list[Answer]:
        """The answers complete with `data`; interim ones (1xx) are checked and dropped."""
        self._data += data
        found = []
        while (answer := self._next(bodiless=bodiless)) is not None:
            if answer.status >= 200:
                found.append(answer)
        return found

    def end(self) -> Answer | None:
        """The connection is closed: the answer that was cut, if one was. Raises for bytes of a head alone."""
        if self._answer is None:
            if self._data:
                raise WrongAnswerError(f"the connection ended within the head {self._data[:200]!r}")
            return None
        self._answer.cut = True
        return self._answer

    def _next(self, *, bodiless: bool) -> Answer | None:
        if self._answer is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > _MAX_HEAD_BYTES:
                    raise WrongAnswerError("a head without an end")
                return None
            self._answer = self._head(self._data[:end], bodiless=bodiless)
            self._data = self._data[end + 4 :]
            if bodiless or self._answer.status < 200 or self._answer.status in {204, 304}:
                self._left = 0
        answer = self._answer
        if not (self._chunks(answer) if self._left is None else self._counted(answer, self._left)):
            return None
        self._answer = None
        return answer

    def _head(self, text: bytes, *, bodiless: bool) -> Answer:
        first, *lines = text.split(b"\r\n")
        if (status := _STATUS_LINE.fullmatch(first)) is None:
            raise WrongAnswerError(f"not a status line: {first[:200]!r}")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            if (field := _FIELD.fullmatch(line)) is None:
                raise WrongAnswerError(f"not a header: {line[:200]!r}")
            name = field[1].lower()
            if name in headers and name in {b"content-length", b"transfer-encoding", b"content-type"}:
                raise WrongAnswerError(f"{name!r} is there twice")
            headers[name] = field[2].strip()
        answer = Answer(int(status[1]), headers)
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is not None and length is not None:
            raise WrongAnswerError("an answer has both a length and a transfer coding")
        if coding is not None:
            if coding.lower() != b"chunked":
                raise WrongAnswerError(f"transfer coding {coding!r}")
            self._left = None
        elif length is not None:
            if not length.isdigit():
                raise WrongAnswerError(f"content length {length!r}")
            self._left = int(length)
        elif answer.status >= 200 and answer.status not in {204, 304} and not bodiless:
            raise WrongAnswerError(f"an answer without a frame: {text[:300]!r}")
        return answer

    def _counted(self, answer: Answer, left: int) -> bool:
        answer.body += self._data[:left]
        taken = min(left, len(self._data))
        self._data = self._data[taken:]
        self._left = left - taken
        return self._left == 0

    def _chunks(self, answer: Answer) -> bool:
        while True:
            line, end, rest = self._data.partition(b"\r\n")
            if not end:
                return False
            if not _CHUNK_SIZE.fullmatch(line):
                raise WrongAnswerError(f"not a chunk size: {line[:100]!r}")
            size = int(line, 16)
            if len(rest) < size + 2:
                return False
            if rest[size : size + 2] != b"\r\n":
                raise WrongAnswerError("a chunk without its line end")
            answer.body += rest[:size]
            self._data = rest[size + 2 :]
            if size == 0:
                return True


def check(answer: Answer, true_failures: frozenset[int], *, bodiless: bool = False) -> None:
    """Raises WrongAnswerError for a failure that is no truth, an error in another shape, or an answer cut
    cleanly."""
    status = answer.status
    true = status in true_failures or (status == 500 and ENGINES_FAILURE in answer.body)
    if status >= 500 and not true:
        raise WrongAnswerError(f"status {status}: {answer.body[:500]!r}")
    if b"Traceback (most recent call last)" in answer.body:  # engines may say the first word
        raise WrongAnswerError(f"a traceback: {answer.body[:500]!r}")
    if answer.cut or bodiless:
        return
    if status >= 400 and (status, answer.body) != ENGINES_NOT_FOUND:
        _check_envelope(answer)
    elif answer.content_type == b"text/event-stream":
        _check_stream(answer)
    elif answer.content_type == b"application/json":
        _json(answer.body)


def _check_envelope(answer: Answer) -> None:
    if answer.content_type != b"application/json":
        raise WrongAnswerError(f"status {answer.status} as {answer.content_type!r}: {answer.body[:300]!r}")
    body = _json(answer.body)
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and body.get("type") == "error":  # in Anthropic's words
        if not {"type", "message"} <= set(error) or not error["message"]:
            raise WrongAnswerError(f"status {answer.status} and {error}")
        return
    if not isinstance(error, dict) or set(error) != _ENVELOPE or set(body) != {"error"}:
        raise WrongAnswerError(f"status {answer.status} without the envelope: {answer.body[:300]!r}")
    if error["code"] != answer.status or not isinstance(error["message"], str) or not error["message"]:
        raise WrongAnswerError(f"status {answer.status} and {error}")


def _check_stream(answer: Answer) -> None:
    events = [event for event in answer.body.split(b"\n\n") if event and not event.startswith(b":")]
    last = events[-1] if events and answer.body.endswith(b"\n\n") else b""
    if last != b"data: [DONE]" and not last.startswith(_NAMED_ENDS):
        raise WrongAnswerError(f"a stream that ends cleanly without its last event: {answer.body[-200:]!r}")
    for event in events:
        if event != b"data: [DONE]":
            _json(event.partition(b"data: ")[2])


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise WrongAnswerError(f"not JSON ({error}): {text[:300]!r}") from None
