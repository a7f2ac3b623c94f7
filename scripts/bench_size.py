#!/usr/bin/env python3
"""Measures a kvproxy that follows a hundred engines with full caches: its memory, and what requests take
while it learns what the engines hold.

    scripts/bench_size.py [--sources N] [--blocks N]

A real `kvproxy serve` follows so many publishers in another process. Most of what they have comes as a
replay, all at once, the rest live; meanwhile requests are sent at a steady pace through prefill and decode.
Printed: memory of the kvproxy process, its largest included, its CPU time, and what requests took while it
loaded and afterwards. Needs the project's environment: run it with the Python in .venv.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.size import run


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=50_000, help="of each source")
    args = parser.parse_args()
    launching.end_on_sigterm()
    run(args.sources, args.blocks)


if __name__ == "__main__":
    main()
