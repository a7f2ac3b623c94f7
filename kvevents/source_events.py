"""What a source can be told and what it can answer: the words of `kvevents.source`, without its mind."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from kvevents.decoder import Message
from kvevents.sequence import Position


class State(StrEnum):
    """What a source's slots are worth."""

    EXACT = "exact"
    """All batches of this process since its number 0, or since its cache was reset, were applied."""
    PARTIAL = "partial"
    """Blocks cached before a certain batch are missing; what is there is right."""
    UNKNOWN = "unknown"
    """Not connected, or in doubt until a replay has answered."""


class Resumed(StrEnum):
    """What became of what was known from before we were started."""

    NONE = "none"
    """There was nothing."""
    UNPROVEN = "unproven"
    """It is loaded, and worth nothing until a replay has shown that the engine's process is the same."""
    RESTORED = "restored"
    STALE = "stale"
    """It was forgotten."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a source was applied: all that another process of ours must know of it to go on from there."""

    position: Position
    since_start: bool
    """Everything from number 0 on was applied."""
    incomplete: bool
    """A replay from number 0 went unanswered, and another try is due."""


class Damage(IntEnum):
    """What a batch that was not fully understood did to what is known of its rank; the worst is the largest."""

    NONE = 0
    MISSING = 1
    """Blocks were stored that are not known. What is known is right."""
    STALE = 2
    """Blocks that are known may be gone."""


# ---- what happens -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake with a publisher succeeded: live messages flow from now on."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The publisher is gone."""


@dataclass(frozen=True, slots=True)
class Live:
    """A live message."""

    message: Message


@dataclass(frozen=True, slots=True)
class Replayed:
    """A message of the replay last asked for."""

    message: Message


@dataclass(frozen=True, slots=True)
class ReplayEnded:
    """The replay last asked for is over; without `marker` because the deadline passed."""

    marker: bool


@dataclass(frozen=True, slots=True)
class Suspected:
    """Somebody has evidence that another process is behind the address."""


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """The source was idle for a while, or is due another try to be completed."""

    settling: bool = False
    """The connection is young, so batches may be on their way all the same."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """An applied batch was not fully understood."""

    damage: Damage


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Somebody has evidence that what was built from this source's batches is wrong: forget it all and begin again."""

    replay: bool
    """From the first batch that can be had; else from the next live one, because a replay has led here before."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """An applied batch emptied the cache, and all since then was applied: nothing older can be missing."""


SourceEvent = (
    Connected
    | Disconnected
    | Live
    | Replayed
    | ReplayEnded
    | Suspected
    | ProbeDue
    | Damaged
    | Cleared
    | Rebuild
)

# ---- what to do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Apply:
    """Change the index by this batch."""

    message: Message


@dataclass(frozen=True, slots=True)
class Retire:
    """Forget all blocks of this source; `why` is one of the constants below."""

    why: str


@dataclass(frozen=True, slots=True)
class Proven:
    """The publisher is the process that the checkpoint was taken of: what was known then is true, and goes on."""


@dataclass(frozen=True, slots=True)
class AskReplay:
    """Drop a running replay and ask for all batches from number `start` on."""

    start: int


@dataclass(frozen=True, slots=True)
class StopReplay:
    """Drop the running replay."""


@dataclass(frozen=True, slots=True)
class GapSeen:
    """A live number skipped `missing` batches."""

    missing: int


@dataclass(frozen=True, slots=True)
class ReplayDone:
    """A replay brought `batches` new batches; `complete`: nothing was missing and its marker came."""

    batches: int
    complete: bool


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The source's slots are worth something else now."""

    state: State


Action = Apply | Retire | Proven | AskReplay | StopReplay | GapSeen | ReplayDone | StateChanged

NEW_PROCESS = "new_process"
GAP = "gap"
UNVERIFIED = "unverified"
REBUILD = "rebuild"
DAMAGED = "damaged"
