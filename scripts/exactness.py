#!/usr/bin/env python3
"""Compares what kvproxy predicts as cached with what engines report, for ten minutes in which much goes on.

    .venv/bin/python scripts/exactness.py [--minutes N] [--engines stand-in|real] [--seed N]

Two prefill and two decode engines with small caches and a kvproxy, each a process; then another kvproxy. Chats that
grow, shared prefixes, adapters, salts, token ids; evictions, resets, an engine and the router killed and started again,
a router that joins late. Ends with exit code 1 unless at least 99 % of the predictions from exact slots were right, the
engines' own events show that each of the others was a race, all are right at rest, and the late joiner gets there.
"""

import argparse
import pathlib
import random
import shutil
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop.checkout import LOGS
from scripts.workshop.engines.fleet import EngineFailedError
from scripts.workshop.live.proxy import ProxyFailedError
from tests.proofs.exactness.course import Options, Phase
from tests.proofs.exactness.report import Screen, write_findings
from tests.proofs.exactness.run import run


def main() -> int:
    """Run and report; 0 if every promise held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="of traffic before the end (default: %(default)g)")
    add("--engines", choices=("stand-in", "real"), default="stand-in", help="default: %(default)s")
    add("--seed", type=int, help="of the requests (default: a random one, which is told)")
    add("--clients", type=int, default=6, help="at once (default: %(default)s)")
    add(
        "--pause",
        type=float,
        default=0.3,
        metavar="S",
        help="a client's between requests (default: %(default)g)",
    )
    add("--kv-tokens", type=int, default=8192, help="cache of a prefill engine (default: %(default)s)")
    # Less than the caches hold, so who joins late has to learn; and all that happens since the last snapshot.
    add("--buffer-steps", type=int, default=200, help="batches an engine can replay (default: %(default)s)")
    add(
        "--state-interval",
        type=float,
        default=10.0,
        metavar="S",
        help="between kvproxy's snapshots (default: %(default)g)",
    )
    add(
        "--phase", action="append", choices=list(Phase), help="run only these (default: all); may be repeated"
    )
    add("--logs", type=pathlib.Path, default=LOGS / "exactness", metavar="DIR")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(args.logs, ignore_errors=True)
    args.logs.mkdir(parents=True)
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    screen = Screen()
    screen.title(
        f"2 prefill and 2 decode engines ({args.engines}), {args.clients} clients, {args.minutes:g} minutes, seed {seed}"
    )
    options = Options(
        seconds=args.minutes * 60,
        seed=seed,
        logs=args.logs,
        real=args.engines == "real",
        phases=tuple(map(Phase, args.phase or Phase)),
        clients=args.clients,
        pause_s=args.pause,
        prefill_tokens=args.kv_tokens,
        decode_tokens=2 * args.kv_tokens,
        buffer_steps=args.buffer_steps,
        state_interval_s=args.state_interval,
    )
    made, failed = None, ""
    try:
        made = run(options, print, screen.live)
    except* (EngineFailedError, ProxyFailedError) as group:
        failed = "; ".join(map(str, _leaves(group)))
    if made is None:
        sys.exit(f"error: {failed}")
    screen.result(made)
    print(
        f"{made.failures} findings; all of them, every miss and the logs are in {write_findings(made).parent}"
    )
    return 1 if made.failures else 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


if __name__ == "__main__":
    sys.exit(main())
