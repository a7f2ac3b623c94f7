#!/usr/bin/env python3
"""Loads kvproxy for long, at a share of what it can take; ends with exit code 1 if memory or latency grow.

    .venv/bin/python scripts/soak.py [--minutes 60] [--share 0.7]

Stand-in engines that take no time and a real kvproxy, each a process. First it finds the most requests,
arriving at random, that they keep up with; then as many arrive as the share says. Run it on a quiet machine;
the figures are also written as JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.checkout import LOGS
from tests.proofs.soak.report import run_and_show
from tests.proofs.soak.run import Options, settle_s


def main() -> int:
    """Run and report; 0 if nothing grew and nothing failed."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=60.0, help="default: %(default)g")
    add("--share", type=float, default=0.7, help="of saturation (default: %(default)g)")
    add("--seed", type=int, default=1)
    add("--sample", type=float, default=30.0, metavar="S", help="between samples (default: %(default)g)")
    add("--logs", type=pathlib.Path, default=LOGS / "soak", metavar="DIR")
    args = parser.parse_args()
    if not 0 < args.share < 1 or args.minutes <= 0 or args.sample <= 0:
        parser.error("--share is between 0 and 1, --minutes and --sample are positive")
    launching.end_on_sigterm()
    options = Options(
        seconds=args.minutes * 60,
        share=args.share,
        seed=args.seed,
        logs=launching.emptied(args.logs),
        sample_s=args.sample,
        settle_s=settle_s(args.minutes * 60),
    )
    return 1 if run_and_show(options) else 0


if __name__ == "__main__":
    sys.exit(main())
