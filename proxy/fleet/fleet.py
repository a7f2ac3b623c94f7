"""The fleet is the set of instances, in the order in which they were added; listeners hear of every change.

State without I/O: the watch adds and removes instances, the gate and the director claim them.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Self

from proxy.fleet.circuit import Circuit
from proxy.fleet.claims import Claim, Timing
from proxy.fleet.instance import Instance, Status
from proxy.fleet.why import Why
from proxy.phases import Phase


class _Listed(NamedTuple):
    """What all instances together list. It is kept, since every request asks for it."""

    models: frozenset[str]
    adapters: frozenset[str]
    contexts: tuple[float, float]
    contexts_differ: bool

    @classmethod
    def of(cls, instances: Iterable[Instance]) -> Self:
        """What `instances` list together."""
        instances = tuple(instances)
        lengths = {length for i in instances if (length := i.max_model_len) < math.inf}
        longest = max(lengths, default=math.inf)
        all_told = all(i.max_model_len < math.inf for i in instances)
        return cls(
            models=frozenset(model for i in instances for model in i.models),
            adapters=frozenset(model for i in instances for model in i.adapters),
            contexts=(longest, longest if all_told else math.inf),
            contexts_differ=len({i.max_model_len for i in instances if i.model_cards}) > 1,
        )


class Fleet:
    """The instances, by address, in the order they were added."""

    def __init__(self, *, decode_alone: bool = False) -> None:
        """`decode_alone`: without a usable prefill instance, decode instances serve whole requests."""
        self._decode_alone = decode_alone
        self._listeners: list[Callable[[], None]] = []
        self._instances: dict[str, Instance] = {}
        self._by_phase: dict[Phase, tuple[Instance, ...]] = dict.fromkeys(Phase, ())
        """Kept, since every decision asks for it, and it changes only as instances are added or removed."""
        self._holds: Counter[str] = Counter()
        self._picks = 0
        self.changes = 0
        """How often the fleet has changed, apart from loads and health (`Breaker`, `Fullness`). Whatever was
        derived from the rest stays true while this number stays the same."""
        self._listed = _Listed.of(())
        self._listed_at = 0

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def get(self, address: str) -> Instance | None:
        """The instance at an address; None if there is none."""
        return self._instances.get(address)

    def add(self, instance: Instance) -> None:
        """Add an instance. Raises ValueError if there is one at its address."""
        if instance.address in self._instances:
            raise ValueError(f"{instance.address} is there already")
        self._instances[instance.address] = instance
        self._by_phase = self._sorted()
        instance.announce = self._announce
        instance.freed = self._tell
        instance.is_otherwise = self._is_otherwise
        self._announce()

    def remove(self, address: str) -> Instance | None:
        """Remove an instance and return it; None if there is none. Its claims go on until their legs end."""
        gone = self._instances.pop(address, None)
        self._by_phase = self._sorted()
        self._announce()
        return gone

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a claim has ended, or an instance may have become usable or unusable,
        better or worse.

        It is called in the middle of that change: it MUST NOT raise, and should only take a note.
        """
        self._listeners.append(listener)

    def _announce(self) -> None:
        self.changes += 1
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _is_otherwise(self) -> None:
        self.changes += 1

    @property
    def holds(self) -> Mapping[str, int]:
        """How many holds wait on each instance, by address; 0 for addresses that are missing."""
        return self._holds

    def hold_began(self, address: str) -> None:
        """A hold waits on the instance from now on."""
        self._holds[address] += 1

    def hold_ended(self, address: str) -> None:
        """A hold on the instance was fetched, released or stranded."""
        self._holds[address] -= 1

    def of(self, phase: Phase) -> tuple[Instance, ...]:
        """The instances whose role includes a phase."""
        return self._by_phase[phase]

    def _sorted(self) -> dict[Phase, tuple[Instance, ...]]:
        return {phase: tuple(instance for instance in self if instance.takes(phase)) for phase in Phase}

    def set_aside(self, phase: Phase, now: float) -> dict[str, Why]:
        """The usable instances of a phase that get a leg only if no better one can take it, and why: a word
        of `ASIDE`.
        """
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
        """Seconds until an instance that said it is full may have more room by the lapse of time alone; None
        if none will.
        """
        widen = (
            instance.fullness.widens_in_s(now, awaited=instance.running_legs() > instance.fullness.legs)
            for instance in self
        )
        return min((seconds for seconds in widen if seconds is not None), default=None)

    def left_alone_s(self, now: float) -> float:
        """Seconds until the first instance that said it is full may be tried again; 0 if one may be now."""
        full = (i.fullness.left_s(now) for i in self if i.fullness.most(now) is not None)
        return min(full, default=0.0)

    def serves(self, model: str) -> bool:
        """Whether any instance, up or not, serves a model."""
        return model in self._lists().models

    def is_adapter(self, model: str) -> bool:
        """Whether the name is a LoRA adapter on some instance."""
        return model in self._lists().adapters

    @property
    def max_model_len(self) -> float:
        """The longest context of any instance, in tokens; infinite if none has told its own."""
        return self.contexts[0]

    @property
    def contexts(self) -> tuple[float, float]:
        """The longest context that any instance has told (infinite if none has), and the longest that any
        instance may have (infinite unless all have told theirs).
        """
        return self._lists().contexts

    @property
    def contexts_differ(self) -> bool:
        """Whether instances have told contexts of different lengths: a prompt may then fit only into one."""
        return self._lists().contexts_differ

    def _lists(self) -> "_Listed":
        if self._listed_at != self.changes:
            self._listed, self._listed_at = _Listed.of(self), self.changes
        return self._listed

    @property
    def ready(self) -> bool:
        """Whether some request could be served: there is a usable instance for each phase that needs one."""
        return self.not_ready_because is None

    @property
    def started(self) -> bool:
        """Whether some request could be served if no instance were drained or asleep."""
        alive = {Status.UP, Status.ASLEEP}
        return all(any(i.status in alive for i in self.of(phase)) for phase in self._needed)

    @property
    def _needed(self) -> tuple[Phase, ...]:
        return (Phase.DECODE,) if self._decode_alone else tuple(Phase)

    @property
    def missing(self) -> tuple[Phase, ...]:
        """The phases that every request needs and no usable instance takes."""
        return tuple(p for p in self._needed if not any(i.why_unusable() is None for i in self.of(p)))

    @property
    def not_ready_because(self) -> str | None:
        """Why no request could be served, in words: the phases without a usable instance, and the states of
        their instances. None if one could be.
        """
        return " and ".join(map(self._none_usable, self.missing)) or None

    def _none_usable(self, phase: Phase) -> str:
        states = Counter(instance.state for instance in self.of(phase))
        counts = ", ".join(f"{count} of {states.total()} {state}" for state, count in sorted(states.items()))
        return f"no usable {phase} instance" + (f" ({counts})" if counts else "")

    def claim(
        self,
        address: str,
        rank: int,
        phase: Phase,
        tokens: int,
        weight_tokens: int | None = None,
        prefill_tokens: int | None = None,
        timing: Timing | None = None,
    ) -> Claim:
        """Claim a rank for a leg that is about to be sent; the arguments are those of `Claim`.

        Raises KeyError if the instance was removed.
        """
        instance = self._instances[address]
        self._picks += 1
        instance.load.on(phase, rank).last_pick = self._picks  # the claim counts it as a change
        return Claim(instance, rank, phase, tokens, weight_tokens, prefill_tokens, timing)
