"""What happened is a value, told once, by whoever saw it; who hears of it is nobody's business here.

A room that tells is given a `Tell` and knows no more of metrics, logs or recorders than that. A `Consumer`
names the kinds it wants to hear of; `observability` hands each happening to all of them, side by side.
"""

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.phases import Phase

BlockKeys = Mapping[int, npt.NDArray[np.uint64]]
"""Keys of a prompt's whole blocks, by the tokens of a block. They can be compared with those of another
process that has the same state directory; not to be changed."""


class Happening(msgspec.Struct, frozen=True):
    """Something that is over. Its fields are plain values, and what is large in them is shared, not
    copied.
    """


Tell = Callable[[Happening], None]
"""Tells all who listen. It is called on the event loop, in the middle of a change, and raises nothing."""


class Consumer(Protocol):
    """Hears what happened."""

    @property
    def hears(self) -> Collection[type[Happening]]:
        """The kinds it is told of. Read once, when it is added."""
        ...

    def hear(self, happening: Happening) -> None:
        """Called on the event loop: it MUST be quick, and MUST NOT change what it is told of.

        What it raises is logged the first time and counted each time; it harms neither the request nor other
        consumers.
        """
        ...


# -- requests ---------------------------------------------------------------------------------------------


class RequestEnded(Happening, frozen=True):
    """A request of a generating route is over, however it ended."""

    route: str
    """The name of its dialect."""
    outcome: str
    """As `kvproxy_requests_total` has them: `ok`, `client_left`, `timeout`, ..."""
    seconds: float
    """From its arrival to its last byte."""
    arrived_at: float = 0.0
    """Seconds since 1970."""
    request_id: str = ""
    client: str | None = None
    """Whose turn in the queue it took; this and what follows is None if it came not so far."""
    model: str | None = None
    stream: bool | None = None
    status: int | None = None
    """Of its answer; None if its client left before there was one."""
    first_byte_s: float | None = None
    """From its arrival to the first byte of a successful answer."""
    attempts: int = 0
    prefill: str | None = None
    """The instance that computed the prompt; None for a list of prompts, which go their own ways."""
    decode: str | None = None
    """The instance that generated the answer."""
    cached_tokens: int | None = None
    """Of the prompt, by the index, where it was computed."""
    prompt_tokens: int | None = None
    """None if they are not known, and for a list of prompts."""
    block_keys: BlockKeys = {}
    """For the sizes of blocks that engines have; empty if nothing is known of them, or of the prompt."""
    answer_tokens: int | None = None
    """As its engine counted them; None if it did not say, as in a stream whose client did not ask."""


class RequestUnrouted(Happening, frozen=True):
    """A request ended before, or without, a generating route: a wrong path or key, say."""

    route: ClassVar[str] = "other"
    outcome: str
    """`unauthorized` or `client_error`."""


class Answered(Happening, frozen=True):
    """Any request of HTTP is over, those of operators and probes included."""

    method: str
    path: str
    """As it was sent, cut, and without its query."""
    status: int
    """499 if its client left before there was an answer."""
    seconds: float
    request_id: str
    """As it may stand in a log."""
    notes: Mapping[str, str]
    """What its handlers noted for the log, by name."""
    probe: bool
    """It only looks, as health checks and scrapes do."""


class AnswerBegan(Happening, frozen=True):
    """A successful answer begins."""

    route: str
    seconds: float
    """From its request's arrival to the first byte for the client."""


class ClientStalled(Happening, frozen=True):
    """A client took nothing of its answer for too long, and was cut."""


class PromptKnown(Happening, frozen=True):
    """The tokens of a prompt were found."""

    by: str
    """Who told them: `local`, `engine` or `client`."""


class PromptUnknown(Happening, frozen=True):
    """A prompt was placed without knowing its tokens."""

    reason: str


# -- admission --------------------------------------------------------------------------------------------


class QueueLeft(Happening, frozen=True):
    """A request that had to wait left the queue, served or not."""

    seconds: float


class Refused(Happening, frozen=True):
    """A request was not let in."""

    reason: str
    """`queue_full`, `shed`, `queue_timeout`, `client_limit`, `engines_full`, `no_prefill`, `no_engine`,
    `too_long`, `no_memory`, `no_descriptors` or `stopping`."""


class NoPrefill(Happening, frozen=True):
    """A request met no usable prefill instance."""

    action: str
    """What was done, as `WhenNoPrefill`."""


