"""Measures what policies are worth in simulated time, and whether `least_ms` is what it must be.

    .venv/bin/python scripts/bench_policies.py OUT [--trace TRACE] [--quick] [--only SECTION ...] [--jobs 2]

Each run is a line of OUT/cells.jsonl and is not run again: after a change of a policy say `--again least_ms`.
TRACE is conversation_trace.jsonl of kvcache-ai/Mooncake (FAST25-release/traces); without it only
generated workloads are run. The sections: `truth` (figures of other simulators), `conversation` (the trace at
rising load), `generated` (five workloads of different nature), `robust` (slow instances, late events, unknown
prompts, times spread), `agents` (contexts to 200k tokens), `ablation` (`least_ms` without one of its parts).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from proxy.errors import TraceError
from scripts.workshop import launching
from scripts.workshop.bench.policies.ablation import OURS
from scripts.workshop.bench.policies.grid import BASELINES, SECTIONS, Size
from scripts.workshop.bench.policies.plot import write_plot
from scripts.workshop.bench.policies.run import run
from scripts.workshop.bench.policies.store import Store
from scripts.workshop.bench.policies.traffics import RECORDED, traffic


def main() -> None:
    """Run the grid. The exit code is 1 if a verdict does not hold."""
    parser = launching.parser(__doc__)
    parser.add_argument("out", type=pathlib.Path, help="the folder of what is known")
    parser.add_argument("--trace", type=pathlib.Path, help="Mooncake's conversation trace")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--policies", help="these alone, a comma between them")
    parser.add_argument("--again", default="", help="policies that are run again, a comma between them")
    parser.add_argument("--seeds", type=int, default=3, help="workloads of each generator")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, the trace's first 20 minutes, no truth"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="an SVG file to be written of the trace's runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    policies = args.policies.split(",") if args.policies else [OURS, *BASELINES]
    size = Size(policies, 1 if args.quick else args.seeds, short=args.quick)
    sections = [name for name in args.only if not (args.quick and name == "truth")]
    store = Store(args.out, frozenset(filter(None, args.again.split(","))))
    if args.trace is not None:
        try:
            traffic(RECORDED, 0, args.trace)
        except TraceError as error:
            parser.error(f"--trace: {error}")
    elif args.plot is not None:
        parser.error("--plot is of runs on the recorded trace: --trace is needed")
    holds = run(sections, size, store, args.trace, args.jobs)
    if args.plot is not None:
        try:
            write_plot(store, args.plot, short=args.quick)
        except ValueError as error:
            parser.error(f"--plot: {error}")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
