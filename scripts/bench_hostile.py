#!/usr/bin/env python3
"""What one untrusted client or engine can do to everybody: worst pause of the event loop and peak of memory, attack by attack.

    scripts/bench_hostile.py [--only NAME ...] [--list] [--logs DIR] [--flags FLAG ...]

Each attack is made on a kvproxy of its own with its defaults, in front of a prefill and a decode stand-in that are shared;
a pulse on its event loop tells of pauses, less the time its thread was ready and had no CPU. Exit code 1: an attack
ended kvproxy, stopped its loop for longer than 50 ms, or took more memory beyond what it holds idle than four times
what was sent and a fixed sum.
Needs the project's environment: run it with the Python in .venv.
"""

import argparse
import asyncio
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tests.hostile.crowds
import tests.hostile.engine_attacks
import tests.hostile.holding  # noqa: F401  # their attacks register themselves
from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.target import SETTLED_S, Said, engines, target

MOST_PAUSE_MS = 50.0
BODIES = 4
"""So many times what was sent may be held at once, beside what is held idle."""
FIXED_MIB = 160.0
"""What the two tokenizer threads may need for a piece of text each, however short the request, and what malloc keeps."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an attack did."""

    attack: Attack
    said: Said
    alive: bool
    pause_ms: float
    peak_mib: float
    """Beyond what was held idle."""

    @property
    def allowed_mib(self) -> float:
        return BODIES * self.said.sent_bytes / (1 << 20) + FIXED_MIB

    @property
    def passed(self) -> bool:
        return self.alive and self.pause_ms <= MOST_PAUSE_MS and self.peak_mib <= self.allowed_mib


async def measure(
    attack: Attack, fleet: dict[str, list[str]], logs: pathlib.Path, flags: Sequence[str]
) -> Measured:
    async with target(fleet, logs, attack.name, [*attack.flags, *flags]) as attacked:
        attacked.forget()
        idle_mib = attacked.memory_mib("VmRSS")
        said = await attack.run(attacked)
        await asyncio.sleep(SETTLED_S)
        alive = attacked.alive
        peak_mib = attacked.memory_mib("VmHWM") - idle_mib if alive else float("inf")
        return Measured(attack, said, alive, attacked.worst_pause_ms(), peak_mib)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(ATTACKS), metavar="NAME", default=list(ATTACKS))
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    parser.add_argument("--logs", type=pathlib.Path, help="keep logs there")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to kvproxy"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.list:
        for attack in ATTACKS.values():
            print(f"{attack.name}: {attack.what}")
        return 0
    table = Table("attack", "MB sent", "answer", "worst pause ms", "peak MiB beyond idle", "allowed", "")
    passed = True
    with tempfile.TemporaryDirectory() as made, engines(args.logs or pathlib.Path(made)) as fleet:
        logs = args.logs or pathlib.Path(made)
        for name in args.only:
            print(f"  {name} ...", file=sys.stderr, flush=True)
            found = asyncio.run(measure(ATTACKS[name], fleet, logs, args.flags))
            print(f"    {found.pause_ms:.0f} ms, {found.peak_mib:.0f} MiB", file=sys.stderr, flush=True)
            passed = passed and found.passed
            table.add_row(
                name,
                f"{found.said.sent_bytes / 1e6:.1f}",
                str(found.said) if found.alive else "kvproxy died",
                f"{found.pause_ms:.0f}",
                f"{found.peak_mib:.0f}",
                f"{found.allowed_mib:.0f}",
                "" if found.passed else "FAILED",
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
