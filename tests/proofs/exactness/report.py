"""What people see of a run: a line while it runs, tables at its end, and a file with all there is to know of
each miss."""

import pathlib
import sys
import time
from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.workshop.engines.fleet import EngineFailedError
from scripts.workshop.live.proxy import ProxyFailedError
from tests.proofs.chaos.report import log_lines
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.course import LATE, Options, Phase, Run
from tests.proofs.exactness.run import run, words

_PIPED_WIDTH = 200
_LINE_EVERY_S = 10.0
_SHOWN = 10


class FailedError(RuntimeError):
    """An engine or kvproxy failed, so that there is no run to judge; the message names it and its log."""


def run_and_show(options: Options) -> Run:
    """Run it, show how it goes and what came of it, and write down every miss. Call it from the main thread.

    Raises: FailedError.
    """
    screen = Screen()
    engines = "real" if options.real else "stand-in"
    screen.title(
        f"2 prefill and 2 decode engines ({engines}), {options.clients} clients,"
        f" {options.seconds / 60:g} minutes, seed {options.seed}"
    )
    made, failed = None, ""
    try:
        made = run(options, print, screen.live)
    except* (EngineFailedError, ProxyFailedError) as group:
        failed = "; ".join(map(str, _leaves(group)))
    if made is None:
        raise FailedError(failed)
    screen.result(made)
    print(
        f"{made.failures} findings; all of them, every miss and the logs are in {write_findings(made).parent}"
    )
    return made


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


class Screen:
    """Prints a run."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        self._said_at = float("-inf")

    def title(self, text: str) -> None:
        self._console.print(escape(text), style="bold", soft_wrap=True)

    def live(self, run: Run) -> None:
        """One line now and then."""
        now = time.monotonic()
        if now - self._said_at < _LINE_EVERY_S:
            return
        self._said_at = now
        served = [leg for leg in run.legs if leg.served]
        right = sum(leg.right for leg in served)
        print(
            f"{time.time() - run.begun:5.0f} s  {run.phase:14}  {len(run.legs)} requests, {len(served)} "
            f"served, {right} predicted right",
            flush=True,
        )

    def result(self, run: Run) -> None:
        """The tables and the findings."""
        self._console.print(_legs(run))
        self._console.print(_kinds(run))
        for line in _figures(run):
            self._console.print(escape(line), soft_wrap=True)
        self._console.print(_checks(run))
        for finding in run.verdict.findings[:_SHOWN]:
            self._console.print(escape(f"\n{finding.check}: {finding.words}"), soft_wrap=True)
        if (more := run.failures - _SHOWN) > 0:
            self._console.print(f"... and {more} more", style="bold red")


def _table(title: str, *headings: str, names: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number >= names else "left", no_wrap=number < names)
    return table


def _legs(run: Run) -> Table:
    table = _table(
        "prefill legs: predicted against reported",
        *("phase", "kvproxy", "instance", "legs", "from exact slots", "right", "over", "under", "%"),
        *("races", "unexplained", "other slots", "right there", "unknown"),
        *("its meter: legs", "exact", "races", "other misses"),
        names=3,
    )
    causes = Counter((m.leg.phase, m.leg.router, m.leg.prefill, m.cause) for m in run.misses)
    for key, row in v.rows(run.legs).items():
        phase, router, instance = key
        share = f"{100 * row.right / row.exact:.2f}" if row.exact else "-"
        figures: list[object] = [row.legs, row.exact, row.right, row.over, row.under, share]
        figures += [causes[(*key, "race")], causes[(*key, "index")], row.other, row.other_right, row.unknown]
        counts = run.meters.get(phase, {}).get(router, {}).get(instance, Counter())
        misses = sum(n for name, n in counts.items() if name.startswith("miss "))
        figures += [counts["legs"], counts["exact"], counts["miss race"], misses - counts["miss race"]]
        table.add_row(phase, router, instance, *map(str, figures))
    return table


def _kinds(run: Run) -> Table:
    table = _table(
        *("kinds of requests", "kind", "not served", "served", "unknown", "from exact slots", "right"),
        *("cached tokens", "of"),
    )
    for kind in sorted({leg.plan.kind for leg in run.legs}):
        asked = [leg for leg in run.legs if leg.plan.kind is kind]
        legs = [leg for leg in asked if leg.served]
        exact = [leg for leg in legs if leg.judged]
        figures = (
            *(len(asked) - len(legs), len(legs), sum(leg.predicted is None for leg in legs)),
            *(len(exact), sum(leg.right for leg in exact)),
            *(sum(leg.reported for leg in legs), sum(leg.prompt_tokens for leg in legs)),
        )
        table.add_row(kind, *map(str, figures))
    return table


def _figures(run: Run) -> list[str]:
    judged = [leg for leg in run.legs if leg.judged]
    lines = []
    if judged:
        right = sum(leg.right for leg in judged)
        lines.append(f"from exact slots: {right} of {len(judged)} right, {100 * right / len(judged):.3f} %")
    shares = v.late_shares([leg for leg in run.legs if leg.router == LATE and leg.phase != Phase.QUIET])
    if shares:
        first = next((end for end, share in shares if share >= v.LATE_SHARE), None)
        lines.append(
            f"late joiner: {100 * shares[0][1]:.0f} % of its first {v.LATE_WINDOW} requests,"
            f" {100 * shares[-1][1]:.0f} % of the {v.LATE_WINDOW} up to its {shares[-1][0]}th;"
            f" {100 * v.LATE_SHARE:.0f} % first reached at {first or 'none'}"
        )
    for router in dict.fromkeys(each.router for each in run.told):
        told = [each for each in run.told if each.router == router]
        cached = [each for each in told if max(each.lengths)]
        lines.append(
            f"at rest kvproxy {router} is right about {sum(each.right for each in told)} of {len(told)} "
            f"shared prefixes on each engine, {sum(each.right for each in cached)} of the {len(cached)} "
            "that are cached"
        )
    return lines


def _checks(run: Run) -> Table:
    table = _table("promises", "promise", "findings")
    for check in run.verdict.checks:
        count = len(run.verdict.of(check))
        table.add_row(check, str(count) if count else "none", style="bold red" if count else "green")
    return table


def write_findings(run: Run) -> pathlib.Path:
    """All findings, all misses, the journal, beside the logs."""
    parts = [f"{finding.check}: {finding.words}" for finding in run.verdict.findings]
    parts.append("\nmisses:")
    for miss in run.misses:
        log = run.options.logs / f"kvproxy-{miss.leg.router}.log"
        parts += [words(miss, run), *(f"  > {line}" for line in log_lines(log, f"id={miss.leg.id} "))]
    parts.append("\nwhat was done:")
    parts += [f"{at - run.begun:8.2f} s  {what}" for at, what in run.journal]
    path = run.options.logs / "findings.txt"
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path
