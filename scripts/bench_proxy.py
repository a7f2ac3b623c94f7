#!/usr/bin/env python3
"""What kvproxy costs: its own CPU per request and per streamed chunk, and the latency it adds.

    scripts/bench_proxy.py [--requests N] [--rounds N]
    scripts/bench_proxy.py --both HOST:PORT | --prefill HOST:PORT --decode HOST:PORT [--model NAME]

Without addresses stand-in engines that take no time are started. Every case runs against an engine directly
and through kvproxy, in turns, so that the rows of one table can be compared; CPU is that of the kvproxy
process alone. Needs the project's environment: run it with the Python in .venv.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.proxy import Engines, run


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    for role in ("prefill", "decode", "both"):
        parser.add_argument(f"--{role}", nargs="+", default=[], metavar="HOST:PORT")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=2000, help="per case and round")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to kvproxy serve"
    )
    args = parser.parse_args()
    launching.end_on_sigterm()
    engines = Engines(args.model, args.prefill, args.decode, args.both)
    run(engines, args.requests, args.rounds, args.flags, launching.console(140))


if __name__ == "__main__":
    main()
