"""What an engine streams is judged event by event: nothing yet, something produced, a failure, or the end.

Pure: bytes of engines in, runs of whole events and verdicts out. Whole answers are looked at for failures here too.
"""

import enum
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from proxy.errors import envelope

MAX_EVENT_BYTES = 8 << 20
"""No event of an engine comes near this; more without an end is not an event stream."""

_SEAM = len(b"\ndata:") - 1
_HEAD = 64  # bytes that show what an event begins with

MAX_JUDGED_BYTES = 4 << 20
"""A larger text is looked at by its beginning alone, where an error stands: reading it would hold up the event loop."""

_FAILED = re.compile(rb'\s*\{\s*("error"\s*:\s*\{|"object"\s*:\s*"error")')

DONE = b"[DONE]"
"""The data of the event that ends a complete stream."""

_ERROR = b'"error"'
"""Stands in all that tells of a failure, as a name or as a value, and hardly in anything else: quotes in texts are
escaped, so only a text that is this one word has it."""

_ABORT = b'"abort"'
"""So ends what an engine drops, because it falls asleep, say: its client did not ask for that and is still there."""

_PARAMS = b'_transfer_params"'
_NO_PARAMS = re.compile(rb"\s*:\s*null")
_BLANK = re.compile(rb"[\r\n]*")
TRANSFER_PARAMS = ("kv_transfer_params", "ec_transfer_params")
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Choice(msgspec.Struct):
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Verdict(enum.Enum):
    """What an event is worth."""

    NOTHING = enum.auto()
    """A comment, a role, a usage: nothing was generated yet."""
    PRODUCED = enum.auto()
    FAILED = enum.auto()
    DONE = enum.auto()
    """The mark that ends a complete stream."""


class Failure(NamedTuple):
    """An engine's own word that a request failed."""

    status: int
    """From 400 to 599; 500 where none is told."""
    body: bytes
    """As an answer of that status would have it."""
    event: bytes
    """As a stream has it; empty for what was no stream."""


class Part(NamedTuple):
    """What becomes of a run of events."""

    passed: bytes
    """The events that go on, up to a failure or the end."""
    failure: Failure | None = None
    done: bool = False


class EventCutter:
    """Cuts bytes into runs of whole events; what is left of an unfinished one waits.

    Each byte is looked at once, and a few of them again with the next piece: an event that comes in a thousand pieces
    costs what it does in one.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._comment = True
        """So far the tail is nothing but comments and blank lines."""

    @property
    def tail_is_comment(self) -> bool:
        """Whether what waits for its end is nothing but comments so far."""
        return self._comment

    def feed(self, chunk: bytes) -> bytes:
        """All events that are complete with `chunk`. Raises ValueError if one grows beyond all reason."""
        tail = self._tail
        if not tail and chunk.endswith(b"\n\n"):
            return chunk  # as engines send them
        seam = bytes(tail[-_SEAM:])  # an end, or the beginning of a line of data, may have begun there
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
        """The event that the end of the stream left without its own, as if it had one; nothing if there is none."""
        tail, self._tail = bytes(self._tail), bytearray()
        return tail + b"\n\n" if tail.strip() else b""


def events(run: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each event of a run of whole ones, as it is, and its data; no data for one that is only a comment."""
    marks = (b"\n\n", b"\n\r\n") if b"\r" in run else (b"\n\n",)
    found = [run.find(mark) for mark in marks]
    begin = 0
    while (end := min((at for at in found if at >= 0), default=-1)) >= 0:
        blank = _BLANK.match(run, end)
        stop = blank.end() if blank is not None else end
        yield run[begin:stop], _data(run, begin, end)
        begin = stop
        # Each is looked for once only, however many of the other there are.
        found = [
            run.find(mark, stop) if 0 <= at < stop else at for mark, at in zip(marks, found, strict=True)
        ]


