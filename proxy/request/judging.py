"""Whole events of an engine's stream are passed on, up to its end or failure, without members that are not
for clients.

Pure: runs of whole events in, what becomes of them out. The dialect knows what ends and what fails.
"""

import re
from typing import NamedTuple

import msgspec

from proxy.request.dialects.base import Dialect, Failure
from proxy.request.sse import events, with_data

PARAMS = b'_transfer_params"'
_NO_PARAMS = re.compile(rb"\s*:\s*null")
TRANSFER_PARAMS = ("kv_transfer_params", "ec_transfer_params")
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Part(NamedTuple):
    """What becomes of a run of events."""

    passed: bytes
    """The events that are passed on, up to a failure or the end."""
    failure: Failure | None = None
    done: bool = False


def wants_judging(dialect: Dialect, run: bytes) -> bool:
    """Whether a run of events has to go through `judge`; cheap, because it is called for every chunk."""
    return PARAMS in run or dialect.wants_judging(run)


def judge(dialect: Dialect, run: bytes) -> Part:
    """The part of a run of whole events that is passed on, and how the stream ends with it, if it does."""
    if PARAMS in run:
        run = _without_params(run)
    passed: list[bytes] = []
    for event, data in events(run):
        if not data:
            passed.append(event)
            continue
        if dialect.ends(data):
            return Part(b"".join([*passed, event]), done=True)
        if (failure := dialect.failure(data, event)) is not None:
            return Part(b"".join(passed), failure)
        passed.append(event)
    return Part(run)


def without_params(answer: bytes) -> bytes:
    """An answer without the params by which engines fetch its blocks from each other, which are not for
    clients.

    From vLLM 0.33 on an answer to a decode leg may have them, and so may the `response` of an event. Members
    that are null stay, and so does all other text.
    """
    if not _has_params(answer):
        return answer
    try:
        members = _decode_members(answer)
    except _UNREADABLE:
        return answer
    kept = {name: raw for name, raw in members.items() if name not in TRANSFER_PARAMS or raw == _NULL}
    if (inner := kept.get("response")) is not None and PARAMS in bytes(inner):
        kept["response"] = msgspec.Raw(without_params(bytes(inner)))
        return _encode(kept)
    return answer if len(kept) == len(members) else _encode(kept)


def _without_params(run: bytes) -> bytes:
    """The events of a run, treated as answers are."""
    if not _has_params(run):
        return run
    return b"".join(
        event if (kept := without_params(data)) is data else with_data(event, kept)
        for event, data in events(run)
    )


def _has_params(text: bytes) -> bool:
    at = text.find(PARAMS)
    while at >= 0:
        at += len(PARAMS)
        if _NO_PARAMS.match(text, at) is None:
            return True
        at = text.find(PARAMS, at)
    return False
