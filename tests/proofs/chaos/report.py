"""What people see of a run: one line while it runs, a table at its end, and all there is to know of each
failure."""

import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.proofs.chaos import verdict as v
from tests.proofs.chaos.clients import Record
from tests.proofs.chaos.run import Options, Run, run

_PIPED_WIDTH = 118
_PIPED_LINE_EVERY_S = 10.0
SHOWN_FAILURES = 12
_LOG_LINES = 25
_AROUND_S = 2.0


def run_and_show(options: Options) -> Run:
    """Run it, show how it goes and what came of it, and write down what failed. Call it from the main
    thread."""
    screen = Screen()
    screen.title(
        f"{options.clients} clients, {options.prefill} prefill and {options.decode} decode engines,"
        f" {options.seconds / 60:g} minutes of faults, seed {options.seed}, policy {options.policy}"
    )
    made = run(options, screen.live)
    screen.result(made)
    if made.failures:
        write_findings(made)
    return made


class Screen:
    """Prints a run."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, width=None if self._terminal else _PIPED_WIDTH)
        self._said_at = float("-inf")

    def title(self, text: str) -> None:
        self._console.print(escape(text), style="bold")

    def live(self, run: Run) -> None:
        """One line that says how it goes."""
        now = time.monotonic()
        if not self._terminal and now - self._said_at < _PIPED_LINE_EVERY_S:
            return
        self._said_at = now
        ends = Counter(v.outcome(record) for record in run.crowd.records[-100_000:])
        touched = [f"{e.name} {e.fault}" for e in run.journal.entries if e.ended is None]
        line = (
            f"{now - run.begun:5.0f} s  {run.crowd.running:3d} under way  "
            + "  ".join(f"{ends[name]} {name}" for name in ("right", "left", "cut", "refused", "unanswered"))
            + f"  now: {', '.join(touched) or 'all well'}"
        )
        if self._terminal:
            width = self._console.width - 1
            sys.stdout.write(f"\r{line[:width]:<{width}}")
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def result(self, run: Run) -> None:
        """The tables and the failures."""
        if self._terminal:
            sys.stdout.write("\r" + " " * (self._console.width - 1) + "\r")
        self._console.print(_answers(run.crowd.records))
        self._console.print(_faults(run))
        self._console.print(_figures(run))
        self._console.print(_checks(run))
        for finding in run.failures[:SHOWN_FAILURES]:
            self._console.print(escape(explain(finding, run)), soft_wrap=True)
        if (more := len(run.failures) - SHOWN_FAILURES) > 0:
            self._console.print(f"... and {more} more", style="bold red")
        if run.failures:
            self._console.print(
                f"{len(run.failures)} findings; seed {run.options.seed}; all of them, and the logs of kvproxy"
                f" and of the engines, are in {run.options.logs}",
                style="bold red",
                soft_wrap=True,
            )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _answers(records: Iterable[Record]) -> Table:
    ways = ("right", "left", "cut", "refused", "unanswered", "wrong")
    table = _table("answers as the clients saw them", "requests", "all", *ways)
    counts: dict[str, Counter[str]] = {}
    for record in records:
        kind = f"{record.plan.path.removeprefix('/v1/')}, {'streamed' if record.plan.stream else 'whole'}"
        for row in (kind, "all"):
            counts.setdefault(row, Counter())[v.outcome(record)] += 1
    for row in sorted(counts, key=lambda name: (name == "all", name)):
        found = counts[row]
        table.add_row(row, str(found.total()), *(str(found[way]) for way in ways))
    return table


def _faults(run: Run) -> Table:
    table = _table("faults", "fault", "prefill", "decode", "longest until back")
    for fault, count in run.journal.counts().items():
        entries = [e for e in run.journal.entries if e.fault is fault]
        if not count:
            continue
        took = [e.ended - e.healed for e in entries if e.ended is not None and e.healed is not None]
        by_role = Counter(entry.name.partition("-")[0] for entry in entries)
        longest = f"{max(took):.1f} s" if took else "-"
        table.add_row(str(fault), str(by_role["prefill"]), str(by_role["decode"]), longest)
    return table


def _figures(run: Run) -> Table:
    table = _table("kvproxy", "", "before", "after")
    before, after, page = run.before, run.after, run.page
    if before is not None and after is not None:
        table.add_row("sockets", str(before.sockets), str(after.sockets))
        table.add_row("tasks", str(before.tasks), str(after.tasks))
        table.add_row("memory", f"{before.memory_mib:.1f} MiB", f"{after.memory_mib:.1f} MiB")
        cpu_share = (after.cpu_s - before.cpu_s) / max(after.at - before.at, 1e-9)
        table.add_row("CPU", "", f"{100 * cpu_share:.0f} %")
    if page is not None:
        for end in ("pulled", "released", "stranded"):
            table.add_row(f"holds {end}", "", f"{page.total('kvproxy_holds_total', end=end):.0f}")
        table.add_row("holds lost with their engines, at most", "", str(run.journal.may_strand()))
        table.add_row("legs retried", "", f"{page.total('kvproxy_retries_total'):.0f}")
        table.add_row("event gaps", "", f"{page.total('kvproxy_kv_event_gaps_total'):.0f}")
    table.add_row("settled after", "", f"{run.settled_s:.0f} s")
    return table


def _checks(run: Run) -> Table:
    table = _table("promises", "promise", "findings")
    for check in run.verdict.checks:
        count = len(run.verdict.of(check))
        table.add_row(check, "none" if not count else str(count), style="bold red" if count else "green")
    return table


def explain(finding: v.Finding, run: Run) -> str:
    """All that is known of a failure: the request's timeline, the engines around it, kvproxy's words."""
    lines = [f"\n{finding.check}: {finding.words}"]
    record = finding.record
    if record is None:
        return "\n".join(lines)
    plan, origin = record.plan, run.begun
    kind = "stream" if plan.stream else "unary"
    lines += [
        f"  {plan.id}: {kind} {plan.path}, {plan.manner}; {v.outcome(record)}, text: {record.says}",
        (
            f"  {record.timeline(origin)}; status {record.status}, prefill {record.prefill}, decode "
            f"{record.decode}"
        ),
    ]
    if record.texts and plan.expected:
        lines += [
            f"  choice {n}: {len(got)} characters of {len(right)}"
            for n, (got, right) in enumerate(zip(record.texts, plan.expected, strict=False))
        ]
    around = run.journal.during(None, record.begun - _AROUND_S, record.ended)
    lines += [f"  | {entry.line(origin)}" for entry in around]
    lines += [f"  > {line}" for line in log_lines(run.options.logs / "kvproxy.log", plan.id)]
    return "\n".join(lines)


def log_lines(log: pathlib.Path, words: str) -> list[str]:
    """The last lines of a log that contain `words`."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return [line.rstrip() for line in lines if words in line][-_LOG_LINES:]
    except OSError as error:
        return [f"{log}: {error.strerror}"]


def write_findings(run: Run) -> pathlib.Path:
    """All findings and the whole journal, beside the logs."""
    path = run.options.logs / "findings.txt"
    journal = [f"{entry.line(run.begun)}, may strand {entry.may_strand}" for entry in run.journal.entries]
    parts = [*(explain(finding, run) for finding in run.failures), "\njournal:", *journal]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path
