"""What was done to which engine and when: the judge's only knowledge of what a client had to put up with.

Pure: times are passed in (seconds of the monotonic clock).
"""

import enum
from dataclasses import dataclass

HEALING_S = 3.0
"""A stream may learn so much later than the engine was healed that it had been cut."""


class Fault(enum.StrEnum):
    """What can be done to an engine."""

    KILL = "kill"
    """SIGKILL, and a new process on the same ports after a while."""
    RESTART = "restart"
    """Another process at once, without a moment in which connections are refused for long."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after a while."""
    HANG = "hang"
    """Everything under /v1/ is accepted and never answered."""
    SLOW = "slow"
    STATUS = "status"
    """Legs are answered with a 5xx that says that the engine is broken."""
    FULL = "full"
    """Legs are refused for want of room (503 or 429), by one engine of a role or by several at once."""
    LATE_ERROR = "error in the stream"
    """Streams end with an error event after something real."""
    EARLY_ERROR = "error before anything"
    """Streams begin with status 200 and an error event, and answers that are not streamed are errors."""
    SLEEP = "sleep"
    """Sent to sleep, which ends or keeps what runs there, and woken after a while."""
    CUT = "cut"
    """Answers are cut off after some bytes, or before the first."""
    EVENT_GAP = "event gap"
    """Published events are lost on their way."""
    EVENT_STALL = "event stall"
    """The publisher hangs, replays included."""
    DRAIN = "drain"
    REMOVE = "remove"
    """Removed through the admin API and added again."""


CUTS_STREAMS = frozenset({Fault.KILL, Fault.RESTART, Fault.FREEZE, Fault.HANG, Fault.CUT, Fault.LATE_ERROR})
"""Streams that have begun on such a decode engine may end with an error event. Nobody may fail or be cut
because of any other fault; whether by falling asleep depends on how."""


@dataclass(eq=False)
class Entry:
    """One fault of one engine. Until `ended` the engine is not counted upon."""

    name: str
    address: str
    fault: Fault
    begun: float
    detail: str = ""
    healed: float | None = None
    """When the fault itself was over."""
    ended: float | None = None
    """When kvproxy used the engine again, as far as can be seen."""
    may_strand: int = 0
    """Holds nobody could give back for it."""
    cuts: bool = False
    """Streams that have begun there may end with an error event."""

    def overlaps(self, begin: float, end: float) -> bool:
        return self.begun <= end and (self.ended is None or begin <= self.ended + HEALING_S)

    def line(self, origin: float) -> str:
        """The entry for people, times relative to `origin`."""

        def at(moment: float | None) -> str:
            return "..." if moment is None else f"{moment - origin:.2f}"

        return (
            f"{self.name} ({self.address}) {self.fault}{f' {self.detail}' if self.detail else ''}:"
            f" {at(self.begun)} to {at(self.healed)} s, back at {at(self.ended)} s"
        )


class Journal:
    """All entries, in the order they began."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def begin(self, name: str, address: str, fault: Fault, now: float, detail: str = "") -> Entry:
        entry = Entry(name, address, fault, now, detail, cuts=fault in CUTS_STREAMS)
        self.entries.append(entry)
        return entry

    def touched(self) -> set[str]:
        """The names of the engines that are not to be counted upon now."""
        return {entry.name for entry in self.entries if entry.ended is None}

    def during(self, address: str | None, begin: float, end: float) -> list[Entry]:
        """What was done to an engine (None: to any) between two moments."""
        return [e for e in self.entries if address in {None, e.address} and e.overlaps(begin, end)]

    def cutting(self, decode: str, begin: float, end: float) -> set[Fault]:
        """What may have cut a stream of this decode engine between two moments."""
        return {entry.fault for entry in self.during(decode, begin, end) if entry.cuts}

    def counts(self) -> dict[Fault, int]:
        return {fault: sum(entry.fault is fault for entry in self.entries) for fault in Fault}

    def may_strand(self) -> int:
        """How many holds were lost with their engines at most."""
        return sum(entry.may_strand for entry in self.entries)
