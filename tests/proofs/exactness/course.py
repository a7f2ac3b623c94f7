"""What a run of the proof is: its phases, its options, and what came of it."""

import enum
import pathlib
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.proofs.chaos.verdict import Verdict
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.legs import Leg
from tests.proofs.exactness.looking import Meter

FIRST, LATE = "first", "late"
"""The kvproxys."""


class Phase(enum.StrEnum):
    """What happens, in this order."""

    MIXED = "mixed"
    PRESSURE = "evictions"
    RESETS = "resets"
    ENGINE = "engine killed"
    ROUTER = "kvproxy killed"
    LATE = "late joiner"
    QUIET = "at rest"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seconds: float
    seed: int
    logs: pathlib.Path
    real: bool = False
    phases: Collection[Phase] = tuple(Phase)
    clients: int = 6
    pause_s: float = 0.3
    """Between an answer and the client's next request, on average."""
    prefill_tokens: int = 8192
    decode_tokens: int = 16_384
    buffer_steps: int = 200
    state_interval_s: float = 10.0
    """Between kvproxy's snapshots."""
    resets: int = 4
    late_requests: int = 200
    quiet_requests: int = 60


@dataclass
class Run:
    """What a run was and what came of it."""

    options: Options
    verdict: Verdict = field(default_factory=Verdict)
    legs: list[Leg] = field(default_factory=list)
    quiet: list[v.QuietLeg] = field(default_factory=list)
    told: list[v.Told] = field(default_factory=list)
    misses: list[v.Miss] = field(default_factory=list)
    meters: dict[str, dict[str, Meter]] = field(default_factory=dict)
    """By phase and kvproxy."""
    journal: list[tuple[float, str]] = field(default_factory=list)
    kills: list[tuple[float, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.time)
    phase: str = "starting"
    wrong: list[str] = field(default_factory=list)
    """What was to happen and did not."""

    def note(self, words: str) -> None:
        self.journal.append((time.time(), words))

    @property
    def failures(self) -> int:
        return len(self.verdict.findings)
