"""What people see of a run: a line a sample, a table at its end, and what was not flat."""

import sys

from rich.console import Console
from rich.table import Table

from tests.proofs.soak.run import LATENCIES, Options, Soak, soak

_PIPED_WIDTH = 200
_SHOWN = 20


def run_and_show(options: Options) -> list[str]:
    """Run it, say how it goes, and return the findings: none if all was flat. Call it from the main
    thread."""
    made = soak(options, _say)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table(made))
    findings = made.findings()
    for finding in findings:
        print(f"NOT FLAT: {finding}")
    print(f"{'failed' if findings else 'flat'}; figures in {made.write(options.logs)}, logs beside them")
    return findings


def table(made: Soak) -> Table:
    """The samples, and under them the trends of those that are judged."""
    rate = made.saturation_per_s
    judged = f"{len(made.judged)} of {len(made.samples)} samples judged"
    drawn = Table(
        title=f"{rate * made.options.share:.0f} requests/s of at most {rate:.0f}; {judged}",
        title_justify="left",
    )
    names = ["memory_mib", "sockets", "tasks", "cpu_us_per_request", *LATENCIES]
    names += ["mean_ms", "engines_mean_ms", "requests_per_s", "under_way"]
    drawn.add_column("minute", justify="right")
    for name in names:
        drawn.add_column(name.replace("_", " "), justify="right")
    step = max(1, len(made.samples) // _SHOWN)
    for sample in made.samples[::step]:
        values = (getattr(sample, name) for name in names)
        told = (str(value) if isinstance(value, int) else f"{value:.1f}" for value in values)
        drawn.add_row(f"{sample.at_s / 60:.1f}", *told)
    drawn.add_section()
    trends = [made.trend(name) for name in names]
    drawn.add_row("slope/h", *("-" if t is None else f"{t.slope:.3g}" for t in trends), style="bold")
    drawn.add_row("+-", *("-" if t is None else f"{t.error:.2g}" for t in trends), style="bold")
    return drawn


def _say(made: Soak) -> None:
    last = made.samples[-1]
    print(
        f"{last.at_s / 60:6.1f} min  {last.requests_per_s:.0f}/s  {last.memory_mib:.1f} MiB  {last.sockets} "
        f"sockets  {last.tasks} tasks  {last.cpu_us_per_request:.0f} us  p50 {last.unary_p50_ms:.1f} ms  "
        f"p99 {last.unary_p99_ms:.1f} ms  {last.failures} failed",
        flush=True,
    )
