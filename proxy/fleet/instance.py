"""All that is known of an instance changes by its verbs alone, and each subject has one room that changes it.

    state and circuit                         the book of health (`watching/health.py`)
    what it serves, its release, draining     the watch (`watching/watch.py`)
    its event sources                         the event feeds (`caches/feeds.py`)
    ranks that fell silent                    `watching/changes.py`
    failures, pulls, fullness and denials     legs (`serving/legs`)
    what its engine's gauges told last        whoever scrapes them

An instance is usable while it is up and not draining.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from proxy.config import InstanceSpec
from proxy.fleet.circuit import Breaker
from proxy.fleet.denials import Denials
from proxy.fleet.fullness import Fullness
from proxy.fleet.gauges import Gauges
from proxy.fleet.load import Load
from proxy.fleet.model_card import ModelCard
from proxy.fleet.why import Why
from proxy.phases import Phase, Role

MAX_RANKS = 1024
"""The most data-parallel ranks of one instance, numbered from 0; far more than one engine can have."""


class Status(enum.StrEnum):
    """What the last check of an instance found."""

    STARTING = "starting"
    UP = "up"
    ASLEEP = "asleep"
    """The engine lives, and serves no requests until it is woken."""
    DOWN = "down"
    REFUSED = "refused"
    """The engine is reachable, but serves another model."""


class InstanceState(enum.StrEnum):
    """What `/status` and `/explain` call an instance: `draining`, or what the last check found."""

    ASLEEP = Status.ASLEEP
    DOWN = Status.DOWN
    DRAINING = "draining"
    """An operator, or its membership source, wants it to get no new legs."""
    REFUSED = Status.REFUSED
    STARTING = Status.STARTING
    UP = Status.UP


_NOT_UP = {status: Why(status.value) for status in Status if status is not Status.UP}


class SourceView(Protocol):
    """What the rooms above need to know of a followed event source."""

    @property
    def state(self) -> str:
        """`exact`, `partial` or `unknown`."""
        ...

    @property
    def epoch(self) -> int:
        """How often its blocks were all forgotten because another process may be behind the address."""
        ...


class Instance:
    """One engine and all that is known of it."""

    def __init__(self, spec: InstanceSpec, breaker: Breaker | None = None, *, draining: bool = False) -> None:
        """`draining`: whether it gets no legs from the beginning."""
        self.announce: Callable[[], None] = _nobody_listens
        """Called when it may have become usable or unusable, better or worse."""
        self.freed: Callable[[], None] = _nobody_listens
        """Called when a claim on it ends."""
        self.is_otherwise: Callable[[], None] = _nobody_listens
        """Called when something else of it has changed that decisions may have kept."""
        self.spec = spec
        self.breaker = breaker or Breaker()
        self.fullness = Fullness()
        """What is known of its engine's room."""
        self.denials = Denials()
        """The models that it lists and has answered 404 for."""
        self.load = Load(spec.role)
        """The legs that run there; changed by claims alone."""
        self._status = Status.STARTING
        self._draining = draining
        self._model_cards: Sequence[ModelCard] = []
        self._models: frozenset[str] = frozenset()
        self._adapters: frozenset[str] = frozenset()
        self._max_model_len = math.inf
        self._why_down: str | None = None
        self._unlisted: str | None = None
        self._last_failure: str | None = None
        self._version: str | None = None
        self._sources: Mapping[int, SourceView] = {}
        self._ranks: tuple[int, ...] = (0,)
        self._unheard: str | None = None
        self._silent: dict[int, str] = {}
        self._pulled_from: set[str] = set()
        self._gauges: Gauges | None = None

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """`host:port`, its name."""
        return self.spec.address

    @property
    def role(self) -> Role:
        """Which phases it serves."""
        return self.spec.role

    def takes(self, phase: Phase) -> bool:
        """Whether its role includes this phase."""
        role = self.role
        return role is Role.BOTH or role.value == phase.value

    @property
    def version(self) -> str | None:
        """Its vLLM release, as it told when it came up; None if that is not known."""
        return self._version

    def runs(self, version: str | None) -> None:
        """The engine has told its release; None if it did not."""
        self._version = version

    # -- whether it can be used ---------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """What the last check of it found."""
        return self._status

    @property
    def draining(self) -> bool:
        """Whether it gets no new legs, whatever its health."""
        return self._draining

    @property
    def state(self) -> InstanceState:
        """What `/status` and `/explain` call it: `draining`, or what the last check found."""
        return InstanceState.DRAINING if self._draining else InstanceState(self._status)

    @property
    def why_down(self) -> str | None:
        """What went wrong last, in words for `/status`; None while all is well."""
        return self._why_down

    def why_unusable(self, model: str | None = None) -> Why | None:
        """Why no leg may go there now; None if one may."""
        if self._draining:
            return Why.DRAINING
        if self._status is not Status.UP:
            return _NOT_UP[self._status]
        return Why.NOT_SERVED if model is not None and model not in self.models else None

    def says_full(self, now: float) -> bool:
        """Whether its engine said that it has no room for one leg more than are claimed there."""
        return self.fullness.is_known and not self.fullness.room(now, self.load.legs())

    def came_up(self) -> None:
        """A check was answered, and it serves what it should."""
        self._is(Status.UP, None)

    def fell_asleep(self) -> None:
        """A check was answered, and the engine says that it sleeps."""
        self._is(Status.ASLEEP, None)

    def went_down(self, why: str) -> None:
        """The engine is gone; what comes back is another process. `why`: in words for `/status`."""
        self._pulled_from.clear()
        self._gauges = None
        self.fullness.forget()
        self.denials.forget()
        self._is(Status.DOWN, why)

    def was_refused(self, why: str) -> None:
        """The engine is reachable and serves another model. `why`: in words for `/status`."""
        self._is(Status.REFUSED, why)

    def could_not_be_asked(self, why: str) -> None:
        """A check could not be sent, for want of a socket or an address. `why`: in words for `/status`, which
        shows it while no check was answered.
        """
        if self._status is Status.STARTING:
            self._why_down = why

    def circuit_opened(self, why: str) -> None:
        """Its legs failed where others served the same requests. `why`: in words for `/status`."""
        self._why_down = why

    def circuit_closed(self) -> None:
        """It serves legs again."""
        self._why_down = None

    def drain(self) -> None:
        """It gets no new legs from now on."""
        self._drains(to=True)

    def undrain(self) -> None:
        """It gets legs again."""
        self._drains(to=False)

    def _is(self, status: Status, why_down: str | None) -> None:
        before, self._status, self._why_down = self._status, status, why_down
        if status is not before:
            self.announce()

    def _drains(self, *, to: bool) -> None:
        before, self._draining = self._draining, to
        if to is not before:
            self.announce()

    # -- what it serves -----------------------------------------------------------------------------------

    @property
    def model_cards(self) -> Sequence[ModelCard]:
        """What its `/v1/models` lists, without the models that it has denied."""
        return self._model_cards

    @property
    def models(self) -> frozenset[str]:
        """The names of all models that it serves, adapters included."""
        return self._models

    @property
    def adapters(self) -> frozenset[str]:
        """The names that are LoRA adapters: cards with a parent."""
        return self._adapters

    @property
    def max_model_len(self) -> float:
        """Its context: how many tokens a prompt and its answer may have together; infinite while unknown."""
        return self._max_model_len

    @property
    def unlisted(self) -> str | None:
        """Why its list of models could not be read last time, in words for `/status`; None if it could."""
        return self._unlisted

    def listed(self, cards: Sequence[ModelCard], now: float) -> None:
        """Its `/v1/models` lists `cards`: it serves them, but for those it is left out for (`denials`)."""
        self._unlisted = None
        self._lists([card for card in cards if not self.denials.left_out(card.id, now)])

    def lists_nothing_new(self, why: str) -> None:
        """Its list of models could not be read: the one before counts. `why`: in words for `/status`."""
        self._unlisted = why

    def lacks(self, model: str) -> None:
        """It answered 404 for a model: it counts as not serving it until its list is read again."""
        self._lists([card for card in self._model_cards if card.id != model])

    def _lists(self, cards: Sequence[ModelCard]) -> None:
        before, self._model_cards = self._model_cards, cards
        # Kept, since every decision reads them of every instance.
        self._models = frozenset(card.id for card in cards)
        self._adapters = frozenset(card.id for card in cards if card.parent)
        lengths = (card.max_model_len for card in cards)
        self._max_model_len = next((length for length in lengths if length is not None), math.inf)
        if cards != before:
            self.announce()

    # -- what its cache is known by -----------------------------------------------------------------------

    @property
    def sources(self) -> Mapping[int, SourceView]:
        """Its followed event sources by rank; empty if none are followed."""
        return self._sources

    @property
    def ranks(self) -> tuple[int, ...]:
        """The data-parallel ranks that legs can be sent to; rank 0 alone if the engine has told of none."""
        return self._ranks

    def index_state(self, rank: int) -> str:
        """How well the cache of a rank is known: `exact`, `partial` or `unknown`."""
        source = self._sources.get(rank)
        return source.state if source is not None else "unknown"

    def why_unheard(self, rank: int) -> str | None:
        """Why no KV events are heard of a rank, in words for `/status`; None if they are."""
        return self._silent.get(rank, self._unheard)

    def is_followed(self, sources: Mapping[int, SourceView]) -> None:
        """Its event sources by rank are `sources` from now on."""
        self._sources = sources
        self._ranks = tuple(sorted(sources)) or (0,)
        self.is_otherwise()

    def told_sources(self, why_none: str | None) -> None:
        """It was asked where it publishes its events. `why_none`: why it publishes nowhere, in words for
        `/status`; None if it does.
        """
        self._unheard = why_none

    def fell_silent(self, rank: int, why: str) -> bool:
        """Nothing publishes for a rank. `why`: in words for `/status`. True if that was not known before."""
        if rank in self._silent:
            return False
        self._silent[rank] = why
        return True

    def is_heard(self, rank: int) -> None:
        """The rank is not silent: something publishes for it, or nothing should."""
        self._silent.pop(rank, None)

    # -- what legs have shown -----------------------------------------------------------------------------

    @property
    def last_failure(self) -> str | None:
        """What went wrong with the last leg that failed there, in words."""
        return self._last_failure

    def leg_failed(self, why: str) -> None:
        """A leg failed there. `why`: in words."""
        self._last_failure = why

    def has_pulled_from(self, engine_id: str | None) -> bool:
        """Whether it has fetched blocks from a prefill engine process since it came up, and is connected to
        it.
        """
        return engine_id in self._pulled_from

    @property
    def peers(self) -> int:
        """How many prefill engine processes it has fetched blocks from."""
        return len(self._pulled_from)

    def pulled_from(self, engine_id: str) -> None:
        """It has fetched blocks from a prefill engine process."""
        self._pulled_from.add(engine_id)

    # -- what runs there ----------------------------------------------------------------------------------

    @property
    def gauges(self) -> Gauges | None:
        """What its engine told last of all that runs there, whoever sent it; None if it was not asked, or has
        gone down since.
        """
        return self._gauges

    def told_gauges(self, gauges: Gauges) -> None:
        """Its engine has told what runs there."""
        self._gauges = gauges

    def load_tokens(self, phase: Phase, rank: int) -> int:
        """Outstanding tokens of a rank's running legs; of both phases where one instance does both."""
        return self.load.tokens(phase, rank)

    def weight_tokens(self, phase: Phase, rank: int) -> int:
        """What a rank's running legs take of its limit; of both phases where one instance does both."""
        return self.load.weight_tokens(phase, rank)

    def running_legs(self, phase: Phase | None = None) -> int:
        """How many legs are running, of one phase or of both."""
        return self.load.legs(phase)

    def running_tokens(self) -> int:
        """Outstanding tokens of all running legs."""
        return self.load.all_tokens()

    def running_prefill_tokens(self) -> int:
        """Tokens of the prompts of all running legs that are still to be computed."""
        return self.load.all_prefill_tokens()

    def running_weight_tokens(self) -> int:
        """What all running legs take of the limits of the ranks."""
        return self.load.all_weight_tokens()


def _nobody_listens() -> None:
    """What an instance that is in no fleet calls."""
