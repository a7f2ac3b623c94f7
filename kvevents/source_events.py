"""What a source can be told and what it can answer: the inputs and actions of the state machine in
`kvevents.source`.
"""

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


class RetireReason(StrEnum):
    """Why all blocks of a rank were forgotten."""

    NEW_PROCESS = "new_process"
    """Another engine process publishes at the address; its cache began empty."""
    GAP = "gap"
    """Batches were lost, and the engine cannot replay them any more."""
    UNVERIFIED = "unverified"
    """No replay could show that the process is the one whose batches were applied."""
    REBUILD = "rebuild"
    """The rank is built anew: `Subscriber.rebuild` asked for it, or a replay from number 0 has begun to
    arrive."""
    DAMAGED = "damaged"
    """A batch that could not be read may have removed blocks."""


class Resumed(StrEnum):
    """What became of the blocks that a subscriber's `resume` loaded into the index."""

    NONE = "none"
    """Nothing was loaded."""
    UNPROVEN = "unproven"
    """They are loaded, and the rank is `unknown` until a replay has shown that the engine's process is the
    same."""
    RESTORED = "restored"
    """The engine's process is the same: they count."""
    STALE = "stale"
    """They were forgotten; `Subscriber.stale_because` says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a source was applied: all that a later process must know, besides the blocks, to go on from
    there.
    """

    position: Position
    since_start: bool
    """Everything from number 0 on, or from a reset on, was applied."""
    incomplete: bool
    """A replay from number 0 went unanswered, and another try is due."""


class Damage(IntEnum):
    """What a batch that could not be read in full did to what is known of its rank; the worst is the
    largest.
    """

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
    """There is evidence from elsewhere that another process is behind the address."""


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """The source was idle for a while, or it is time to try again to complete it."""

    settling: bool = False
    """The connection is young, so batches may be on their way all the same."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """An applied batch could not be read in full."""

    damage: Damage


@dataclass(frozen=True, slots=True)
class Rebuild:
    """There is evidence from elsewhere that what the index holds of this source is wrong: forget it and begin
    again.
    """

    replay: bool
    """Begin with the oldest batch that can be replayed; else with the next live one, because a replay has led
    here before."""


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
    """Forget all blocks of this source."""

    why: RetireReason


@dataclass(frozen=True, slots=True)
class Proven:
    """The publisher is the process that the checkpoint was taken of: what was loaded is right."""


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
    """What the source's slots are worth has changed."""

    state: State


Action = Apply | Retire | Proven | AskReplay | StopReplay | GapSeen | ReplayDone | StateChanged
