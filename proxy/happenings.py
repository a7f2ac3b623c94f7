"""A happening is a value, told once by the room in which it happens, which does not know who hears of it.

A room that tells is given a `Tell`, and knows no more of metrics, logs or recorders than that. A `Consumer`
names the kinds that it hears; `observability` hands each happening to all consumers, side by side.
"""

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.phases import Phase

BlockKeys = Mapping[int, npt.NDArray[np.uint64]]
"""The keys of a prompt's whole blocks, by block size in tokens. They MUST NOT be changed. Keys of processes
that use the same state directory can be compared."""


class Happening(msgspec.Struct, frozen=True):
    """Something that is over. Its fields are plain values; large ones are shared, not copied."""


Tell = Callable[[Happening], None]
"""Tells a happening to all that listen. It is called on the event loop, in the middle of a change, and raises
nothing."""


class Consumer(Protocol):
    """Hears what happened."""

    @property
    def hears(self) -> Collection[type[Happening]]:
        """The kinds that it hears. Read once, as the consumer is added."""
        ...

    def hear(self, happening: Happening) -> None:
        """Take a happening. Called on the event loop: it MUST be quick, and MUST NOT change the happening.

        An exception is logged the first time and counted each time; it harms neither the request nor other
        consumers.
        """
        ...


# -- requests ---------------------------------------------------------------------------------------------


class RequestEnded(Happening, frozen=True):
    """A request of a generating route is over, however it ended."""

    route: str
    """The name of its dialect."""
    outcome: str
    """One of the outcomes of `kvproxy_requests_total`: `ok`, `client_left`, `timeout`, ..."""
    seconds: float
    """From its arrival to its last byte."""
    arrived_at: float = 0.0
    """Seconds since 1970."""
    request_id: str = ""
    client: str | None = None
    """The client whose turn in the queue it took. This and the next fields are None if the request did not
    get so far."""
    model: str | None = None
    stream: bool | None = None
    status: int | None = None
    """The status of its answer; None if its client left before there was one."""
    first_byte_s: float | None = None
    """From its arrival to the first byte of a successful answer."""
    attempts: int = 0
    prefill: str | None = None
    """The instance that computed the prompt; None for a list of prompts, which have one each."""
    decode: str | None = None
    """The instance that generated the answer; None for a list of prompts."""
    bypass: str | None = None
    """Why a decode instance served all of a request that could have had two legs, as
    `scheduling.bypass.Bypass`; None if none did, and for a list of prompts."""
    cached_tokens: int | None = None
    """How much of the prompt was cached where it was computed, by the index."""
    prompt_tokens: int | None = None
    """None if it is not known, and for a list of prompts."""
    block_keys: BlockKeys = {}
    """Keys for each block size that engines have; empty if none is known, or the prompt is not."""
    answer_tokens: int | None = None
    """The engine's count; None if it gave none, as in a stream whose client did not ask for usage."""
    answer_events: int | None = None
    """Events of a complete stream, the one that ends it included; counted for a recording alone."""
    session: str | None = None
    """As its client calls it; None if it does not, or if neither the policy nor a recording asks for it."""
    predicted_ttft_ms: float | None = None
    """From the decision that served it to its first token, as it was predicted then; None if nothing was."""
    ttft_ms: float | None = None
    """The same as it came; of a stream alone, where a time was predicted or the decision is logged."""
    prefill_ms: float | None = None
    """What the prefill leg of its last attempt took; None if none was answered."""
    account: Mapping[str, object] | None = None
    """What its last decision was made of, for the decision log; None if that does not want it."""


class FirstTokenForeseen(Happening, frozen=True):
    """The first token of a stream came, from where it was decided to go, and a time was predicted for it."""

    predicted_s: float
    """From the decision to the first token."""
    observed_s: float

    @property
    def error_s(self) -> float:
        """How much it came before or after that."""
        return abs(self.observed_s - self.predicted_s)

    @property
    def ratio(self) -> float | None:
        """What it took as a multiple of what was predicted; None if that was nothing."""
        return self.observed_s / self.predicted_s if self.predicted_s else None


