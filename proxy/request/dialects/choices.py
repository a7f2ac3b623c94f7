"""Whether an answer made of choices, or an event of its stream, has text, is a failure, or is the end.

Pure: JSON text in. vLLM answers completions and chats so.
"""

import re
from typing import Any

import msgspec

from proxy.errors import envelope
from proxy.request.dialects.base import Failure
from proxy.request.sse import event_of

MAX_JUDGED_BYTES = 4 << 20
"""The most bytes of a text that are read; a failure stands at its beginning, and all of it would hold up the
event loop."""

_FAILED = re.compile(rb'\s*\{\s*("error"\s*:\s*\{|"object"\s*:\s*"error")')

DONE = b"[DONE]"
"""The data of the event that ends a complete stream."""

ERROR = b'"error"'
"""All failures have this, as a name or as a value, and hardly anything else has: quotes in texts are escaped,
so only a text that is this one word does."""

ABORT = b'"abort"'
"""The finish reason of what an engine drops while its client is still there, as when it falls asleep."""

_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Choice(msgspec.Struct):
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def has_produced(data: bytes) -> bool:
    """Whether an event has anything generated; roles and usages are not. What cannot be read counts as
    generated.
    """
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
    """The failure that an answer, or the data of an event, is about; None if it is about none."""
    status = failure_status(data)
    if status is None:
        return None
    if len(data) > MAX_JUDGED_BYTES or (reason := _finish_reason(data)) is None:
        return Failure(status, data, event)
    words = f"the engine gave this request up (finish reason {reason})"
    body = msgspec.json.encode(envelope(words, "InternalServerError", status))
    return Failure(status, body, event and event + event_of(body))


def failure_status(data: bytes) -> int | None:
    """The status of the failure in this JSON text; None if there is none.

    It is in a member `error`, or, in older engines, the text is an error object, or a choice ended so: vLLM
    does that where KV could not be loaded, and where it drops a request.
    """
    if ERROR not in data and ABORT not in data:
        return None
    if len(data) > MAX_JUDGED_BYTES:
        return 500 if _FAILED.match(data) else None
    try:
        members = _decode_members(data)
        if error := _decode(members.get("error", b"null")):
            return _status(error.get("code") if isinstance(error, dict) else None)
        if members.get("object") == msgspec.Raw(ERROR):
            return _status(_decode(members.get("code", b"null")))
        return 500 if _finish_reason(data) else None
    except _UNREADABLE:
        return None


def _finish_reason(data: bytes) -> str | None:
    """The finish reason of a choice that failed; None if the text has an error as well."""
    try:
        members = _decode_members(data)
        choices = _decode_choices(members.get("choices", b"null")) or []
    except _UNREADABLE:
        return None
    if _decode(members.get("error", b"null")):
        return None
    # Not in a set: the value may be a list.
    return next((c.finish_reason for c in choices if c.finish_reason in ("error", "abort")), None)


def _status(code: Any) -> int:
    if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) == 3:
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def first_token_ms(metrics: object) -> float | None:
    """The time to the first token that an engine tells in an answer's `metrics`; None if it tells none."""
    told = metrics.get("time_to_first_token_ms") if isinstance(metrics, dict) else None
    return told if isinstance(told, float) and told > 0 else None
