"""A claim is counted while its leg runs and never after; an instance is usable only while it is up and was checked.

The fleet is state without I/O: the watch changes what is known of an instance, the director takes claims.
"""

import enum
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from proxy.config import InstanceSpec
from proxy.fleet.circuit import Breaker, Circuit
from proxy.fleet.denials import Denials
from proxy.fleet.fullness import Fullness
from proxy.fleet.model_card import ModelCard
from proxy.fleet.why import Why
from proxy.phases import Phase, Role

MOST_RANKS = 1024
"""Data-parallel ranks of one instance, numbered from 0; far more than one engine can have."""

T = TypeVar("T")


class _Announced(Generic[T]):
    """An attribute of an instance that the fleet's listeners hear of when it changes."""

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: "Instance", owner: type[object]) -> T:
        value: T = getattr(instance, self._name)
        return value

    def __set__(self, instance: "Instance", value: T) -> None:
        before = getattr(instance, self._name, None)
        setattr(instance, self._name, value)
        if value != before:
            instance.announce()


class Status(enum.StrEnum):
    """What the last check of an instance found."""

    STARTING = "starting"
    UP = "up"
    ASLEEP = "asleep"
    """It lives, and answers no requests until somebody wakes it."""
    DOWN = "down"
    REFUSED = "refused"
    """It is reachable and serves another model."""


_NOT_UP = {status: Why(status.value) for status in Status if status is not Status.UP}


class SourceView(Protocol):
    """What the rest needs to know of a followed event source."""

    @property
    def state(self) -> str:
        """`exact`, `partial` or `unknown`."""
        ...

    @property
    def epoch(self) -> int:
        """One more whenever all blocks were forgotten because another process may be behind the address."""
        ...


