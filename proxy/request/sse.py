"""Server-sent events are cut and written here alone: bytes in any pieces in, whole events and their data out.

Pure. What an event says, a dialect knows.
"""

import re
from collections.abc import Iterator

MAX_EVENT_BYTES = 8 << 20
"""The longest event: no event of an engine comes near this, and more bytes without an end are no event
stream."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients ignore, so that nothing between takes the connection for dead."""

_SEAM = len(b"\ndata:") - 1
_HEAD = 64  # bytes that are enough to see how an event begins
_BLANK = re.compile(rb"[\r\n]*")


class EventCutter:
    """Cuts bytes into runs of whole events, and keeps the rest of an unfinished one.

    Each byte is looked at once, and a few of them again with the next piece: an event in a thousand pieces
    costs as much as one in one piece.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._comment = True
        """Whether the tail is nothing but comments and blank lines so far."""

    @property
    def tail_is_comment(self) -> bool:
        """Whether the unfinished event is nothing but comments so far."""
        return self._comment

    def feed(self, chunk: bytes) -> bytes:
        """All events that are complete with `chunk`. Raises ValueError if one is longer than
        MAX_EVENT_BYTES.
        """
        tail = self._tail
        if not tail and chunk.endswith(b"\n\n"):
            return chunk  # as engines send them
        seam = bytes(tail[-_SEAM:])  # an end, or a line of data, may have begun there
        near = seam + chunk if seam else chunk
        end = near.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        if b"\r" in near and (mark := near.rfind(b"\n\r\n")) >= 0:
            end = max(end, mark + 3)
        if end <= len(seam):
            tail.extend(chunk)
            if len(tail) > MAX_EVENT_BYTES:
                raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
            if self._comment:
                begun = len(tail) - len(chunk) >= _HEAD
                self._comment = b"\ndata:" not in near if begun else only_comments(bytes(tail))
            return b""
        end -= len(seam)
        rest = chunk[end:]
        if tail:
            tail.extend(chunk[:end])
            run = bytes(tail)
        else:
            run = chunk[:end]
        if len(rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        self._tail = bytearray(rest)
        self._comment = only_comments(rest)
        return run

    def rest(self) -> bytes:
        """The event that the end of the stream cut off, as if it were complete; empty if there is none."""
        tail, self._tail = bytes(self._tail), bytearray()
        return tail + b"\n\n" if tail.strip() else b""


class EventReader:
    """Cuts the bytes of one stream into the data of its events."""

    def __init__(self) -> None:
        self._cutter = EventCutter()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of all events that are complete with `chunk`; empty for one that is only a comment.

        Raises ValueError as `EventCutter.feed`.
        """
        return [data for event, data in events(self._cutter.feed(chunk)) if event.strip()]


def events(run: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each event of a run of whole ones, with its data; no data if it is only a comment."""
    marks = (b"\n\n", b"\n\r\n") if b"\r" in run else (b"\n\n",)
    found = [run.find(mark) for mark in marks]
    begin = 0
    while (end := min((at for at in found if at >= 0), default=-1)) >= 0:
        blank = _BLANK.match(run, end)
        stop = blank.end() if blank is not None else end
        yield run[begin:stop], _data(run, begin, end)
        begin = stop
        # Each kind is looked for once, however many of the other there are.
        found = [
            run.find(mark, stop) if 0 <= at < stop else at for mark, at in zip(marks, found, strict=True)
        ]


def _data(run: bytes, begin: int, end: int) -> bytes:
    """The data of the event at that place; a single line, as nearly all are, is copied once."""
    if run.startswith(b"data:", begin) and run.find(b"\n", begin, end) < 0:
        first = begin + len(b"data: ")
        return run[first if run.startswith(b" ", first - 1) else first - 1 : end].strip()
    lines = run[begin:end].split(b"\n")
    return b"\n".join(line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:"))


def event_of(data: bytes, name: str = "") -> bytes:
    """An event with this data, which MUST have no line breaks; `name`: its type, if it has one."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + data + b"\n\n"


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data; its other lines stay."""
    others = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    return b"\n".join([*others, event_of(data)])


def only_comments(piece: bytes) -> bool:
    """Whether a piece of a stream, which begins where an event may begin, is nothing but comments and blank
    lines.
    """
    return piece[:1] != b"d" and piece.lstrip()[:1] in {b":", b""} and b"\ndata:" not in piece
