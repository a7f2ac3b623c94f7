"""The demo: starts engines and kvproxy, runs a few chats through them, ends all it started.

Run it with scripts/kv_events.sh, which sets up what it needs. Exit code 0 only if every answer came and the
cached tokens were those predicted.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop.checkout import LOGS
from scripts.workshop.demo.run import ENGINES, run


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/kv_events.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--engine",
        choices=list(ENGINES),
        default="stand-in",
        help="what serves the chats: stand-ins, or real vLLM on the CPU (default: %(default)s)",
    )
    parser.add_argument("--prefill", type=int, default=2, metavar="N", help="prefill engines (default: 2)")
    parser.add_argument("--decode", type=int, default=2, metavar="N", help="decode engines (default: 2)")
    parser.add_argument("--logs", type=pathlib.Path, default=LOGS / "demo", metavar="DIR")
    args = parser.parse_args()
    return run(args.engine, args.prefill, args.decode, args.logs)


if __name__ == "__main__":
    sys.exit(main())
