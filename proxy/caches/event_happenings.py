"""What kvevents observes of event sources becomes happenings."""

from kvevents import NullObserver, Reason, RetireReason
from proxy.happenings import EventApplied, EventDropped, EventGap, EventsReplayed, SnapshotProven, Tell


class Telling(NullObserver):
    """The observer of all event sources."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        """As `kvevents.Observer`."""
        self._tell(EventApplied(instance, rank, event_type, count))

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        """As `kvevents.Observer`."""
        self._tell(EventDropped(instance, rank, reason, count))

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        """As `kvevents.Observer`."""
        self._tell(EventGap(instance, rank, missing))

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:
        """As `kvevents.Observer`."""
        self._tell(EventsReplayed(instance, rank, batches, complete))

    def resumed(self, *, instance: str, rank: int, why: RetireReason | None) -> None:
        """As `kvevents.Observer`."""
        self._tell(SnapshotProven(instance, rank, why or "restored"))
