#!/usr/bin/env python3
"""Prefill and decode engines fail at random under load; ends with exit code 1 unless every promise held.

    .venv/bin/python scripts/chaos.py [--minutes N] [--seed N] [--clients N] [--policy NAME]

Stand-in engines and a real kvproxy, each a process. Clients know the right text of every answer. Engines are
killed, restarted, frozen, slowed, sent to sleep, drained, removed and added, answer 500 before or inside
their streams, have no room (503, 429) one by one or all at once, cut their answers and lose KV events. One
prefill and one decode engine have nothing worse than no room for a moment, so nobody may notice more than a
stream that was cut.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.checkout import LOGS
from tests.proofs.chaos.journal import Fault
from tests.proofs.chaos.report import run_and_show
from tests.proofs.chaos.run import POLICIES, Options


def main() -> int:
    """Run and report; 0 if every promise held."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="of faults (default: %(default)g)")
    add("--seed", type=int, help="of requests and faults (default: a random one, which is told)")
    add("--policy", choices=POLICIES, help="of kvproxy (default: by the seed one of %(choices)s)")
    add("--clients", type=int, default=200, help="at once (default: %(default)s)")
    add("--prefill", type=int, default=4, metavar="N", help="prefill engines (default: %(default)s)")
    add("--decode", type=int, default=4, metavar="N", help="decode engines (default: %(default)s)")
    add("--every", type=float, default=1.5, metavar="S", help="between two faults (default: %(default)g)")
    add("--most", type=int, default=2, metavar="N", help="engines of a role hurt at once (default: 2)")
    alone = f"these alone, of: {', '.join(Fault)}"
    add("--faults", nargs="+", type=Fault, choices=list(Fault), default=[], metavar="FAULT", help=alone)
    add("--pause", type=float, default=1.0, metavar="S", help="a client's between requests (default: 1)")
    add("--logs", type=pathlib.Path, default=LOGS / "chaos", metavar="DIR")
    args = parser.parse_args()
    launching.end_on_sigterm()
    seed = launching.seed(args.seed)
    options = Options(
        seconds=args.minutes * 60,
        seed=seed,
        logs=launching.emptied(args.logs),
        policy=args.policy or POLICIES[seed % len(POLICIES)],
        clients=args.clients,
        prefill=args.prefill,
        decode=args.decode,
        every_s=args.every,
        most=args.most,
        faults=args.faults,
        pause_s=args.pause,
    )
    return 1 if run_and_show(options).failures else 0


if __name__ == "__main__":
    sys.exit(main())
