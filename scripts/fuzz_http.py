#!/usr/bin/env python3
"""Send broken requests to kvproxy over raw sockets, and check that it serves on unharmed.

    scripts/fuzz_http.py [--requests N] [--seed N]
    scripts/fuzz_http.py --seed N --only SHOT

A kvproxy of its own is started in front of stand-in engines. Requests are made from right ones: their bodies'
structure, bytes, header values, header lines, request lines, framing and chunks are changed, they come in
pieces, pipelined, or from clients that leave. It fails if kvproxy dies, answers 5xx where that is not the
truth, answers anything but HTTP or an error in another shape than the one envelope, leaves a well-framed
request unanswered, logs a traceback, leaves legs in flight, holds more memory, descriptors or threads than
before, or takes an engine for dead. A seed makes the same requests again; `--only` fires a single one. Exit
code 1: it failed. Needs the project's environment: run it with the Python in .venv.
"""

import asyncio
import pathlib
import sys
import tempfile

import uvloop

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from tests.fuzz.http.campaign import Campaign, Result
from tests.fuzz.http.report import keep, show
from tests.fuzz.http.setting import setting


def main() -> int:
    parser = launching.parser(__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="after each, right requests must be answered")
    parser.add_argument("--connections", type=int, default=96, help="at once")
    parser.add_argument("--time-limit-s", type=float, default=float("inf"), help="end early, and say so")
    parser.add_argument("--only", type=int, metavar="SHOT", help="fire this one and print what came")
    parser.add_argument("--logs", type=pathlib.Path, help="keep logs and the bytes of findings there")
    parser.add_argument("--log-level", default="warning", help="of kvproxy")
    args = parser.parse_args()
    launching.end_on_sigterm()
    with tempfile.TemporaryDirectory() as made:
        logs = args.logs or pathlib.Path(made)
        with setting(logs, ["--log-level", args.log_level]) as ready:
            campaign = Campaign(
                ready, args.seed, args.connections, lambda line: print(line, file=sys.stderr, flush=True)
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                if args.only is not None:
                    result = Result(runner.run(campaign.one(args.only)))
                else:
                    result = runner.run(campaign.run(args.requests, args.rounds, args.time_limit_s))
        show(result, launching.console(160))
        if args.logs is not None:
            keep(result.tally.findings, args.logs)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
