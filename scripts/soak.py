#!/usr/bin/env python3
"""Load at a share of what kvproxy can take, for long: ends with exit code 1 if memory or latency grow.

    .venv/bin/python scripts/soak.py [--minutes 60] [--share 0.7]

Stand-in engines that take no time and a real kvproxy, each a process. First it finds the most requests, arriving at
random, that they keep up with; then as many arrive as the share says. Run it on a quiet machine; the figures are
also written as JSON.
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.workshop.checkout import LOGS
from tests.proofs.soak import LATENCIES, Options, Soak, soak

_SETTLE_SHARE = 0.1


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
    step = max(1, len(made.samples) // 20)
    for sample in made.samples[::step]:
        values = (getattr(sample, name) for name in names)
        told = (str(value) if isinstance(value, int) else f"{value:.1f}" for value in values)
        drawn.add_row(f"{sample.at_s / 60:.1f}", *told)
    drawn.add_section()
    trends = [made.trend(name) for name in names]
    drawn.add_row("slope/h", *("-" if t is None else f"{t.slope:.3g}" for t in trends), style="bold")
    drawn.add_row("+-", *("-" if t is None else f"{t.error:.2g}" for t in trends), style="bold")
    return drawn


def say(made: Soak) -> None:
    last = made.samples[-1]
    print(
        f"{last.at_s / 60:6.1f} min  {last.requests_per_s:.0f}/s  {last.memory_mib:.1f} MiB  {last.sockets} sockets"
        f"  {last.tasks} tasks  {last.cpu_us_per_request:.0f} us  p50 {last.unary_p50_ms:.1f} ms"
        f"  p99 {last.unary_p99_ms:.1f} ms  {last.failures} failed",
        flush=True,
    )


def main() -> int:
    """Run and report; 0 if nothing grew and nothing failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=60.0, help="default: %(default)g")
    add("--share", type=float, default=0.7, help="of saturation (default: %(default)g)")
    add("--seed", type=int, default=1)
    add("--sample", type=float, default=30.0, metavar="S", help="between samples (default: %(default)g)")
    add("--logs", type=Path, default=LOGS / "soak", metavar="DIR")
    args = parser.parse_args()
    if not 0 < args.share < 1 or args.minutes <= 0 or args.sample <= 0:
        parser.error("--share is between 0 and 1, --minutes and --sample are positive")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(args.logs, ignore_errors=True)
    args.logs.mkdir(parents=True)
    seconds = args.minutes * 60
    made = soak(
        Options(
            seconds=seconds,
            share=args.share,
            seed=args.seed,
            logs=args.logs,
            sample_s=args.sample,
            settle_s=max(180.0, _SETTLE_SHARE * seconds) if seconds > 600 else seconds / 3,
        ),
        say,
    )
    Console(width=None if sys.stdout.isatty() else 200).print(table(made))
    findings = made.findings()
    for finding in findings:
        print(f"NOT FLAT: {finding}")
    print(f"{'failed' if findings else 'flat'}; figures in {made.write(args.logs)}, logs beside them")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
