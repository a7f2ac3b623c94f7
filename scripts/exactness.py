#!/usr/bin/env python3
"""Compares what kvproxy predicts as cached with what engines report, through ten minutes of mixed traffic and
failures.

    .venv/bin/python scripts/exactness.py [--minutes N] [--engines stand-in|real] [--seed N]

Two prefill and two decode engines with small caches and a kvproxy, each a process; then another kvproxy.
Chats that grow, shared prefixes, adapters, salts, token ids; evictions, resets, an engine and the router
killed and started again, a router that joins late. Ends with exit code 1 unless at least 99 % of the
predictions from exact slots were right, the engines' own events show that each of the others was a race, all
are right at rest, and the late joiner gets there.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.checkout import LOGS
from tests.proofs.exactness.course import Options, Phase
from tests.proofs.exactness.report import FailedError, run_and_show


def main() -> int:
    """Run and report; 0 if every promise held."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="of traffic before the end (default: %(default)g)")
    add("--engines", choices=("stand-in", "real"), default="stand-in", help="default: %(default)s")
    add("--seed", type=int, help="of the requests (default: a random one, which is told)")
    add("--clients", type=int, default=6, help="at once (default: %(default)s)")
    pauses = "a client's between requests (default: %(default)g)"
    add("--pause", type=float, default=0.3, metavar="S", help=pauses)
    add("--kv-tokens", type=int, default=8192, help="cache of a prefill engine (default: %(default)s)")
    # Less than the caches hold, so who joins late has to learn; and all that happens since the last snapshot.
    add("--buffer-steps", type=int, default=200, help="batches an engine can replay (default: %(default)s)")
    between = "between kvproxy's snapshots (default: %(default)g)"
    add("--state-interval", type=float, default=10.0, metavar="S", help=between)
    only = "run only these (default: all); may be repeated"
    add("--phase", action="append", choices=list(Phase), help=only)
    add("--logs", type=pathlib.Path, default=LOGS / "exactness", metavar="DIR")
    args = parser.parse_args()
    launching.end_on_sigterm()
    options = Options(
        seconds=args.minutes * 60,
        seed=launching.seed(args.seed),
        logs=launching.emptied(args.logs),
        real=args.engines == "real",
        phases=tuple(map(Phase, args.phase or Phase)),
        clients=args.clients,
        pause_s=args.pause,
        prefill_tokens=args.kv_tokens,
        decode_tokens=2 * args.kv_tokens,
        buffer_steps=args.buffer_steps,
        state_interval_s=args.state_interval,
    )
    try:
        return 1 if run_and_show(options).failures else 0
    except FailedError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