def _data(run: bytes, begin: int, end: int) -> bytes:
    """The data of the event at that place; one line, as nearly all are, is copied once."""
    if run.startswith(b"data:", begin) and run.find(b"\n", begin, end) < 0:
        first = begin + len(b"data: ")
        return run[first if run.startswith(b" ", first - 1) else first - 1 : end].strip()
    lines = run[begin:end].split(b"\n")
    return b"\n".join(line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:"))


def verdict(data: bytes) -> Verdict:
    """What an event with this data is worth."""
    if not data:
        return Verdict.NOTHING
    if data == DONE:
        return Verdict.DONE
    if failure_status(data) is not None:
        return Verdict.FAILED
    if len(data) > MAX_JUDGED_BYTES:
        return Verdict.PRODUCED
    try:
        members = _decode(data)
    except _UNREADABLE:
        return Verdict.PRODUCED  # not ours to judge
    if not isinstance(members, dict):
        return Verdict.PRODUCED
    choices = members.get("choices")
    produced = isinstance(choices, list) and any(_produced(choice) for choice in choices)
    return Verdict.PRODUCED if produced else Verdict.NOTHING


def _produced(choice: Any) -> bool:
    """Whether a choice has text, reasoning, tool calls, log probabilities, tokens or an end."""
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    return (
        choice.get("finish_reason") is not None
        or any(choice.get(name) for name in ("text", "logprobs", "token_ids"))
        or (isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"))
    )


def wants_judging(run: bytes) -> bool:
    """Whether a run of events may hold anything that `judge` does not pass on as it is: cheap, for every chunk is asked."""
    return _ERROR in run or DONE in run or _PARAMS in run or _ABORT in run


def judge(run: bytes) -> Part:
    """What of a run of whole events goes on, and how the stream ends with it, if it does."""
    if _PARAMS in run:
        run = _without_params(run)
    passed: list[bytes] = []
    for event, data in events(run):
        if data == DONE:
            return Part(b"".join([*passed, event]), done=True)
        if (failure := failure_in(data, event)) is not None:
            return Part(b"".join(passed), failure)
        passed.append(event)
    return Part(run)


def without_params(answer: bytes) -> bytes:
    """An answer without the params by which engines fetch its blocks from each other, which are no client's business.

    From vLLM 0.33 on an answer of a decode leg may carry them. Members that are null stay, and so does all other text.
    """
    if not _has_params(answer):
        return answer
    try:
        members = _decode_members(answer)
    except _UNREADABLE:
        return answer
    kept = {name: raw for name, raw in members.items() if name not in TRANSFER_PARAMS or raw == _NULL}
    return answer if len(kept) == len(members) else _encode(kept)


def _without_params(run: bytes) -> bytes:
    """The same for the events of a run."""
    if not _has_params(run):
        return run
    return b"".join(
        event if (kept := without_params(data)) is data else _saying(event, kept)
        for event, data in events(run)
    )


def _saying(event: bytes, data: bytes) -> bytes:
    """The event with other data."""
    others = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    return b"\n".join([*others, b"data: " + data]) + b"\n\n"


def _has_params(text: bytes) -> bool:
    at = text.find(_PARAMS)
    while at >= 0:
        at += len(_PARAMS)
        if _NO_PARAMS.match(text, at) is None:
            return True
        at = text.find(_PARAMS, at)
    return False


def failure_in(data: bytes, event: bytes = b"") -> Failure | None:
    """The failure that an answer, or the data of an event, tells of; None if it tells of none."""
    status = failure_status(data)
    if status is None:
        return None
    if len(data) > MAX_JUDGED_BYTES or (reason := _finish_reason(data)) is None:
        return Failure(status, data, event)
    words = f"the engine gave this request up (finish reason {reason})"
    body = msgspec.json.encode(envelope(words, "InternalServerError", status))
    return Failure(status, body, event and event + b"data: " + body + b"\n\n")


def failure_status(data: bytes) -> int | None:
    """The status of a failure that this JSON text tells of: in a member `error`, as older engines do in an object of
    that kind, or by a choice that ended so: vLLM does that where KV could not be loaded, and where it drops a request.
    """
    if _ERROR not in data and _ABORT not in data:
        return None
    if len(data) > MAX_JUDGED_BYTES:
        return 500 if _FAILED.match(data) else None
    try:
        members = _decode_members(data)
        if error := _decode(members.get("error", b"null")):
            return _status(error.get("code") if isinstance(error, dict) else None)
        if members.get("object") == msgspec.Raw(_ERROR):
            return _status(_decode(members.get("code", b"null")))
        return 500 if _finish_reason(data) else None
    except _UNREADABLE:
        return None


def _finish_reason(data: bytes) -> str | None:
    """That of a choice that failed; None where an error is told as well."""
    try:
        members = _decode_members(data)
        choices = _decode_choices(members.get("choices", b"null")) or []
    except _UNREADABLE:
        return None
    if _decode(members.get("error", b"null")):
        return None
    # Not in a set: it may be a list.
    return next((c.finish_reason for c in choices if c.finish_reason in ("error", "abort")), None)


def _status(code: Any) -> int:
    if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) == 3:
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def only_comments(piece: bytes) -> bool:
    """Whether a piece of a stream that begins where an event may is nothing but comments and blank lines."""
    return piece[:1] != b"d" and piece.lstrip()[:1] in {b":", b""} and b"\ndata:" not in piece
