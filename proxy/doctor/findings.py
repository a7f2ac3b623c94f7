"""A finding says what was seen in words, and one that is not a pass says what to do about it.

Pure values: what the doctor found, for a terminal and for machines. The worst finding is the verdict.
"""

import enum
from collections.abc import Iterable

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

EXIT_CODES = {Status.SKIP: 0, Status.PASS: 0, Status.WARN: 1, Status.FAIL: 2}


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


class Subject(msgspec.Struct, frozen=True):
    """What findings are about: an instance, a pair or the fleet."""

    name: str
    findings: list[Finding]

    @property
    def verdict(self) -> Status:
        """The gravest finding."""
        return worst(f.status for f in self.findings)


class InstanceReport(Subject, frozen=True, kw_only=True):
    """One instance, step by step."""

    instance: str
    role: str


class PairReport(Subject, frozen=True, kw_only=True):
    """A prefill and a decode instance, and the way from one to the other."""

    prefill: str
    decode: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found."""

    model: str
    connector: str
    took_s: float
    instances: list[InstanceReport]
    pairs: list[PairReport]
    fleet: list[Finding]
    """What concerns all instances together."""

    @property
    def findings(self) -> list[Finding]:
        """Every finding."""
        subjects: list[Subject] = [*self.instances, *self.pairs]
        return [f for subject in subjects for f in subject.findings] + self.fleet

    @property
    def verdict(self) -> Status:
        """The gravest finding."""
        return worst(f.status for f in self.findings)

    @property
    def exit_code(self) -> int:
        """0: all pass; 1: warnings; 2: failures."""
        return EXIT_CODES[self.verdict]

    def count(self, status: Status) -> int:
        """How many findings have that status."""
        return sum(f.status is status for f in self.findings)


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
