"""What was seen of engines and pairs. No fact has a judgement in it, and no judgement does I/O."""

import enum
from typing import Any, Protocol

import msgspec

from proxy.caches.shown import AccuracyShown
from proxy.config import InstanceSpec
from proxy.connectors import Handoff
from proxy.connectors.seen import Moved
from proxy.doctor.runs import Found
from proxy.fleet import ModelCard


class Trouble(enum.StrEnum):
    """Why a question got no usable answer."""

    REFUSED = "refused"
    """No connection came about."""
    SILENT = "silent"
    """A connection came about, and no answer came in time."""
    STATUS = "status"
    """The answer was a refusal."""
    BROKEN = "broken"
    """The answer ended early, or cannot be read."""
    NOT_ALLOWED = "not_allowed"
    """The answer names an address that an engine may not name."""


class EventsAddress(Protocol):
    """Where one rank publishes its events; `kvevents.SourceAddress` is one."""

    @property
    def rank(self) -> int:
        """The rank."""
        ...

    @property
    def endpoint(self) -> str:
        """The endpoint of the events."""
        ...

    @property
    def replay_endpoint(self) -> str | None:
        """The endpoint of replays; None if there is none."""
        ...

    @property
    def topic(self) -> str:
        """The beginning of the topics that are heard."""
        ...

    @property
    def bind(self) -> bool:
        """Whether the engine connects to the endpoint."""
        ...


class Answer(msgspec.Struct, frozen=True):
    """The result of one question: a value, or trouble."""

    value: Any = None
    trouble: Trouble | None = None
    status: int | None = None
    words: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.trouble is None


class Send(msgspec.Struct, frozen=True):
    """One probe prompt that was sent, and its answer."""

    answer: Answer
    sent_ts: float
    counted: int | None = None
    """The prompt's tokens as the engine counted them."""
    predicted: int | None = None
    """Cached tokens that the index knew of just before."""
    reported: int | None = None
    """Cached tokens that the engine reported."""


class RankFacts(msgspec.Struct):
    """What was seen of one data-parallel rank."""

    rank: int
    source: EventsAddress | None = None
    """Where the rank publishes its events; None if it publishes none, or none are wanted."""
    followed_as: str | None = None
    """The state of the index of the running service, where only that can hear the engine (it binds the
    port)."""
    accuracy: AccuracyShown | None = None
    """How right the running service's predictions were, as `/status` has it; None without a service."""
    port_taken: bool = False
    """Whether the engine connects to a port here that another process has."""
    connected: bool | None = None
    """Whether a publisher is connected; None if time was up before that was known."""
    replays_unanswered: int = 0
    """The number of replays that were asked for and not answered."""
    contradicted: bool = False
    """Whether published batches did not continue replayed ones: one of the two is another engine's."""
    replayed_batches: int | None = None
    """Batches of the replay that was answered to its end; None if none was."""
    state: str = "unknown"
    """The state of this rank's index before the probe."""
    messages: int = 0
    """Batches that could be read, replayed ones included."""
    dropped: dict[str, int] = {}
    """Events that could not be used, by reason."""
    kind: str = "chat"
    """The form of the probe: `chat` or `completion`."""
    token_ids: list[int] = []
    """The probe's tokens, as computed before it was sent."""
    tokens_by: str = ""
    """What made `token_ids`: `local` or `engine`."""
    untokenized: str | None = None
    """Why the probe could not be made."""
    sends: list[Send] = []
    found: Found | None = None
    """The probe's blocks as they were announced."""
    heard_elsewhere: bool = False
    """Whether the probe's event was heard without a filter on the topic."""
    block_size: int | None = None
    """The tokens of a block, in events."""

    @property
    def served(self) -> bool:
        """Whether the probe was answered."""
        return bool(self.sends) and self.sends[0].answer.ok


class EngineFacts(msgspec.Struct):
    """What was seen of one engine."""

    spec: InstanceSpec
    health: Answer | None = None
    health_s: float = 0.0
    version: Answer | None = None
    asleep: bool | None = None
    """Whether the engine sleeps, as it says; None if it cannot sleep, or does not say."""
    cards: Answer | None = None
    source_answer: Answer | None = None
    """The sources in its answer to `/kv_event_sources`."""
    metrics: Answer | None = None
    ranks: list[RankFacts] = []
    ranks_left_out: int = 0
    tokenized: dict[str, list[list[int] | None]] | None = None
    """Its tokens for the awkward prompts, by kind; None if it did not answer."""
    tokenized_here: dict[str, list[list[int] | None]] | None = None
    """The tokens of the tokenizer here for the same prompts; None without one."""
    unfinished: bool = False
    """Whether time was up before all was done."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.spec.address

    @property
    def models(self) -> list[ModelCard]:
        """The model cards that the engine lists."""
        return self.cards.value if self.cards is not None and self.cards.ok else []

    def serves(self, model: str) -> bool:
        """Whether the engine can be probed with that model."""
        return any(card.id == model and not card.parent for card in self.models)

    def max_model_len(self, model: str) -> int | None:
        """The most tokens of a prompt and its answer; None if not known."""
        for card in self.models:
            if card.id == model and card.max_model_len is not None:
                return card.max_model_len
        return None

    @property
    def block_size(self) -> int | None:
        """The tokens of a block, by its events or else by its metrics; None if not known."""
        seen = next((rank.block_size for rank in self.ranks if rank.block_size), None)
        return seen or (
            self.metrics.value.block_size if self.metrics is not None and self.metrics.ok else None
        )

    @property
    def prefix_caching(self) -> bool | None:
        """Whether the engine says that it keeps prefixes; None if it does not say."""
        return self.metrics.value.prefix_caching if self.metrics is not None and self.metrics.ok else None


class PairFacts(msgspec.Struct):
    """What was seen of the way from a prefill to a decode engine."""

    prefill: str
    decode: str
    not_tried: str | None = None
    """Why nothing was sent; None if something was."""
    prompt_tokens: int = 0
    prefill_answer: Answer | None = None
    handoff: Handoff | None = None
    reported: int | None = None
    """Cached tokens that the prefill engine reported when it got its own probe once more."""
    decode_answer: Answer | None = None
    moved: Moved | None = None
    """None if the decode engine's metrics do not tell."""
    took_s: float = 0.0
    decode_s: float | None = None
    """What the decode leg took; None if none was sent."""
    hold_end: str | None = None
    """How the hold of the prefilled blocks ended."""
    unfinished: bool = False
