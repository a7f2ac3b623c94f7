"""What was seen of engines and pairs, as it was seen: no judgement is in a fact, and no I/O in a
judgement.
"""

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
    """Why a question got no useful answer."""

    REFUSED = "refused"
    """No connection came about."""
    SILENT = "silent"
    """A connection, and no answer in time."""
    STATUS = "status"
    """An answer that is a refusal."""
    BROKEN = "broken"
    """An answer that ended early, or cannot be read."""
    NOT_ALLOWED = "not_allowed"
    """An answer that names what an engine may not name."""


class Source(Protocol):
    """Where one rank publishes its events, as `kvevents.SourceAddress` has it."""

    @property
    def rank(self) -> int:
        """The rank."""
        ...

    @property
    def endpoint(self) -> str:
        """Of the events."""
        ...

    @property
    def replay_endpoint(self) -> str | None:
        """Of replays."""
        ...

    @property
    def topic(self) -> str:
        """What topics begin with."""
        ...

    @property
    def bind(self) -> bool:
        """The engine connects to it."""
        ...


class Answer(msgspec.Struct, frozen=True):
    """What came of one question: a value, or trouble."""

    value: Any = None
    trouble: Trouble | None = None
    status: int | None = None
    words: str = ""

    @property
    def ok(self) -> bool:
        """There is a value."""
        return self.trouble is None


class Send(msgspec.Struct, frozen=True):
    """One probe prompt that was sent, and its answer."""

    answer: Answer
    sent_ts: float
    counted: int | None = None
    """Prompt tokens as the engine counted them."""
    predicted: int | None = None
    """Cached tokens the index knew of just before."""
    reported: int | None = None
    """Cached tokens the engine told of."""


class RankFacts(msgspec.Struct):
    """What was seen of one data-parallel rank."""

    rank: int
    source: Source | None = None
    """Where its events are; None if it publishes none, or none are wanted."""
    followed_as: str | None = None
    """The state of the index of the running service, where only that can hear the engine (it binds the
    port)."""
    accuracy: AccuracyShown | None = None
    """How right the running service's predictions were, as `/status` has it; None without a service."""
    port_taken: bool = False
    """The engine connects to a port here that another process has."""
    connected: bool | None = None
    """A publisher is there; None if time was up before that was known."""
    replays_unanswered: int = 0
    """Replays that were asked for in vain."""
    contradicted: bool = False
    """What was published did not follow what was replayed: one of the two is another engine's."""
    replayed_batches: int | None = None
    """Of the replay that was answered to its end; None if none was."""
    state: str = "unknown"
    """What the index of this rank was worth before the probe."""
    messages: int = 0
    """Batches that could be read, replayed ones included."""
    dropped: dict[str, int] = {}
    """Events that could not be used, by reason."""
    kind: str = "chat"
    """How the probe was put: `chat` or `completion`."""
    token_ids: list[int] = []
    """The probe's tokens, as computed before it was sent."""
    tokens_by: str = ""
    """Who computed them: `local` or `engine`."""
    untokenized: str | None = None
    """Why the probe could not be made."""
    sends: list[Send] = []
    found: Found | None = None
    """The probe's blocks as they were announced."""
    heard_elsewhere: bool = False
    """With no filter on the topic the probe's event was heard."""
    block_size: int | None = None
    """That of the events."""

    @property
    def served(self) -> bool:
        """The probe was answered."""
        return bool(self.sends) and self.sends[0].answer.ok


class EngineFacts(msgspec.Struct):
    """What was seen of one engine."""

    spec: InstanceSpec
    health: Answer | None = None
    health_s: float = 0.0
    version: Answer | None = None
    asleep: bool | None = None
    """As it says; None if it cannot sleep, or does not tell."""
    cards: Answer | None = None
    told_sources: Answer | None = None
    """Its answer to `/kv_event_sources`, read."""
    metrics: Answer | None = None
    ranks: list[RankFacts] = []
    ranks_left_out: int = 0
    tokenized: dict[str, list[list[int] | None]] | None = None
    """Its answers to the awkward questions, by kind; None if it did not answer them."""
    tokenized_here: dict[str, list[list[int] | None]] | None = None
    """Ours to the same; None without a tokenizer of our own."""
    unfinished: bool = False
    """Time was up."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.spec.address

    @property
    def models(self) -> list[ModelCard]:
        """The cards it lists."""
        return self.cards.value if self.cards is not None and self.cards.ok else []

    def serves(self, model: str) -> bool:
        """It can be probed with that model."""
        return any(card.id == model and not card.parent for card in self.models)

    def max_model_len(self, model: str) -> int | None:
        """The longest prompt with its answer, in tokens."""
        for card in self.models:
            if card.id == model and card.max_model_len is not None:
                return card.max_model_len
        return None

    @property
    def block_size(self) -> int | None:
        """Tokens in a block, by its events or else by its metrics."""
        seen = next((rank.block_size for rank in self.ranks if rank.block_size), None)
        return seen or (
            self.metrics.value.block_size if self.metrics is not None and self.metrics.ok else None
        )

    @property
    def prefix_caching(self) -> bool | None:
        """Whether it says that it keeps prefixes."""
        return self.metrics.value.prefix_caching if self.metrics is not None and self.metrics.ok else None


class PairFacts(msgspec.Struct):
    """What was seen of the way from a prefill to a decode engine."""

    prefill: str
    decode: str
    not_tried: str | None = None
    """Why nothing was sent."""
    prompt_tokens: int = 0
    prefill_answer: Answer | None = None
    handoff: Handoff | None = None
    reported: int | None = None
    """Cached tokens the prefill engine told of when it was sent its own probe once more."""
    decode_answer: Answer | None = None
    moved: Moved | None = None
    """None if the decode engine's metrics do not tell."""
    took_s: float = 0.0
    hold_end: str | None = None
    """What became of the prefilled blocks."""
    unfinished: bool = False
