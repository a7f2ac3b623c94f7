"""A finding says what was seen in words, and one that is not a pass says what to do about it.

Pure values. Who judges makes them: the doctor, and each connector of its own pairs. The worst is the verdict.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec


class Status(enum.StrEnum):
    """How a step ended, from harmless to grave."""

    SKIP = "skip"
    """Not looked at, for a reason that another finding or the configuration gives."""
    PASS = "pass"  # noqa: S105  # no password
    WARN = "warn"
    """It works, and could work better or stop working."""
    FAIL = "fail"
    """It does not do what it is there for."""


_ORDER = list(Status)

EXIT_CODES: Mapping[Status, Literal[0, 1, 2]] = {
    Status.SKIP: 0,
    Status.PASS: 0,
    Status.WARN: 1,
    Status.FAIL: 2,
}


def worst(statuses: Iterable[Status]) -> Status:
    """The gravest of them; a pass if there is none."""
    return max([Status.PASS, *statuses], key=_ORDER.index)


class Finding(msgspec.Struct, frozen=True):
    """What one step found."""

    step: str
    status: Status
    words: str
    remedy: str | None = None
    """What to do; there for every warning and failure."""
    rank: int | None = None
    """The data-parallel rank it is about, where an instance has several."""


def passed(step: str, words: str, rank: int | None = None) -> Finding:
    """All is well."""
    return Finding(step, Status.PASS, words, rank=rank)


def skipped(step: str, words: str, rank: int | None = None) -> Finding:
    """It was not looked at."""
    return Finding(step, Status.SKIP, words, rank=rank)


def warned(step: str, words: str, remedy: str, rank: int | None = None) -> Finding:
    """It works, but."""
    return Finding(step, Status.WARN, words, remedy, rank)


def failed(step: str, words: str, remedy: str, rank: int | None = None) -> Finding:
    """It does not work."""
    return Finding(step, Status.FAIL, words, remedy, rank)
