"""A campaign's result for people: a table of what was sent and how it ended, and every finding with its
bytes."""

import pathlib
from collections import Counter

from rich.console import Console
from rich.table import Table

from tests.fuzz.http.campaign import Result
from tests.fuzz.http.client import Finding, words


def show(result: Result, console: Console) -> None:
    """Print the tables."""
    tally = result.tally
    ends = sorted({end for _, end in tally.outcomes}, key=lambda end: (not end.isdigit(), end))
    table = Table("sent", *ends)
    for kind in sorted({kind for kind, _ in tally.outcomes}):
        table.add_row(kind, *(_count(tally.outcomes[kind, end]) for end in ends))
    totals: Counter[str] = Counter()
    for (_, end), count in tally.outcomes.items():
        totals[end] += count
    table.add_section()
    table.add_row("all", *(_count(totals[end]) for end in ends))
    console.print(table)
    rate = tally.requests / result.seconds if result.seconds else 0
    console.print(
        f"{tally.requests} requests in {tally.shots} shots over {tally.connections} connections,"
        f" {result.seconds:.0f} s ({rate:.0f}/s)"
    )
    if result.before is not None and result.after is not None:
        b, a = result.before, result.after
        console.print(
            f"kvproxy before and after: memory {b.rss_mib:.1f}, {a.rss_mib:.1f} MiB"
            f" ({b.cached_mib:.1f}, {a.cached_mib:.1f} of them in caches);"
            f" descriptors {b.fds}, {a.fds}; threads {b.threads}, {a.threads}"
        )
    for failure in result.failures:
        console.print(f"FAILED: {failure}", markup=False)
    for finding in tally.findings:
        console.print(words(finding), markup=False)
    console.print(
        f"{'passed' if result.passed else 'FAILED'}: {tally.found} findings, {len(result.failures)} failures"
    )


def keep(findings: list[Finding], folder: pathlib.Path) -> None:
    """Write what was sent by each finding's shot to a file of its own."""
    for finding in findings:
        (folder / f"shot-{finding.number}.bin").write_bytes(b"".join(finding.shot.pieces))


def _count(number: int) -> str:
    return str(number) if number else ""
