"""What the doctor found about instances, pairs and the fleet, for people and for machines.

Pure values. The worst finding is the verdict.
"""

from typing import Literal

import msgspec

from proxy.findings import EXIT_CODES, Finding, Status, worst


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
    """Findings about all instances together."""

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
    def exit_code(self) -> Literal[0, 1, 2]:
        """0: all pass; 1: warnings; 2: failures."""
        return EXIT_CODES[self.verdict]

    def count(self, status: Status) -> int:
        """How many findings have that status."""
        return sum(f.status is status for f in self.findings)
