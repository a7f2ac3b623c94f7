"""All that can be counted or logged leaves this package through one Protocol; nothing that an engine does
raises.
"""

from typing import Protocol

from kvevents.events import Reason
from kvevents.source_events import RetireReason, State


class Observer(Protocol):
    """Hears all that can be counted. Its methods are called on the event loop, in the middle of a change:
    they MUST be quick and MUST NOT raise.
    """

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None:
        """Blocks of a "BlockStored" or "BlockRemoved" changed the index; "AllBlocksCleared" counts 1."""
        ...

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        """`count` blocks or events changed nothing, for that reason."""
        ...

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        """The number of a live batch shows that `missing` batches before it did not arrive."""
        ...

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:
        """A replay has ended and brought `batches` new ones; `complete`: its end marker came, and nothing
        before it is missing.
        """
        ...

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        """The state of a rank has changed; all events before the change have been applied."""
        ...

    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
        """All blocks of that rank were forgotten."""
        ...

    def resumed(self, *, instance: str, rank: int, why: RetireReason | None) -> None:
        """The blocks that `resume` loaded were proven to be right (`why` is None), or were forgotten."""
        ...

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        """A batch was read, live or replayed, and its events are applied next; `ts_s`: seconds since 1970, by
        the engine's clock.
        """
        ...


class NullObserver:
    """Ignores everything; a base for observers that need only some of the methods."""

    def event_applied(self, *, instance: str, rank: int, event_type: str, count: int) -> None: ...
    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None: ...
    def gap(self, *, instance: str, rank: int, missing: int) -> None: ...
    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None: ...
    def state_changed(self, *, instance: str, rank: int, state: State) -> None: ...
    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None: ...
    def resumed(self, *, instance: str, rank: int, why: RetireReason | None) -> None: ...
    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None: ...