class ConnectionClosed(Happening, frozen=True):
    """A client's connection was closed for want of file descriptors."""

    reason: str
    """`idle`, `reading` (its request was still coming), or `refused` when it was accepted."""


# -- legs -------------------------------------------------------------------------------------------------


class LegsDecided(Happening, frozen=True):
    """Where the legs of a request's first attempt go was decided."""

    seconds: float
    """kvproxy's own time since the request was read, without that in the queue."""


class LegEnded(Happening, frozen=True):
    """A leg is over: its answer was read, or it failed, or nobody waits for it any more."""

    phase: Phase
    """`decode` where one instance serves a whole request."""
    instance: str
    rank: int
    began_at: float
    """On the monotonic clock, as `ended_at`."""
    ended_at: float
    outcome: str
    """`served`; `refused`: the engine's answer was the last word on the request; `left`: nobody waits for it
    any more; or why it failed, as `serving.legs.leg.Reason`."""
    answered: bool
    """Its engine's answer was read to its end."""
    uncached: int | None
    """Tokens of the prompt that were to be computed or fetched, by the decision; None if it is not known."""
    prompt_tokens: int | None = None
    """As its engine counted them; this and what follows is told of prefill legs that were served."""
    predicted: int | None = None
    """Cached tokens that the index promised."""
    reported: int | None = None
    """Cached tokens that its engine reported."""

    @property
    def seconds(self) -> float:
        """From sending it to its end."""
        return self.ended_at - self.began_at


class CountsDiffered(Happening, frozen=True):
    """An engine counted a prompt's tokens otherwise than kvproxy."""

    instance: str


class EngineFull(Happening, frozen=True):
    """An engine had no room for a leg."""

    phase: Phase
    instance: str


class Retried(Happening, frozen=True):
    """A failed leg is followed by another attempt."""

    phase: Phase
    instance: str
    """Where it failed."""
    reason: str
    """As `serving.legs.leg.Reason`."""


class RetryRefused(Happening, frozen=True):
    """A failed leg is not followed by another attempt, for want of budget."""

    phase: Phase


class HoldEnded(Happening, frozen=True):
    """Prefilled blocks wait for no decode leg any more."""

    instance: str
    """The one that had them."""
    end: str
    """As `serving.custody.HoldState`: `pulled`, `released`, `stranded` or `unknown`."""


class ReportAsked(Happening, frozen=True):
    """A prefill leg asked for a full report of the cache."""

    instance: str
    rank: int


class BlocksLearnt(Happening, frozen=True):
    """A full report told of blocks the index did not know."""

    instance: str
    rank: int
    blocks: int


# -- instances --------------------------------------------------------------------------------------------


class Checked(Happening, frozen=True):
    """A health check has ended."""

    instance: str
    finding: str
    """As `watching.checks.Finding`."""


class CircuitChanged(Happening, frozen=True):
    """An instance's circuit is in another state."""

    instance: str
    to: str
    """As `fleet.circuit.Circuit`."""


class InstanceRemoved(Happening, frozen=True):
    """An instance is not in the fleet any more. What ends there later is told as ever."""

    instance: str


# -- caches -----------------------------------------------------------------------------------------------


class EventApplied(Happening, frozen=True):
    """A KV event changed the index; so many blocks of it."""

    instance: str
    rank: int
    type: str
    """`BlockStored`, `BlockRemoved` or `AllBlocksCleared`."""
    blocks: int


class EventDropped(Happening, frozen=True):
    """KV events, or blocks of one, changed nothing."""

    instance: str
    rank: int
    reason: str
    """As `kvevents.Reason`."""
    count: int


class EventGap(Happening, frozen=True):
    """An engine's event numbers left some out."""

    instance: str
    rank: int
    missing: int
    """Batches."""


class EventsReplayed(Happening, frozen=True):
    """A replay asked of an engine has ended."""

    instance: str
    rank: int
    batches: int
    complete: bool


class SnapshotEnded(Happening, frozen=True):
    """The snapshot of a rank was written or read, or was not."""

    instance: str
    rank: int
    outcome: str
    """`written`, `failed` (not written) or `broken` (not read)."""
    seconds: float | None = None
    """From copying the rank to the end of writing."""


class SnapshotProven(Happening, frozen=True):
    """What a snapshot told of a rank was found to be true, or was forgotten."""

    instance: str
    rank: int
    outcome: str
    """`restored`, or why it was forgotten: as `kvevents.RetireReason`."""
