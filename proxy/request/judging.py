"""What an engine streams is judged event by event: nothing yet, something produced, a failure, or the end.

Pure: runs of whole events in, verdicts out. Whole answers are looked at for failures here too.
"""

import enum
import re
from typing import Any, NamedTuple

import msgspec

from proxy.errors import envelope
from proxy.request.sse import event_of, events, with_data

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
        event if (kept := without_params(data)) is data else with_data(event, kept)
        for event, data in events(run)
    )


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
    return Failure(status, body, event and event + event_of(body))


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
