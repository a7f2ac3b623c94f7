"""A claim counts on its instance from the decision until its leg has ended, and never after; as work of
prefill it counts until its prompt is computed, and its answer grows from its first token on.
"""

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from proxy.fleet.instance import Instance
from proxy.fleet.load import RankLoad
from proxy.fleet.work import Answer, Computing
from proxy.phases import Phase


class Timing(NamedTuple):
    """How long a leg is predicted to take."""

    clock: Callable[[], float]
    """In seconds, as of `Work`."""
    work_ms: float
    """To compute what it computes of its prompt; 0 if it computes nothing."""
    told: bool = True
    """Whether it is seen when the prompt is computed: by a first token, or the answer of a prefill leg."""
    adapter: str | None = None
    """The LoRA adapter that it is for; None for the model itself."""
    prompts: int = 1
    """How many it has."""
    sequences: int = 1
    """How many answers it generates at once, to all of these together."""


class _Timed:
    """What a claim with a `Timing` has put on its rank."""

    __slots__ = ("_adapter", "_answer", "_clock", "_computing", "_load", "_work")

    def __init__(self, load: RankLoad, phase: Phase, prompt_tokens: int, timing: Timing) -> None:
        now = timing.clock()
        self._load = load
        self._work = work = load.work
        self._clock = timing.clock
        self._answer: Answer | None = None
        if phase is Phase.DECODE:
            contexts = prompt_tokens * timing.sequences // timing.prompts
            self._answer = work.takes(contexts, timing.sequences)
        self._computing: Computing | None = None
        if timing.work_ms > 0:
            self._computing = work.computes(timing.work_ms, now, told=timing.told, answer=self._answer)
        self._adapter: tuple[str, float] | None = None
        if phase is Phase.DECODE and timing.adapter is not None:
            self._adapter = timing.adapter, now
            load.adapters.begin(timing.adapter)

    def computed(self) -> None:
        now = self._clock()
        computing, self._computing = self._computing, None
        if computing is not None:
            if computing.told:
                self._work.computed(computing, now)
            else:
                self._work.left(computing, now)
        if self._answer is not None:
            self._work.generates(self._answer, now)

    def end(self, *, served: bool) -> None:
        """The leg is over; `served`: its end shows that its prompt was computed."""
        if served:
            self.computed()
        elif self._computing is not None:
            self._work.left(self._computing, self._clock())
            self._computing = None
        if self._answer is not None:
            self._work.answered(self._answer)
        if self._adapter is not None:
            adapter, began = self._adapter
            self._load.adapters.end(adapter, self._clock() - began)


class Claim:
    """The claim of one leg on a rank of an instance; it ends once, by `end()` or with a `with` block."""

    __slots__ = (
        "_running",
        "_timed",
        "_trial",
        "instance",
        "phase",
        "prefill_tokens",
        "rank",
        "tokens",
        "weight_tokens",
    )

    def __init__(
        self,
        instance: Instance,
        rank: int,
        phase: Phase,
        tokens: int,
        weight_tokens: int | None = None,
        prefill_tokens: int | None = None,
        timing: Timing | None = None,
    ) -> None:
        """`tokens`: what it adds to the load of the rank; `weight_tokens`: what it takes of the rank's limit,
        None for as much; `prefill_tokens`: how many tokens of its prompt the leg computes, None for all those
        of a prefill leg, and none of a decode leg; `timing`: how long it is predicted to take, None where
        nobody wants to know.
        """
        self.instance = instance
        self.rank = rank
        self.phase = phase
        self.tokens = tokens
        self.weight_tokens = tokens if weight_tokens is None else weight_tokens
        if prefill_tokens is None:
            prefill_tokens = tokens if phase is Phase.PREFILL else 0
        self.prefill_tokens = prefill_tokens
        """How many tokens of its prompt are still to be computed."""
        self._running = True
        self._trial = instance.breaker.begin_leg()
        instance.load.count(phase, rank, 1, tokens, self.weight_tokens, prefill_tokens)
        self._timed: _Timed | None = None
        if timing is not None:
            self._timed = _Timed(instance.load.on(phase, rank), phase, tokens, timing)

    def computed(self) -> None:
        """The prompt is computed, or fetched: what the leg does from now on is no work of prefill, and its
        answer grows. A second call does nothing, nor one after the end.
        """
        if self._running and self.prefill_tokens:
            self.instance.load.computed(self.phase, self.rank, self.prefill_tokens)
            self.prefill_tokens = 0
        if self._running and self._timed is not None:
            self._timed.computed()

    def end(self) -> None:
        """Stop counting. A second call does nothing."""
        if self._running:
            self._running = False
            instance = self.instance
            if self._trial:
                instance.breaker.end_leg(self._trial)
            instance.load.count(
                self.phase, self.rank, -1, -self.tokens, -self.weight_tokens, -self.prefill_tokens
            )
            if self._timed is not None:
                self._timed.end(served=self.phase is Phase.PREFILL)
            instance.freed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
