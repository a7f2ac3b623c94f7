"""Measures what admitting a request costs, by the size of the fleet: its decision, its claims and their end,
the decision alone in each of its forms, and what is learned of a request.

    .venv/bin/python scripts/bench_decisions.py [--sizes 2,8,32,64,16b] [--requests 3000] [--rounds 5]

CPU time of this process; the best of the rounds, because whatever else runs can only add to it. No engine
runs and nothing is sent.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.decisions import Size, run


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    parser.add_argument(
        "--sizes",
        default="2,8,32,64,16b",
        help="how many prefill and how many decode engines; 16b: 16 that do both",
    )
    parser.add_argument("--requests", type=int, default=3000, help="let in a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    run([Size.of(words) for words in args.sizes.split(",")], args.requests, args.rounds)


if __name__ == "__main__":
    main()