class Claim:
    """Work counted on one rank of an instance; ends once, at the end of a `with` block or by `end()`."""

    def __init__(
        self, instance: "Instance", rank: int, phase: Phase, tokens: int, weight_tokens: int | None = None
    ) -> None:
        """`weight_tokens`: what it takes of the limit of the rank; None: as much as it adds to the load."""
        self.instance = instance
        self.rank = rank
        self.phase = phase
        self.tokens = tokens
        self.weight_tokens = tokens if weight_tokens is None else weight_tokens
        self._running = True
        self._trial = instance.breaker.begin_leg()
        instance.count(phase, rank, 1, tokens, self.weight_tokens)

    def end(self) -> None:
        """Stop counting. A second call does nothing."""
        if self._running:
            self._running = False
            self.instance.breaker.end_leg(self._trial)
            self.instance.count(self.phase, self.rank, -1, -self.tokens, -self.weight_tokens)
            self.instance.announce()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Instance:
    """One engine and all that is known of it."""

    status = _Announced[Status]()
    draining = _Announced[bool]()
    """It gets no new legs, whatever its health."""
    model_cards = _Announced[Sequence[ModelCard]]()
    """What its `/v1/models` lists."""

    def __init__(self, spec: InstanceSpec, breaker: Breaker | None = None) -> None:
        self.announce: Callable[[], None] = _nobody_listens
        """Called when a claim on it ends, and when it may have become usable or unusable, better or worse."""
        self.spec = spec
        self.breaker = breaker or Breaker()
        self.fullness = Fullness()
        """What its engine has said of its room."""
        self.denials = Denials()
        """Which models it lists and has answered 404 for."""
        self.status = Status.STARTING
        self.draining = False
        self.why_down: str | None = None
        """What went wrong last, in words for `/status`; None while all is well."""
        self.unlisted: str | None = None
        """Why what it serves could not be read anew, in words for `/status`; None where it was."""
        self.last_failure: str | None = None
        """What went wrong with the last leg that failed there, in words."""
        self.model_cards = []
        self._measured: tuple[Sequence[ModelCard], float] = ([], math.inf)
        self.version: str | None = None
        """Its vLLM release, as `/version` told when it came up; None if that is not known."""
        self.sources: Mapping[int, SourceView] = {}
        """Its followed event sources by rank; empty if it publishes none or none are followed."""
        self.silent: dict[int, str] = {}
        """Why no KV events are heard from a rank, in words for `/status`; none for a rank that is heard."""
        self.unheard: str | None = None
        """Why no event source of it is known, in words for `/status`; None for one that is followed."""
        self.pulled_from: set[str] = set()
        """The prefill engine processes it has fetched blocks from since it came up: those it can talk to."""
        self._legs: Counter[tuple[Phase, int]] = Counter()
        self._tokens: Counter[tuple[Phase, int]] = Counter()
        self._weight: Counter[tuple[Phase, int]] = Counter()
        self.last_pick: dict[tuple[Phase, int], int] = {}

    @property
    def address(self) -> str:
        """`host:port`, its name."""
        return self.spec.address

    @property
    def role(self) -> Role:
        """What it does."""
        return self.spec.role

    @property
    def ranks(self) -> tuple[int, ...]:
        """The data-parallel ranks legs can be sent to; rank 0 alone if the engine told of none."""
        return tuple(sorted(self.sources)) or (0,)

    @property
    def models(self) -> frozenset[str]:
        """Every name it serves, adapters included."""
        return frozenset(card.id for card in self.model_cards)

    @property
    def adapters(self) -> frozenset[str]:
        """The names that are LoRA adapters: cards with a parent."""
        return frozenset(card.id for card in self.model_cards if card.parent)

    @property
    def max_model_len(self) -> float:
        """The tokens a prompt and its answer may have together; infinite while it has told of none."""
        cards, length = self._measured
        if cards is not self.model_cards:  # every decision asks every instance
            told = (card.max_model_len for card in self.model_cards)
            length = next((each for each in told if each is not None), math.inf)
            self._measured = self.model_cards, length
        return length

    @property
    def state(self) -> str:
        """What `/status` and `/explain` call it: `draining`, or what the last check found."""
        return "draining" if self.draining else self.status.value

    def takes(self, phase: Phase) -> bool:
        """Whether its role includes this phase."""
        return self.role in {Role.BOTH, Role(phase)}

    def why_unusable(self, model: str | None = None) -> Why | None:
        """Why no leg may go there now; None if one may."""
        if self.draining:
            return Why.DRAINING
        if self.status is not Status.UP:
            return _NOT_UP[self.status]
        return Why.NOT_SERVED if model is not None and model not in self.models else None

    def listed(self, cards: Sequence[ModelCard], now: float) -> None:
        """Its `/v1/models` lists these: it serves them, but for those it is left out for by its own 404s."""
        self.model_cards = [card for card in cards if not self.denials.left_out(card.id, now)]

    def says_full(self, now: float) -> bool:
        """Whether its engine has said that it has no room for one leg more, beside all that are meant for it."""
        return self.fullness.is_known and not self.fullness.room(now, self.running_legs())

    def index_state(self, rank: int) -> str:
        """How well the cache of a rank is known."""
        source = self.sources.get(rank)
        return source.state if source is not None else "unknown"

    def count(self, phase: Phase, rank: int, legs: int, tokens: int, weight_tokens: int) -> None:
        """Change what is in flight; for claims only."""
        self._legs[phase, rank] += legs
        self._tokens[phase, rank] += tokens
        self._weight[phase, rank] += weight_tokens

    def load_tokens(self, phase: Phase, rank: int) -> int:
        """Outstanding tokens of a rank's running legs; of both phases where one instance does both."""
        return sum(self._tokens[each, rank] for each in self._together(phase))

    def weight_tokens(self, phase: Phase, rank: int) -> int:
        """What a rank's running legs take of its limit; of both phases as `load_tokens`."""
        return sum(self._weight[each, rank] for each in self._together(phase))

    def _together(self, phase: Phase) -> tuple[Phase, ...]:
        return tuple(Phase) if self.role is Role.BOTH else (phase,)

    def running_legs(self, phase: Phase | None = None) -> int:
        """How many legs are running, of one phase or of both."""
        return sum(count for (each, _), count in self._legs.items() if phase in {None, each})

    def running_weight_tokens(self) -> int:
        """What all running legs take of the limits of the ranks."""
        return self._weight.total()

    def running_tokens(self) -> int:
        """Outstanding tokens of all running legs."""
        return self._tokens.total()


def _nobody_listens() -> None:
    """An instance that is in no fleet tells nobody."""