class GoalEnded(Happening, frozen=True):
    """The first token of a stream came whose client had said when it wants it."""

    outcome: str
    """`met` or `missed`."""


class DecisionsLogged(Happening, frozen=True):
    """Decisions were written to the decision log."""

    count: int


class DecisionsLost(Happening, frozen=True):
    """Decisions are missing in the decision log."""

    count: int
    reason: str
    """`behind` or `disk`, as `observability.line_writer.LOST`."""


class RequestsRecorded(Happening, frozen=True):
    """Requests were written to the recording."""

    count: int


class RequestsLost(Happening, frozen=True):
    """Requests are missing in the recording."""

    count: int
    reason: str
    """`behind` or `disk`, as `observability.line_writer.LOST`."""


class RequestUnrouted(Happening, frozen=True):
    """A request was refused that reached no generating route: for a wrong path or key, say."""

    route: ClassVar[str] = "other"
    outcome: str
    """`unauthorized` or `client_error`."""


class Answered(Happening, frozen=True):
    """A request of HTTP is over, of whatever kind: those of operators and probes included."""

    method: str
    path: str
    """As it was sent, without its query, and cut if it is long."""
    status: int
    """499 if its client left before there was an answer."""
    seconds: float
    """From its arrival to its end."""
    request_id: str
    """With characters replaced that do not belong into a log."""
    notes: Mapping[str, str]
    """Names and values that handlers add to the access log."""
    probe: bool
    """Whether it only reads, as health checks and scrapes do."""


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
    """By what: `local` (the tokenizer of this process), `engine` or `client`."""


class PromptUnknown(Happening, frozen=True):
    """A prompt was placed without knowing its tokens."""

    reason: str
    """As `tokenizing.why_unknown.WhyUnknown`."""


# -- admission --------------------------------------------------------------------------------------------


class QueueLeft(Happening, frozen=True):
    """A request that had to wait left the queue, served or not."""

    seconds: float


class Refused(Happening, frozen=True):
    """A request was not let in."""

    reason: str
    """`queue_full`, `shed`, `queue_timeout`, `client_limit`, `engines_full`, `late`, `no_prefill`,
    `no_engine`, `too_long`, `no_memory`, `no_descriptors` or `stopping`."""


class NoPrefill(Happening, frozen=True):
    """A request met no usable prefill instance."""

    action: str
    """What was done: as `config.WhenNoPrefill`."""


class ConnectionClosed(Happening, frozen=True):
    """A client's connection was closed for want of file descriptors."""

    reason: str
    """`idle`, `reading` (its request was still arriving), or `refused` (as soon as it was accepted)."""


# -- legs -------------------------------------------------------------------------------------------------


class LegsDecided(Happening, frozen=True):
    """It was decided where the legs of a request's first attempt go."""

    seconds: float
    """kvproxy's own time since the request was read, without the time in the queue."""


class LegBegan(Happening, frozen=True):
    """A leg that streams its answer has brought its first token; told only where somebody wants to know."""

    instance: str
    rank: int
    began_at: float
    """When it was sent, in seconds of the monotonic clock; as `at`, when the token came."""
    at: float
    prompt_tokens: int
    """The prompt's length, of several prompts on average; estimated if it is not known."""
    uncached: int | None
    """As `LegEnded.uncached`."""
    pulled_from: str | None = None
    """As `LegEnded.pulled_from`."""
    in_turn: bool = True
    """Whether the blocks that it fetched were there as it was sent."""
    sequences: int = 1
    """How many answers are generated at once: several to one prompt, and those to several prompts."""


class LegSent(Happening, frozen=True):
    """A leg is sent whose answer comes whole; told only where somebody wants to know."""

    instance: str
    rank: int
    at: float
    """As `LegEnded.began_at`."""
    prompt_tokens: int
    """As `LegBegan.prompt_tokens`; so is the next."""
    sequences: int = 1


