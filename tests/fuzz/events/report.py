"""What came of a run over hostile KV events, for people."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from tests.fuzz.events.tally import HOLD_S, Tally


def show(parts: dict[str, Tally], console: Console) -> bool:
    """Print tables and findings; whether there were none."""
    for name, tally in parts.items():
        ends = sorted({end for _, end in tally.ends})
        table = Table(name, *ends)
        for kind in sorted({kind for kind, _ in tally.ends}):
            table.add_row(kind, *(str(tally.ends[kind, end] or "") for end in ends))
        console.print(table)
    table = Table("", *parts)
    for what, figure in _FIGURES.items():
        table.add_row(what, *(figure(tally) for tally in parts.values()))
    console.print(table)
    for tally in parts.values():
        for finding in tally.findings:
            console.print(f"FAILED: {finding}", markup=False)
    found = sum(tally.found for tally in parts.values())
    inputs = sum(tally.inputs for tally in parts.values())
    console.print(f"{'FAILED' if found else 'passed'}: {inputs} inputs, {found} findings")
    return not found


def _memory(tally: Tally) -> str:
    if not tally.memory:
        return ""
    mib = [mib for _, mib in tally.memory]
    return f"{mib[0]:.0f}, {max(mib):.0f}, {mib[-1]:.0f} MiB"


def _growth(tally: Tally) -> str:
    growth = tally.growth()
    return "" if growth is None else f"{growth.slope * 2**20:+.1f} bytes"


_FIGURES: dict[str, Callable[[Tally], str]] = {
    "inputs": lambda tally: str(tally.inputs),
    "stories, each ended with a good engine followed exactly": lambda tally: str(tally.stories),
    "seconds": lambda tally: f"{tally.seconds:.0f}",
    "blocks applied": lambda tally: str(tally.applied),
    "blocks, events and messages dropped and counted": lambda tally: str(tally.drops.total()),
    f"longest without a turn for others (CPU, at most {1000 * HOLD_S:.0f} ms)": lambda tally: (
        f"{1000 * tally.longest_s:.0f} ms ({tally.longest_of})"
    ),
    "memory: first, largest, last": _memory,
    "memory an input, once warm": _growth,
    "reasons": lambda tally: ", ".join(f"{reason} {count}" for reason, count in sorted(tally.drops.items())),
}
