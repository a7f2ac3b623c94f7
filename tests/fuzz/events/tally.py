"""What a run over hostile KV events saw: inputs by kind and end, findings, the longest hold, memory."""

import contextlib
import ctypes
import pathlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvevents import NullObserver, Reason, State
from tests.proofs.trend import Trend, trend

HOLD_S = 0.25
"""CPU time after which others must have had a turn, whatever an input was; the usual is a hundredth of it."""
GROWTH_BYTES = 24.0
"""Memory may grow by so much for each input: less than any Python object that is kept for every input."""
_CACHES_MIB = 16.0
"""Caches that are bounded fill up for a while."""
_FINDINGS_KEPT = 20
_SAMPLES = 3


@dataclass(slots=True)
class Tally(NullObserver):
    """Also the observer of everything that is fuzzed."""

    inputs: int = 0
    stories: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    drops: Counter[Reason] = field(default_factory=Counter)
    applied: int = 0
    batches: int = 0
    states: Counter[State] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    found: int = 0
    longest_s: float = 0.0
    longest_of: str = ""
    seconds: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Inputs so far and MiB then."""

    def find(self, words: str) -> None:
        """Something is wrong."""
        self.found += 1
        print(f"FAILED: {words[:1000]}", file=sys.stderr, flush=True)
        if len(self.findings) < _FINDINGS_KEPT:
            self.findings.append(words)

    def held(self, seconds: float, what: str) -> None:
        """The loop was held so long."""
        if seconds > self.longest_s:
            self.longest_s, self.longest_of = seconds, what
        if seconds > HOLD_S:
            self.find(f"{what}: nobody else had a turn for {seconds:.2f} s of CPU time")

    @contextmanager
    def holding(self, what: str) -> Iterator[None]:
        """Time what is done without a turn for others."""
        before = time.thread_time()
        yield
        self.held(time.thread_time() - before, what)

    def sample(self) -> None:
        """Look at the memory of this process, without what its allocator keeps for later."""
        with contextlib.suppress(AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.memory.append((self.inputs, pages * resource.getpagesize() / 2**20))

    def growth(self) -> Trend | None:
        """MiB by which memory grew for each input once it was warm; None for too few samples.

        The first half is left out: caches fill, tables and the allocator's heaps grow to their largest.
        """
        warm = self._warm()
        return (
            trend([inputs for inputs, _ in warm], [mib for _, mib in warm]) if len(warm) >= _SAMPLES else None
        )

    def judge_memory(self) -> None:
        """Find fault with memory that grows."""
        growth, warm = self.growth(), self._warm()
        if growth is None or not growth.grows(GROWTH_BYTES / 2**20):
            return
        if growth.slope * (warm[-1][0] - warm[0][0]) > _CACHES_MIB:
            self.find(f"memory grows by {growth.slope * 2**20:.0f} bytes an input: {self.memory}")

    def _warm(self) -> list[tuple[int, float]]:
        return self.memory[len(self.memory) // 2 :]

    # ---- as an observer -----------------------------------------------------------------------------------

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        self.applied += count

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self.drops[reason] += count

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        self.states[state] += 1

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        self.batches += 1
        time.gmtime(ts_s)  # raises for a time that is none
