"""What each attack did to a kvproxy of its own: whether it lived, how long its loop stood still, what it came
to hold."""

import asyncio
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

import tests.hostile.crowds
import tests.hostile.engine_attacks
import tests.hostile.holding  # noqa: F401  # their attacks register themselves
from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.target import SETTLED_S, Said, engines, target

MOST_PAUSE_MS = 50.0
BODIES = 4
"""So many times what was sent may be held at once, beside what is held idle."""
FIXED_MIB = 32.0
"""What a request may take however short it is: 26 MiB for a piece of text without a place to cut
(`pieces.MAX_PIECE`), or 13 MiB for a slice in each of two threads (`turns.SLICE_CHARACTERS`)."""


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


def attack_all(names: Sequence[str], logs: pathlib.Path | None, flags: Sequence[str]) -> tuple[Table, bool]:
    """Make the named attacks, one after the other, and return what they did and whether kvproxy stood them
    all.

    `flags` go to kvproxy; logs are kept if a folder is given. Call it from the main thread.
    """
    table = Table("attack", "MB sent", "answer", "worst pause ms", "peak MiB beyond idle", "allowed", "")
    passed = True
    with tempfile.TemporaryDirectory() as made, engines(logs or pathlib.Path(made)) as fleet:
        for name in names:
            print(f"  {name} ...", file=sys.stderr, flush=True)
            found = asyncio.run(measure(ATTACKS[name], fleet, logs or pathlib.Path(made), flags))
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
    return table, passed
