"""Measures what the prefix index costs: CPU time and memory of this process, with events as an engine writes
them.

    .venv/bin/python scripts/bench_index.py [--quick]

Medians of several rounds, because other work on the machine shares its caches; pauses are the longest seen.
`--quick` fills a tenth of the cache for a first look.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.index import run


def main() -> None:
    """Print the table."""
    parser = launching.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cache, in seconds")
    run(quick=parser.parse_args().quick)


if __name__ == "__main__":
    main()
