#!/usr/bin/env python3
"""Sends a slice of traffic through kvproxy on sockets and in simulated time; ends with exit code 1 unless the
two agree.

    .venv/bin/python scripts/live_proof.py conversation_trace.jsonl.gz [--policy NAME ...] [--fleet 4b 2p2d]

Stand-in engines with the latencies of a profile, a real kvproxy and streaming clients that send each prompt
in its time, as token ids; and `proxy.simulation.replay` with the same engines, prompts and times. Mean time
to first token and reuse must agree, the better policy must be the one that was predicted, and what a policy
predicts of a request must be what its client sees.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from proxy.errors import TraceError
from scripts.workshop import launching
from scripts.workshop.checkout import LOGS
from tests.proofs.live.report import run_and_show
from tests.proofs.live.run import FLEETS, POLICIES, PROFILE, TOLERANCE, Options
from tests.proofs.live.scaling import Scale
from tests.proofs.live.slices import slice_of


def main() -> int:
    """Run and report; 0 if both worlds agree."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("trace", help="a file or folder of traffic, or a generator, as `kvproxy simulate` takes them")
    add("--from-s", type=float, default=0.0, metavar="S", help="where in the trace to begin (default: 0)")
    add("--requests", type=int, default=400, metavar="N", help="at most so many (default: %(default)s)")
    add("--speed", type=float, default=2.0, metavar="FACTOR", help="of arrivals (default: %(default)g)")
    add("--as-written", action="store_true", help="do not spread requests that have one timestamp")
    add("--fleet", nargs="+", default=FLEETS, metavar="COUNTS", help=f"default: {' '.join(FLEETS)}")
    add("--policy", nargs="+", default=POLICIES, metavar="NAME", help=f"default: {' '.join(POLICIES)}")
    add("--profile", default=PROFILE, help="of the engines (default: %(default)s)")
    tokens = "of a prompt of the trace, which one token here stands for (default: %(default)s)"
    add("--tokens", type=int, default=Scale().tokens, metavar="N", help=tokens)
    steps = "of engines, and tokens of answers, which one here stands for (default: %(default)s)"
    add("--steps", type=int, default=Scale().steps, metavar="N", help=steps)
    slow = "everything takes so many times as long as profile and trace say (default: %(default)g)"
    add("--slowness", type=float, default=Scale().time, metavar="FACTOR", help=slow)
    add("--tolerance", type=float, default=TOLERANCE, metavar="SHARE", help="default: %(default)g")
    add("--logs", type=pathlib.Path, default=LOGS / "live", metavar="DIR")
    args = parser.parse_args()
    launching.end_on_sigterm()
    try:
        workload = slice_of(
            args.trace,
            from_s=args.from_s,
            requests=args.requests,
            speed=args.speed,
            spreads=not args.as_written,
        )
    except TraceError as error:
        sys.exit(f"error: {error}")
    options = Options(
        workload=workload,
        logs=launching.emptied(args.logs),
        fleets=args.fleet,
        policies=args.policy,
        profile=args.profile,
        scale=Scale(args.tokens, args.steps, args.slowness),
        tolerance=args.tolerance,
    )
    return 1 if run_and_show(options).findings else 0


if __name__ == "__main__":
    sys.exit(main())
