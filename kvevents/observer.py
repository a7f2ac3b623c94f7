"""All that can be counted or logged leaves this package through one Protocol, and nothing that an engine does
as an exception.
"""

from typing import Protocol

from kvevents.events import Reason
from kvevents.source_events import RetireReason, State


class Observer(Protocol):
    """Hears all that can be counted. Called on the event loop, in the middle of a change: it MUST be quick
    and MUST NOT raise.
    """

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        """Blocks of a "BlockStored" or "BlockRemoved" changed the index; "AllBlocksCleared" counts 1."""
        ...

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        """Blocks or events changed nothing, and why."""
        ...

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        """A live number skipped that many batches."""
        ...

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:
        """A replay has ended; `complete`: its end marker came and nothing was missing in between."""
        ...

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        """What is known of that rank now; the events before it have been applied."""
        ...

    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
        """All blocks of that rank were forgotten."""
        ...

    def resumed(self, *, instance: str, rank: int, why: RetireReason | None) -> None:
        """What `resume` had loaded was proven to be right (`why` is None), or was forgotten."""
        ...

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        """A batch was read, live or replayed; its events follow. `ts_s`: the engine's clock."""
        ...


class NullObserver:
    """Ignores everything; a base for observers that care about a part."""

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None: ...
    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None: ...
    def gap(self, *, instance: str, rank: int, missing: int) -> None: ...
    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None: ...
    def state_changed(self, *, instance: str, rank: int, state: State) -> None: ...
    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None: ...
    def resumed(self, *, instance: str, rank: int, why: RetireReason | None) -> None: ...
    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None: ...
