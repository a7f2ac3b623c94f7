"""What happens to the index leaves this package through one Protocol, as counts and never as exceptions."""

from typing import Protocol

from kvevents.events import Reason
from kvevents.source_events import State


class Observer(Protocol):
    """Hears everything countable. Called on the event loop, so it must be quick and must not raise."""

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
        """What the source's slots are worth now."""
        ...

    def retired(self, *, instance: str, rank: int, why: str) -> None:
        """All blocks of that rank were forgotten: "new_process", "gap", "unverified" or "rebuild"."""
        ...

    def resumed(self, *, instance: str, rank: int, why: str | None) -> None:
        """What was known from before a restart was proven right, or forgotten: `why` as `retired` says it."""
        ...

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        """A batch was read, live or replayed; its events follow. `ts_s`: the engine's clock."""
        ...


class NullObserver:
    """Hears nothing; a base for observers that care about a part."""

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None: ...
    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None: ...
    def gap(self, *, instance: str, rank: int, missing: int) -> None: ...
    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None: ...
    def state_changed(self, *, instance: str, rank: int, state: State) -> None: ...
    def retired(self, *, instance: str, rank: int, why: str) -> None: ...
    def resumed(self, *, instance: str, rank: int, why: str | None) -> None: ...
    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None: ...
