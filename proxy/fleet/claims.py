"""A claim counts on its instance from the decision until its leg has ended, and never after; as work of
prefill it counts until its prompt is computed.
"""

from types import TracebackType
from typing import Self

from proxy.fleet.instance import Instance
from proxy.phases import Phase


class Claim:
    """The claim of one leg on a rank of an instance; it ends once, by `end()` or with a `with` block."""

    __slots__ = (
        "_running",
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
    ) -> None:
        """`tokens`: what it adds to the load of the rank; `weight_tokens`: what it takes of the rank's limit,
        None for as much; `prefill_tokens`: how many tokens of its prompt the leg computes, None for all those
        of a prefill leg, and none of a decode leg.
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

    def computed(self) -> None:
        """The prompt is computed: what the leg does from now on is no work of prefill. A second call does
        nothing, nor one after the end.
        """
        if self._running and self.prefill_tokens:
            self.instance.load.computed(self.phase, self.rank, self.prefill_tokens)
            self.prefill_tokens = 0

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
            instance.freed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
