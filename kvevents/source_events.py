"""The inputs and actions of the state machine in `kvevents.source`."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from kvevents.decoder import Message
from kvevents.sequence import Position


class State(StrEnum):
    """How well the cache of a source's rank is known."""

    EXACT = "exact"
    """All batches of its process since number 0, or since its cache was reset, were applied."""
    PARTIAL = "partial"
    """Blocks that were cached before a certain batch are missing; those that are known are right."""
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
    """A batch that could not be read may have removed blocks that are known."""


class Resumed(StrEnum):
    """What became of the blocks that a subscriber's `resume` loaded into the index."""

    NONE = "none"
    """Nothing was loaded."""
    UNPROVEN = "unproven"
    """Blocks are loaded, and the rank is `unknown` until a replay has shown that the engine's process is the
    same."""
    RESTORED = "restored"
    """The engine's process is the same: the blocks count."""
    STALE = "stale"
    """The blocks were forgotten; `Subscriber.stale_because` says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a source was applied: all that a later process needs, besides the blocks, to continue from
    there.
    """

    position: Position
    since_start: bool
    """Whether all batches from number 0 on, or from a reset on, were applied."""
    incomplete: bool
    """Whether a replay from number 0 went unanswered, so that another try is due."""


class Damage(IntEnum):
    """What a batch that could not be read in full did to the knowledge of its rank; the worst is the
    largest.
    """

    NONE = 0
    MISSING = 1
    """Blocks were stored that are not known; those that are known are right."""
    STALE = 2
    """Blocks that are known may be gone."""


# ---- what happens -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake with a publisher succeeded: live messages arrive from now on."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The publisher is gone."""


@dataclass(frozen=True, slots=True)
class Live:
    """A live message."""

    message: Message


@dataclass(frozen=True, slots=True)
class Replayed:
    """A message of the replay that was asked for last."""

    message: Message


@dataclass(frozen=True, slots=True)
class ReplayEnded:
    """The replay that was asked for last is over. `marker`: its end marker came; else its deadline passed."""

    marker: bool


@dataclass(frozen=True, slots=True)
class Suspected:
    """There is evidence, from outside the event stream, that another process is behind the address."""


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """The source was idle for long, or another try to complete it is due."""

    settling: bool = False
    """The connection is young, so batches may be on their way."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """An applied batch could not be read in full."""

    damage: Damage


@dataclass(frozen=True, slots=True)
class Rebuild:
    """There is evidence, from outside the event stream, that what the index holds of this source is wrong: it
    is forgotten, and built anew.
    """

    replay: bool
    """Begin with the oldest batch that can be replayed. False: with the next live batch, because a replay has
    led to the same before."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """An applied batch emptied the cache, and all batches since then were applied: nothing older can be
    missing.
    """


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
    """The publisher is the process of the checkpoint: the blocks that were loaded are right."""


@dataclass(frozen=True, slots=True)
class AskReplay:
    """Drop a replay that runs, and ask for all batches from number `start` on."""

    start: int


@dataclass(frozen=True, slots=True)
class StopReplay:
    """Drop the replay that runs."""


@dataclass(frozen=True, slots=True)
class GapSeen:
    """The number of a live batch shows that `missing` batches before it did not arrive."""

    missing: int


@dataclass(frozen=True, slots=True)
class ReplayDone:
    """A replay has ended and brought `batches` new batches; `complete`: its marker came, and nothing before
    it is missing.
    """

    batches: int
    complete: bool


@dataclass(frozen=True, slots=True)
class StateChanged:
    """What is known of the rank has changed."""

    state: State


Action = Apply | Retire | Proven | AskReplay | StopReplay | GapSeen | ReplayDone | StateChanged
