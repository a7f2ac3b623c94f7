#!/usr/bin/env python3
"""Measures what kvproxy costs: its own CPU per request and per streamed chunk, and the latency it adds.

    scripts/bench_proxy.py [--requests N] [--rounds N]
    scripts/bench_proxy.py --both HOST:PORT | --prefill HOST:PORT --decode HOST:PORT [--model NAME]
    scripts/bench_proxy.py --peers [--quick] [--only CASE ...] [--rounds N]
    scripts/bench_proxy.py --profile [--only CASE ...] [--rounds N]

Without addresses stand-in engines that take no time are started. Every case runs against an engine directly
and through kvproxy, in turns, so that the rows of one table can be compared; CPU is that of the kvproxy
process alone. Needs the project's environment: run it with the Python in .venv.

With --peers kvproxy is measured beside other routers, which are installed from the package registry into
.peers-env: a backend and a load generator in C that limit nobody on one core, the router under load on
another, all in turns. --alone leaves the others out.

With --profile the same loads go to kvproxy alone, and a table tells which of its rooms the CPU goes to.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.peers import compare, stages
from scripts.workshop.bench.proxy import Engines, run

ROUNDS = 3


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    for role in ("prefill", "decode", "both"):
        parser.add_argument(f"--{role}", nargs="+", default=[], metavar="HOST:PORT")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=2000, help="per case and round")
    parser.add_argument("--rounds", type=int, help="the median of so many is shown")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to kvproxy serve"
    )
    beside = parser.add_argument_group("beside other routers")
    beside.add_argument(
        "--peers", action="store_true", help="compare with vllm-router and sglang-router, and nginx if there"
    )
    beside.add_argument("--alone", action="store_true", help="the same loads, kvproxy alone")
    beside.add_argument("--profile", action="store_true", help="where kvproxy's CPU goes, by room")
    beside.add_argument("--quick", action="store_true", help="fewer and shorter rounds: some minutes")
    beside.add_argument(
        "--only", nargs="+", default=[], choices=compare.KEYS, metavar="CASE", help=", ".join(compare.KEYS)
    )
    args = parser.parse_args()
    launching.end_on_sigterm()
    if args.peers or args.alone:
        compare.run(args.only, args.rounds, quick=args.quick, alone=args.alone)
        return
    if args.profile:
        stages.run(args.only, args.rounds or ROUNDS)
        return
    engines = Engines(args.model, args.prefill, args.decode, args.both)
    run(engines, args.requests, args.rounds or ROUNDS, args.flags, launching.console(140))


if __name__ == "__main__":
    main()
