"""The report as `GET /doctor` and `kvproxy doctor --json` show it."""

import enum
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from proxy.doctor.findings import Report
from proxy.findings import Finding, Status
from proxy.phases import Role
from proxy.shown import Address, Count, Seconds, Shown, says


class Verdict(enum.StrEnum):
    """The gravest of several findings; `pass` if there are none."""

    PASS = Status.PASS
    WARN = Status.WARN
    FAIL = Status.FAIL


class FindingShown(Shown, frozen=True, kw_only=True):
    """What one step found."""

    step: Annotated[str, says("What was looked at.")]
    status: Annotated[Status, says("`skip`: not looked at, for a reason that is said.")]
    rank: Annotated[Count | None, says("The data-parallel rank it is about, where an instance has several.")]
    words: Annotated[str, says("What was seen.")]
    remedy: Annotated[str | None, says("What to do; there for every warning and failure.")]


class CountsShown(Shown, frozen=True, kw_only=True):
    """How many findings there are of each status."""

    skipped: Count = msgspec.field(name=Status.SKIP.value)
    passed: Count = msgspec.field(name=Status.PASS.value)
    warned: Count = msgspec.field(name=Status.WARN.value)
    failed: Count = msgspec.field(name=Status.FAIL.value)


class ExaminedInstanceShown(Shown, frozen=True, kw_only=True):
    """One instance, step by step."""

    instance: Address
    role: Role
    verdict: Verdict
    findings: list[FindingShown]


class ExaminedPairShown(Shown, frozen=True, kw_only=True):
    """A prefill and a decode instance, and the way from one to the other."""

    prefill: Address
    decode: Address
    verdict: Verdict
    findings: list[FindingShown]


class DoctorShown(Shown, frozen=True, kw_only=True):
    """All that was found."""

    verdict: Annotated[Verdict, says("The gravest finding.")]
    exit_code: Annotated[
        Literal[0, 1, 2], says("That of `kvproxy doctor`: 0 all pass, 1 warnings, 2 failures.")
    ]
    model: str
    connector: str
    took_s: Seconds
    counts: CountsShown
    instances: list[ExaminedInstanceShown]
    pairs: list[ExaminedPairShown]
    fleet: Annotated[list[FindingShown], says("What concerns all instances together.")]


def report_shown(report: Report) -> DoctorShown:
    """Everything in `report`."""
    return DoctorShown(
        verdict=Verdict(report.verdict),
        exit_code=report.exit_code,
        model=report.model,
        connector=report.connector,
        took_s=report.took_s,
        counts=CountsShown(
            skipped=report.count(Status.SKIP),
            passed=report.count(Status.PASS),
            warned=report.count(Status.WARN),
            failed=report.count(Status.FAIL),
        ),
        instances=[
            ExaminedInstanceShown(
                instance=one.instance,
                role=Role(one.role),
                verdict=Verdict(one.verdict),
                findings=_listed(one.findings),
            )
            for one in report.instances
        ],
        pairs=[
            ExaminedPairShown(
                prefill=pair.prefill,
                decode=pair.decode,
                verdict=Verdict(pair.verdict),
                findings=_listed(pair.findings),
            )
            for pair in report.pairs
        ],
        fleet=_listed(report.fleet),
    )


def _listed(findings: Sequence[Finding]) -> list[FindingShown]:
    return [
        FindingShown(step=f.step, status=f.status, rank=f.rank, words=f.words, remedy=f.remedy)
        for f in findings
    ]
