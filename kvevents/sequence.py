"""A sequence number is judged by the number before it alone: next, skipped, repeated, or of a new process.

A publisher counts its batches from 0 and never repeats a number (vLLM's `ZmqEventPublisher`). So a number at
or below the last one means a restart, unless it is the last batch heard once more.
"""

import hashlib
from dataclasses import dataclass

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Position:
    """The last batch that was applied: its number, and the digest of its payload."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Contiguous:
    """The batch that was expected."""


@dataclass(frozen=True, slots=True)
class Gap:
    """`missing` batches, from number `first` on, did not arrive."""

    first: int
    missing: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The batch comes from another process than the batch before it."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The last batch once more."""


Verdict = Contiguous | Gap | Restarted | Repeat


def digest(payload: bytes) -> bytes:
    """Tells a batch from that of another process with the same number: a payload holds the time at which it
    was made.
    """
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def position(number: int, payload: bytes) -> Position:
    """The position after that batch was applied."""
    return Position(number, digest(payload))


def judge(last: Position | None, number: int, payload: bytes) -> Verdict:
    """What `number` with `payload` means after `last` (None: nothing heard of this process yet)."""
    expected = 0 if last is None else last.number + 1
    if number == expected:
        return Contiguous()
    if number > expected:
        return Gap(expected, number - expected)
    if last is not None and number == last.number and digest(payload) == last.digest:
        return Repeat()
    return Restarted()
