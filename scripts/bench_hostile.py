#!/usr/bin/env python3
"""Measures what one untrusted client or engine can do to all others: the worst pause of the event loop and
the peak of memory, attack by attack.

    scripts/bench_hostile.py [--only NAME ...] [--list] [--logs DIR] [--flags FLAG ...]

Each attack is made on a kvproxy of its own with default settings, in front of one prefill and one decode
stand-in for all. A pulse on kvproxy's event loop measures pauses, without time in which its thread was ready
and had no CPU.
An attack whose body is short is made alone and then as a volley: as many at once as make 16 MB, on up to 256
connections. One that stops the loop for longer than 50 ms is made twice more, and the median of the three
counts. Exit code 1: an attack ended kvproxy, stopped its loop for longer than that, or took
more memory beyond what kvproxy holds idle, once it has served an ordinary request of each kind, than four
times what was sent, 16 KiB a request, 5 KiB a connection, and 20 MiB for the tokenizer's own objects (a
volley or a crowd: 32 MiB, for what malloc cannot give back at once). Needs the project's environment: run it
with the Python in .venv.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from tests.hostile.attacks import ATTACKS
from tests.hostile.measuring import attack_all


def main() -> int:
    """Attack and report; 0 if kvproxy stood it."""
    parser = launching.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(ATTACKS), metavar="NAME", default=list(ATTACKS))
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    parser.add_argument("--logs", type=pathlib.Path, help="keep logs there")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to kvproxy"
    )
    args = parser.parse_args()
    launching.end_on_sigterm()
    if args.list:
        for attack in ATTACKS.values():
            print(f"{attack.name}: {attack.what}")
        return 0
    table, passed = attack_all(args.only, args.logs, args.flags)
    launching.console(140).print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
