"""An engine's answer is read exactly to its end; anything else is marked as broken.

Pure: bytes go in as they arrive, in pieces of any size; the head, pieces of the body and the end come out.
llhttp (httptools) parses HTTP/1.1; the sizes that it does not bound are bounded here.
"""

import functools

import httptools

from proxy.headers import Headers

MAX_HEAD_BYTES = 64 << 10
"""The largest head, and the largest trailers. uvicorn, which answers for vLLM, writes some 150 bytes; nginx
and HAProxy take 8 to 32 KiB."""

FRAMING_PER_BYTE = 16
"""The most bytes of chunk framing for each byte of a body, beside MAX_HEAD_BYTES: a chunk of one byte
has 5."""

MAX_ANNOUNCEMENTS = 16
"""The most interim answers (1xx) before the real one; vLLM sends none."""

_NO_BODY = frozenset({204, 304})
_SWITCHING = 101


class AnswerReader:
    """Reads one answer after the other from the bytes of a connection."""

    __slots__ = (
        "_announced",
        "_body_bytes",
        "_chunked",
        "_interim",
        "_parser",
        "_read_bytes",
        "_until_closed",
        "body",
        "body_bytes",
        "broken",
        "complete",
        "content_length",
        "head",
        "headers",
        "media_type",
        "reusable",
        "status",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.body: list[bytes] = []
        """The pieces of the body that have arrived and were not taken yet."""
        self.begin()

    def begin(self) -> None:
        """Expect the answer to the next request."""
        self.status = 0
        self.headers: Headers = []
        self.head = False
        """Whether the head has arrived."""
        self.complete = False
        """Whether the end of the answer has arrived."""
        self.reusable = False
        """Once complete: whether another request may be sent on the connection."""
        self.broken: str | None = None
        """Why the bytes that arrived are no valid answer, in words; None while they are."""
        self.body.clear()
        self.body_bytes = 0
        """How many bytes `body` holds."""
        self.content_length: int | None = None
        """The length that the head announces; None if it announces none."""
        self.media_type = ""
        """The media type of the body, without parameters and in lower case; "" if the head names none."""
        self._chunked = False
        self._until_closed = False
        self._interim = False
        self._announced = 0
        self._read_bytes = 0
        self._body_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take bytes in. If they are no valid answer `broken` says why, and later bytes are ignored."""
        if self.complete or self.broken is not None:
            self.reusable = False  # bytes after the end belong to no request
            return
        self._read_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.reusable = False
            if not self.complete:
                self.broken = self.broken or "the answer is not valid HTTP"
            return
        framing_bytes = self._read_bytes - self._body_bytes
        if framing_bytes > MAX_HEAD_BYTES + FRAMING_PER_BYTE * self._body_bytes and not self.complete:
            part = "its chunks are framed with" if self.head else "the answer's head has"
            self.broken = f"{part} more than {MAX_HEAD_BYTES >> 10} KiB"

    def closed(self) -> None:
        """The engine closed the connection, which ends an answer whose head announces no other end."""
        self.reusable = False
        if self._until_closed and self.broken is None:
            self.complete = True

    def take(self) -> bytes:
        """The bytes of the body that have arrived since the last call."""
        pieces = self.body
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.body_bytes = 0
        return data

    # What llhttp calls as it reads.

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head:
            return  # a trailer, or bytes after the end
        key, lower = _known_name(name) if len(name) <= MAX_KNOWN_NAME_BYTES else _name(name)
        text = value.decode("utf-8", "surrogateescape")
        self.headers.append((key, text))
        match lower:
            case "content-length":
                self.content_length = int(text)
            case "content-type":
                self.media_type = text.partition(";")[0].strip().lower()
            case "transfer-encoding":
                self._chunked = text.strip().lower().endswith("chunked")

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in {"1.0", "1.1"}:
            self.broken = "the answer is not HTTP/1.1"
        self._interim = 100 <= status < 200 and status != _SWITCHING
        if self._interim:
            self.headers = []
            self.content_length, self.media_type, self._chunked = None, "", False
            self._announced += 1
            if self._announced > MAX_ANNOUNCEMENTS:
                self.broken = f"it announces an answer more than {MAX_ANNOUNCEMENTS} times"
            return
        self.status = status
        self.head = True
        if self._read_bytes > MAX_HEAD_BYTES and _size(self.headers) > MAX_HEAD_BYTES:
            self.broken = f"the answer's head has more than {MAX_HEAD_BYTES >> 10} KiB"
        self._until_closed = status not in _NO_BODY and self.content_length is None and not self._chunked

    def on_body(self, piece: bytes) -> None:
        if self.complete:
            return
        self.body.append(piece)
        self.body_bytes += len(piece)
        self._body_bytes += len(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self.complete:
            self.complete = True
            self.reusable = self.broken is None and self._parser.should_keep_alive()


def _name(name: bytes) -> tuple[str, str]:
    """A header's name as it was written, and in lower case."""
    key = name.decode("latin-1")
    return key, key.lower()


MAX_KNOWN_NAME_BYTES = 64
"""Longer names of headers are not kept: the engine chooses them."""

_known_name = functools.lru_cache(maxsize=256)(_name)
"""As `_name`; engines write the same names again and again."""


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
