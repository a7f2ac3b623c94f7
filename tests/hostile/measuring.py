"""What each attack did to a kvproxy of its own: whether it lived, how long its loop stood still, what it came
to hold."""

import asyncio
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

import tests.hostile.crowds
import tests.hostile.engine_attacks
import tests.hostile.holding  # noqa: F401  # their attacks register themselves
from tests.hostile.attacks import ATTACKS, MB, Attack, together
from tests.hostile.target import SETTLED_S, Said, engines, target

MAX_PAUSE_MS = 50.0
"""However many requests come at once."""
TRIES = 3
"""An attack that paused the loop for longer is made again, and the median counts: the operating system may
take a processor away from a thread that has the interpreter's lock."""
BODIES = 4
"""So many times what was sent may be held at once, beside what is held idle."""
VOLLEY_BYTES = 16 * MB
MAX_AT_ONCE = 256
"""A body that is short is sent as often at once as makes so many bytes, or takes so many connections: nobody
who wants memory sends one."""
ALONE_MIB = 20.0
"""What one body may take however short it is: 15 MB of the tokenizer's own objects for the longest piece of
text without a place to cut (`pieces.MAX_PIECE_BYTES`), or for a slice in each of two threads
(`turns.SLICE_BYTES`), and what malloc keeps (`proxy.cli.memory`)."""
VOLLEY_MIB = 32.0
"""The same of a volley: hundreds of bodies at once leave more holes in malloc's two regions (25 MiB were free
in them at a peak of 71 MiB in use, by mallinfo2)."""
REQUEST_KIB = 16.0
CONNECTION_KIB = 5.0
"""What is held for a request and for a connection, whatever comes by it: 3 KiB for a silent connection, 12
KiB for one that has sent its head (measured)."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one body, or a volley of them, took."""

    said: Said
    pause_ms: float
    peak_mib: float
    """Beyond what was held idle."""
    beside_mib: float
    """What is allowed beside what was sent."""

    @property
    def allowed_mib(self) -> float:
        said = self.said
        held_kib = REQUEST_KIB * said.requests + CONNECTION_KIB * said.connections
        return BODIES * said.sent_bytes / (1 << 20) + held_kib / 1024 + self.beside_mib

    @property
    def passed(self) -> bool:
        return self.peak_mib <= self.allowed_mib and self.pause_ms <= MAX_PAUSE_MS


@dataclass(frozen=True, slots=True)
class Measured:
    """What an attack did."""

    attack: Attack
    alive: bool
    alone: Taken
    volley: Taken
    """The same as `alone` for an attack that is not repeated."""
    at_once: int = 1

    @property
    def passed(self) -> bool:
        return self.alive and self.alone.passed and self.volley.passed

    @property
    def pause_ms(self) -> float:
        """The worst pause of all."""
        return max(self.alone.pause_ms, self.volley.pause_ms)


def volley_of(attack: Attack, one: Said) -> int:
    """How many of an attack are made at once."""
    if not attack.repeats or one.sent_bytes <= 0:
        return 1
    return max(1, min(MAX_AT_ONCE // one.connections, VOLLEY_BYTES // one.sent_bytes))


async def measure(
    attack: Attack, fleet: dict[str, list[str]], logs: pathlib.Path, flags: Sequence[str]
) -> Measured:
    """Make an attack, and if it is short a volley of it."""
    async with target(fleet, logs, attack.name, [*attack.flags, *flags]) as attacked:
        idle_mib = attacked.memory_mib("VmRSS")

        async def taken(times: int) -> Taken:
            attacked.forget()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(attack.run(attacked), name=f"body {n}") for n in range(times)]
            await asyncio.sleep(SETTLED_S)
            said = together([task.result() for task in tasks])
            beside_mib = ALONE_MIB if said.connections == 1 else VOLLEY_MIB
            peak_mib = attacked.memory_mib("VmHWM") - idle_mib if attacked.alive else float("inf")
            return Taken(said, attacked.worst_pause_ms(), peak_mib, beside_mib)

        alone = volley = await taken(1)
        at_once = volley_of(attack, alone.said)
        if at_once > 1:
            volley = await taken(at_once)
        return Measured(attack, attacked.alive, alone, volley, at_once)


def by_median(measure_once: Callable[[], Measured]) -> Measured:
    """Make an attack; if it paused the loop for too long, as often as `TRIES`, and return the median of them.
    What ended kvproxy, or took too much memory, is not made again.
    """
    tries = [measure_once()]
    while tries[0].pause_ms > MAX_PAUSE_MS and tries[-1].alive and len(tries) < TRIES:
        tries.append(measure_once())
    if not tries[-1].alive:
        return tries[-1]
    return sorted(tries, key=lambda found: found.pause_ms)[len(tries) // 2]


def attack_all(names: Sequence[str], logs: pathlib.Path | None, flags: Sequence[str]) -> tuple[Table, bool]:
    """Make the named attacks, one after the other, and return what they did and whether kvproxy stood them
    all.

    `flags` go to kvproxy; logs are kept if a folder is given. Call it from the main thread.
    """
    one = ("one: MB sent", "worst pause ms", "peak MiB", "allowed")
    table = Table("attack", "answer", *one, "at once", *(title.replace("one", "all") for title in one), "")
    passed = True
    with tempfile.TemporaryDirectory() as made, engines(logs or pathlib.Path(made)) as fleet:
        for name in names:
            print(f"  {name} ...", file=sys.stderr, flush=True)

            def once(attack: Attack = ATTACKS[name]) -> Measured:
                found = asyncio.run(measure(attack, fleet, logs or pathlib.Path(made), flags))
                print(f"    {_told(found.alone)}; {_told(found.volley)}", file=sys.stderr, flush=True)
                return found

            found = by_median(once)
            alone, volley = found.alone, found.volley
            passed = passed and found.passed
            table.add_row(
                name,
                str(volley.said) if found.alive else "kvproxy died",
                *_row(alone),
                str(found.at_once),
                *(_row(volley) if found.at_once > 1 else [""] * 4),
                "" if found.passed else "FAILED",
            )
    return table, passed


def _told(taken: Taken) -> str:
    return f"{taken.pause_ms:.0f} ms, {taken.peak_mib:.0f} of {taken.allowed_mib:.0f} MiB"


def _row(taken: Taken) -> list[str]:
    sent = f"{taken.said.sent_bytes / 1e6:.1f}"
    return [sent, f"{taken.pause_ms:.0f}", f"{taken.peak_mib:.0f}", f"{taken.allowed_mib:.0f}"]
