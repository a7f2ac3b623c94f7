"""A report as people read it, with or without a terminal, and as machines do."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.doctor.findings import Report
from proxy.doctor.shown import report_shown
from proxy.findings import Finding, Status
from proxy.shown import as_builtins

_COLOURS = {
    Status.PASS: "\033[32m",
    Status.WARN: "\033[33m",
    Status.FAIL: "\033[1;31m",
    Status.SKIP: "\033[2m",
}
_PLAIN = "\033[0m"
_STEP_CHARS = 17
_MIN_WIDTH = 60


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for `--json` and `GET /doctor`."""
    return as_builtins(report_shown(report))


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
        wrapped = _wrapped(f.words, len(head), width)
        painted = "  " + _painted(f"{f.status.value:<4}", f.status, colour=colour) + head[6:]
        yield painted + wrapped[0]
        yield from (" " * len(head) + line for line in wrapped[1:])
        if f.remedy is not None:
            arrow = " " * len(head) + "-> "
            advice = _wrapped(f.remedy, len(arrow), width)
            yield arrow + advice[0]
            yield from (" " * len(arrow) + line for line in advice[1:])


def _wrapped(text: str, indent: int, width: int | None) -> list[str]:
    if width is None:
        return [text]
    room = max(_MIN_WIDTH, width) - indent
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
