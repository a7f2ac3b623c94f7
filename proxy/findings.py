"""A finding of the doctor says in words what was seen, and a warning or failure also what to do about it.

Pure values, made by the doctor, and by each connector for its pairs. The worst finding is the verdict.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec


class Status(enum.StrEnum):
    """How a step ended, from harmless to grave."""

    SKIP = "skip"
    """The step was not taken, for a reason that another finding or the configuration gives."""
    PASS = "pass"  # noqa: S105  # no password
    WARN = "warn"
    """It works, and could work better or stop working."""
    FAIL = "fail"
    """It does not work."""


_ORDER = list(Status)

EXIT_CODES: Mapping[Status, Literal[0, 1, 2]] = {
    Status.SKIP: 0,
    Status.PASS: 0,
    Status.WARN: 1,
    Status.FAIL: 2,
}


def worst(statuses: Iterable[Status]) -> Status:
    """The gravest of `statuses`; PASS if there are none."""
    return max([Status.PASS, *statuses], key=_ORDER.index)


class Finding(msgspec.Struct, frozen=True):
    """What one step found."""

    step: str
    status: Status
    words: str
    remedy: str | None = None
    """What to do; set for every warning and failure."""
    rank: int | None = None
    """The data-parallel rank that it is about, if an instance has several."""


def passed(step: str, words: str, rank: int | None = None) -> Finding:
    """A finding that all is well."""
    return Finding(step, Status.PASS, words, rank=rank)


def skipped(step: str, words: str, rank: int | None = None) -> Finding:
    """A finding that the step was not taken."""
    return Finding(step, Status.SKIP, words, rank=rank)


def warned(step: str, words: str, remedy: str, rank: int | None = None) -> Finding:
    """A finding that something works, but not as it should."""
    return Finding(step, Status.WARN, words, remedy, rank)


def failed(step: str, words: str, remedy: str, rank: int | None = None) -> Finding:
    """A finding that something does not work."""
    return Finding(step, Status.FAIL, words, remedy, rank)