class Fleet:
    """The instances, by address, in the order they were added."""

    def __init__(self, *, decode_alone: bool = False) -> None:
        """`decode_alone`: with no usable prefill instance a decode instance serves requests whole."""
        self._decode_alone = decode_alone
        self._listeners: list[Callable[[], None]] = []
        self._instances: dict[str, Instance] = {}
        self.holds: Counter[str] = Counter()
        """How many prompts' blocks wait on each instance to be fetched or given back, by address."""
        self._picks = 0

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def get(self, address: str) -> Instance | None:
        """The instance at an address."""
        return self._instances.get(address)

    def add(self, instance: Instance) -> None:
        """Take an instance in. Raises ValueError if its address is taken."""
        if instance.address in self._instances:
            raise ValueError(f"{instance.address} is there already")
        self._instances[instance.address] = instance
        instance.announce = self._announce
        self._announce()

    def remove(self, address: str) -> Instance | None:
        """Let an instance go; its running claims end with their legs."""
        gone = self._instances.pop(address, None)
        self._announce()
        return gone

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a claim has ended, or an instance may have become usable or not, better or worse.

        It is called in the middle of that change: it must not raise, and should only take a note.
        """
        self._listeners.append(listener)

    def _announce(self) -> None:
        for listener in self._listeners:
            listener()

    def of(self, phase: Phase) -> list[Instance]:
        """The instances whose role includes a phase."""
        return [instance for instance in self if instance.takes(phase)]

    def set_aside(self, phase: Phase, now: float) -> dict[str, Why]:
        """The usable instances of a phase that get a leg only if no better one can take it, and why: one of `ASIDE`."""
        usable = [instance for instance in self.of(phase) if instance.why_unusable() is None]
        aside: dict[str, Why] = {}
        for instance in usable:
            breaker = instance.breaker
            if breaker.state is Circuit.OPEN:
                aside[instance.address] = Why.CIRCUIT_OPEN
            elif breaker.on_trial:
                aside[instance.address] = Why.HALF_OPEN
            elif breaker.failing(now):
                aside[instance.address] = Why.FAILING
            elif breaker.doubtful:
                aside[instance.address] = Why.NOT_ANSWERING
            elif (share := breaker.share(now)) < 1:
                others = [
                    other.running_legs()
                    for other in usable
                    if other is not instance and other.breaker.state is Circuit.CLOSED
                ]
                most = max(1, math.ceil(share * statistics.fmean(others))) if others else math.inf
                if instance.running_legs() >= most:
                    aside[instance.address] = Why.SLOW_START
        return aside

    def reopens_in_s(self, now: float) -> float | None:
        """How long until an instance that said it is full may have more room, if nothing happens; None if none will."""
        widen = (
            instance.fullness.widens_in_s(now, awaited=instance.running_legs() > instance.fullness.legs)
            for instance in self
        )
        return min((seconds for seconds in widen if seconds is not None), default=None)

    def serves(self, model: str) -> bool:
        """Whether any instance lists a model, up or not."""
        return any(model in instance.models for instance in self)

    def is_adapter(self, model: str) -> bool:
        """Whether the name is a LoRA adapter on some instance."""
        return any(model in instance.adapters for instance in self)

    @property
    def max_model_len(self) -> float:
        """The longest prompt any instance takes, in tokens; infinite if none tells."""
        told = [length for instance in self if (length := instance.max_model_len) < math.inf]
        return max(told, default=math.inf)

    @property
    def ready(self) -> bool:
        """Whether some request could be served: a usable instance for each phase that needs one."""
        return self.not_ready_because is None

    @property
    def started(self) -> bool:
        """Whether some request could be served, but for instances that somebody drained or sent to sleep."""
        alive = {Status.UP, Status.ASLEEP}
        return all(any(i.status in alive for i in self.of(phase)) for phase in self._needed)

    @property
    def _needed(self) -> tuple[Phase, ...]:
        return (Phase.DECODE,) if self._decode_alone else tuple(Phase)

    @property
    def missing(self) -> tuple[Phase, ...]:
        """The phases that no request can do without and no usable instance takes."""
        return tuple(p for p in self._needed if not any(i.why_unusable() is None for i in self.of(p)))

    @property
    def not_ready_because(self) -> str | None:
        """What no request can do without, and in which states it is, in words; None while one could be served."""
        return " and ".join(map(self._none_usable, self.missing)) or None

    def _none_usable(self, phase: Phase) -> str:
        states = Counter(instance.state for instance in self.of(phase))
        counts = ", ".join(f"{count} of {states.total()} {state}" for state, count in sorted(states.items()))
        return f"no usable {phase} instance" + (f" ({counts})" if counts else "")

    def claim(
        self, address: str, rank: int, phase: Phase, tokens: int, weight_tokens: int | None = None
    ) -> Claim:
        """Count a leg that is about to be sent. Raises KeyError if the instance is gone."""
        instance = self._instances[address]
        self._picks += 1
        instance.last_pick[phase, rank] = self._picks
        return Claim(instance, rank, phase, tokens, weight_tokens)
