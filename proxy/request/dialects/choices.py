"""An answer made of choices, or an event of its stream: does it say anything, did it fail, is it the end.

Pure: JSON text in. vLLM answers completions and chats so.
"""

import re
from typing import Any

import msgspec

from proxy.errors import envelope
from proxy.request.dialects.base import Failure
from proxy.request.sse import event_of

MAX_JUDGED_BYTES = 4 << 20
"""Of a larger text only the beginning is read, where errors stand: all of it would hold up the event loop."""

_FAILED = re.compile(rb'\s*\{\s*("error"\s*:\s*\{|"object"\s*:\s*"error")')

DONE = b"[DONE]"
"""The data of the event that ends a complete stream."""

_ERROR = b'"error"'
"""Stands in all that tells of a failure, as a name or as a value, and hardly in anything else: quotes in
texts are escaped, so only a text that is this one word has it."""

_ABORT = b'"abort"'
"""So ends what an engine drops, because it falls asleep, say; its client is still there."""

_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Choice(msgspec.Struct):
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def wants_judging(run: bytes) -> bool:
    """Whether a run of events may hold a failure or the end: cheap, for every chunk is asked."""
    return _ERROR in run or DONE in run or _ABORT in run


def has_produced(data: bytes) -> bool:
    """Whether anything is generated, as roles and usages are not. What cannot be read passes for it."""
    if len(data) > MAX_JUDGED_BYTES:
        return True
    try:
        members = _decode(data)
    except _UNREADABLE:
        return True
    if not isinstance(members, dict):
        return True
    choices = members.get("choices")
    return isinstance(choices, list) and any(_produced(choice) for choice in choices)


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
    """The status of a failure that this JSON text tells of: in a member `error`, as older engines do in an
    object of that kind, or by a choice that ended so: vLLM does that where KV could not be loaded, and where
    it drops a request.
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
