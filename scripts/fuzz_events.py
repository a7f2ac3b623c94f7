#!/usr/bin/env python3
"""Send broken KV events to kvproxy, and check that good engines are followed exactly afterwards.

    scripts/fuzz_events.py [--inputs N] [--wire N] [--seed N]
    scripts/fuzz_events.py --seed N --only STORY
    scripts/fuzz_events.py --seed N --only-wire STORY

Inputs are made from what real engines published: bytes, values, lengths, numbers and frames are changed, cut
off, doubled and put in another order, and there are payloads made to be as bad as the wire allows. Most go
straight into decoder, source and index; the others come from a ZeroMQ publisher that also lies when it is
asked for a replay. They come in stories, and after each a good engine at the same address must be followed
exactly, beside another that nothing may touch. It fails if anything raises, a subscriber gets stuck, the
index contradicts itself, a block is neither applied nor counted, others have no turn for long, or memory
grows. A seed tells the same stories again, `--only` a single one (what a wire story meets also depends on
time). Exit code 1: it failed. Needs the project's environment: run it with the Python in .venv.
"""

import gc
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from tests.fuzz.events.parts import run
from tests.fuzz.events.report import show


def main() -> int:
    """Tell the stories and report; 0 if nothing was found."""
    parser = launching.parser(__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all")
    parser.add_argument("--wire", type=int, default=100_000, help="of them on real sockets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--time-limit-s", type=float, default=float("inf"), help="of each part; end early")
    parser.add_argument("--only", type=int, metavar="STORY", help="tell this one, in process")
    parser.add_argument("--only-wire", type=int, metavar="STORY", help="tell this one, on real sockets")
    args = parser.parse_args()
    gc.freeze()  # as kvproxy does
    parts = run(args.seed, args.inputs, args.wire, args.only, args.only_wire, args.time_limit_s)
    return 0 if show(parts, launching.console(200)) else 1


if __name__ == "__main__":
    sys.exit(main())
