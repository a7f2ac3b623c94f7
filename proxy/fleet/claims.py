"""A claim counts on its instance from the decision until its leg has ended, and never after."""

from types import TracebackType
from typing import Self

from proxy.fleet.instance import Instance
from proxy.phases import Phase


class Claim:
    """The claim of one leg on a rank of an instance; it ends once, by `end()` or with a `with` block."""

    __slots__ = ("_running", "_trial", "instance", "phase", "rank", "tokens", "weight_tokens")

    def __init__(
        self, instance: Instance, rank: int, phase: Phase, tokens: int, weight_tokens: int | None = None
    ) -> None:
        """`tokens`: what it adds to the load of the rank; `weight_tokens`: what it takes of the rank's limit,
        None for as much.
        """
        self.instance = instance
        self.rank = rank
        self.phase = phase
        self.tokens = tokens
        self.weight_tokens = tokens if weight_tokens is None else weight_tokens
        self._running = True
        self._trial = instance.breaker.begin_leg()
        instance.load.count(phase, rank, 1, tokens, self.weight_tokens)

    def end(self) -> None:
        """Stop counting. A second call does nothing."""
        if self._running:
            self._running = False
            instance = self.instance
            if self._trial:
                instance.breaker.end_leg(self._trial)
            instance.load.count(self.phase, self.rank, -1, -self.tokens, -self.weight_tokens)
            instance.freed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
