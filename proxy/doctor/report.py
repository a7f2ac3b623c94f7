"""A report as people read it, with or without a terminal, and as machines do."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.doctor.findings import Report
from proxy.findings import Finding, Status

_COLOURS = {
    Status.PASS: "\033[32m",
    Status.WARN: "\033[33m",
    Status.FAIL: "\033[1;31m",
    Status.SKIP: "\033[2m",
}
_PLAIN = "\033[0m"
_STEP_CHARS = 17
_LEAST_WIDTH = 60


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for `--json` and `GET /doctor`."""
    return {
        "verdict": report.verdict.value,
        "exit_code": report.exit_code,
        "model": report.model,
        "connector": report.connector,
        "took_s": report.took_s,
        "counts": {status.value: report.count(status) for status in Status},
        "instances": [
            {
                "instance": one.instance,
                "role": one.role,
                "verdict": one.verdict.value,
                "findings": _listed(one.findings),
            }
            for one in report.instances
        ],
        "pairs": [
            {
                "prefill": pair.prefill,
                "decode": pair.decode,
                "verdict": pair.verdict.value,
                "findings": _listed(pair.findings),
            }
            for pair in report.pairs
        ],
        "fleet": _listed(report.fleet),
    }


def _listed(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "step": f.step,
            "status": f.status.value,
            "rank": f.rank,
            "words": f.words,
            "remedy": f.remedy,
        }
        for f in findings
    ]


def as_text(report: Report, *, colour: bool = False, width: int | None = None) -> str:
    """A table for people; `width` in characters, None for lines as long as they are."""
    lines: list[str] = []
    for subject in (*report.instances, *report.pairs):
        lines += [subject.name, *_table(subject.findings, colour=colour, width=width), ""]
    if report.fleet:
        lines += ["all instances", *_table(report.fleet, colour=colour, width=width), ""]
    lines.append(_painted(_summary(report), report.verdict, colour=colour))
    return "\n".join(lines)


def _table(findings: Sequence[Finding], *, colour: bool, width: int | None) -> Iterator[str]:
    for f in findings:
        step = f.step.replace("_", " ") + (f" {f.rank}" if f.rank is not None else "")
        head = f"  {f.status.value:<4}  {step:<{_STEP_CHARS}} "
        told = _wrapped(f.words, len(head), width)
        painted = "  " + _painted(f"{f.status.value:<4}", f.status, colour=colour) + head[6:]
        yield painted + told[0]
        yield from (" " * len(head) + line for line in told[1:])
        if f.remedy is not None:
            arrow = " " * len(head) + "-> "
            advice = _wrapped(f.remedy, len(arrow), width)
            yield arrow + advice[0]
            yield from (" " * len(arrow) + line for line in advice[1:])


def _wrapped(text: str, indent: int, width: int | None) -> list[str]:
    if width is None:
        return [text]
    room = max(_LEAST_WIDTH, width) - indent
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(report: Report) -> str:
    counted = [
        f"{report.count(status)} {words}"
        for status, words in (
            (Status.FAIL, "failed"),
            (Status.WARN, "warned"),
            (Status.PASS, "passed"),
            (Status.SKIP, "skipped"),
        )
        if report.count(status)
    ]
    return f"{report.verdict.value}: {', '.join(counted) or 'nothing was looked at'} in {report.took_s:.1f} s"


def _painted(text: str, status: Status, *, colour: bool) -> str:
    return f"{_COLOURS[status]}{text}{_PLAIN}" if colour else text
