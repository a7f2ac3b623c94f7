"""Measures what the latency model costs: a prediction, alone and for many candidates at once, and an update.

    .venv/bin/python scripts/bench_latency.py [--sizes 1,8,32,128] [--rounds 5]

CPU time of this process in microseconds; the best of the rounds, because whatever else runs can only add to
it.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.latency import run


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    parser.add_argument("--sizes", default="1,8,32,128", help="how many candidates")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    run([int(size) for size in args.sizes.split(",")], args.rounds)


if __name__ == "__main__":
    main()
