"""A sequence number is judged by the one before it alone: next, skipped, seen already, or counted by a new
process.

A publisher counts its batches from 0 and never repeats a number (vLLM's `ZmqEventPublisher`), so a number at
or below the last one means a restart - unless it is the same batch heard once more.
"""

import hashlib
from dataclasses import dataclass

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Position:
    """The last batch applied: its number and what its payload was."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Contiguous:
    """The batch that was expected."""


@dataclass(frozen=True, slots=True)
class Gap:
    """`missing` batches, from number `first` on, were not heard."""

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
    """Tells one process's batch from another's with the same number: the payload holds the time it was
    made.
    """
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def position(number: int, payload: bytes) -> Position:
    """The place after applying that batch."""
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