class LegEnded(Happening, frozen=True):
    """A leg is over: its answer was read, or it failed, or nobody waits for it any more."""

    phase: Phase
    """`decode` where one instance serves a whole request."""
    instance: str
    rank: int
    began_at: float
    """In seconds of the monotonic clock, as `ended_at`."""
    ended_at: float
    outcome: str
    """`served`; `refused`: the engine's refusal went to the client; `left`: nobody waited for the leg any
    more; or why it failed, as `serving.legs.leg.Reason`."""
    answered: bool
    """Whether its engine's answer was read to its end."""
    uncached: int | None
    """Tokens of the prompt to compute or to fetch, by the decision; None if the prompt is not known."""
    prompt_tokens: int | None = None
    """The engine's count for a prefill leg that was served; as `LegBegan.prompt_tokens` for one that brought
    a first token, or of which `LegSent` was told; else None."""
    predicted: int | None = None
    """Cached tokens that the index predicted. This and the next are set for prefill legs that were served."""
    reported: int | None = None
    """Cached tokens that its engine reported."""
    first_token_ms: float | None = None
    """How long its engine says that it took from the step that began it to the first token; None if it does
    not say."""
    first_token_at: float | None = None
    """When a leg that streams brought its first token; as `began_at`. None if it did not, or if nobody wants
    to know. The same holds for `generated`."""
    pulled_from: str | None = None
    """The instance whose blocks it was to fetch; None if it computed its prompt."""
    generated: int | None = None
    """Tokens of its stream, counted by events; None if nobody counted: only some streams are."""
    sequences: int = 1
    """As `LegBegan.sequences`; 1 for each prompt of a prefill leg."""
    whole: bool = False
    """Whether `LegSent` was told of it."""

    @property
    def seconds(self) -> float:
        """From its sending to its end."""
        return self.ended_at - self.began_at


class Bypassed(Happening, frozen=True):
    """A request that could have had two legs, or a prompt of a list, goes whole to a decode instance."""

    instance: str
    reason: str
    """As `scheduling.bypass.Bypass`."""


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
    """The instance on which the leg failed."""
    reason: str
    """As `serving.legs.leg.Reason`."""


class RetryRefused(Happening, frozen=True):
    """A failed leg is not followed by another attempt, for want of retry budget."""

    phase: Phase


class HoldEnded(Happening, frozen=True):
    """A hold has ended."""

    instance: str
    """The prefill instance of its blocks."""
    end: str
    """As `serving.custody.HoldState`: `pulled`, `released`, `stranded` or `unknown`."""


class ReportAsked(Happening, frozen=True):
    """A prefill leg asked for a full report of the cache."""

    instance: str
    rank: int


class BlocksLearnt(Happening, frozen=True):
    """A full report taught the index blocks that it did not know."""

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
    """An instance was removed from the fleet. What ends there later is still told."""

    instance: str


# -- caches -----------------------------------------------------------------------------------------------


class EventApplied(Happening, frozen=True):
    """A KV event was applied to the index."""

    instance: str
    rank: int
    type: str
    """`BlockStored`, `BlockRemoved` or `AllBlocksCleared`."""
    blocks: int
    """How many blocks it changed."""


class EventDropped(Happening, frozen=True):
    """KV events, or blocks of one, changed nothing."""

    instance: str
    rank: int
    reason: str
    """As `kvevents.Reason`."""
    count: int


class EventGap(Happening, frozen=True):
    """Batches of events are missing between two numbers."""

    instance: str
    rank: int
    missing: int
    """How many batches."""


class EventsReplayed(Happening, frozen=True):
    """A replay asked of an engine has ended."""

    instance: str
    rank: int
    batches: int
    complete: bool


class SnapshotEnded(Happening, frozen=True):
    """Writing or reading the snapshot of a rank has ended, well or not."""

    instance: str
    rank: int
    outcome: str
    """`written`, `failed` (not written) or `broken` (not read)."""
    seconds: float | None = None
    """From copying the rank to the end of writing."""


class SnapshotProven(Happening, frozen=True):
    """The snapshot that was loaded for a rank was proven true, or was forgotten."""

    instance: str
    rank: int
    outcome: str
    """`restored`, or why it was forgotten: as `kvevents.RetireReason`."""
