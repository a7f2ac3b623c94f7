"""A check asks one engine whether it lives and what it serves; it takes no claim and changes nothing.

What may be due to kvproxy itself (no socket left, an event loop that stood still) is the finding NOTHING.
"""

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from proxy.errors import ConnectFailedError, LegBrokenError, LegError, OurTroubleError, TooLongError
from proxy.fleet import ModelCard
from proxy.logs import listed
from proxy.upstream.engine_api.about import HEALTH, VERSION, health
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.models import MODELS

WRONG_PORT = "is this vLLM's --port?"

STALLED = 1.5
"""A check without an answer that lasted more than this many times its timeout was held up by this process,
not by the engine."""


class Finding(enum.StrEnum):
    """What a check found."""

    ANSWERED = "answered"
    UNREACHABLE = "unreachable"
    """No connection came about."""
    UNHEALTHY = "unhealthy"
    """The engine answers that it cannot serve: vLLM answers 503 when its core is dead."""
    MISSED = "missed"
    """The engine did not answer, and sent nothing else meanwhile."""
    BUSY = "busy"
    """The engine did not answer, but legs got something from it meanwhile."""
    NOTHING = "nothing"
    """The engine could not be asked."""


class Check(NamedTuple):
    """A finding, and its words."""

    finding: Finding
    words: str = ""
    """What went wrong, for logs and `/status`."""


class CheckClient(Asker, Protocol):
    """The part of the engine client that checks need."""

    def heard_at(self, instance: str) -> float | None:
        """When an engine last sent something, by the checker's clock; None if never."""
        ...


class Checker:
    """Checks engines. Times are seconds of the clock that it is given."""

    def __init__(self, engines: CheckClient, clock: Callable[[], float], *, timeout_s: float) -> None:
        self._engines = engines
        self._clock = clock
        self._timeout_s = timeout_s

    async def alive(self, instance: str) -> Check:
        """Whether the engine answers `/health`. Raises nothing."""
        begun_at = self._clock()
        try:
            status = await health(self._engines, instance, self._timeout_s)
        except TooLongError as error:
            return Check(Finding.UNHEALTHY, _with_hint(error.words))
        except LegError as error:
            return self._without_answer(instance, error, begun_at)
        if status >= 500:
            return Check(Finding.UNHEALTHY, f"status {status} for {HEALTH}")
        return Check(Finding.ANSWERED)

    async def served(self, instance: str) -> Check | list[ModelCard]:
        """The models that the engine lists, or the finding if it does not. Raises nothing."""
        begun_at = self._clock()
        try:
            cards = await self.cards(instance, self._timeout_s)
        except LegError as error:
            return self._without_answer(instance, error, begun_at)
        return cards

    async def cards(self, instance: str, timeout_s: float) -> list[ModelCard]:
        """The models that the engine lists. Raises LegError."""
        try:
            return await ask(self._engines, instance, MODELS, timeout_s)
        except ConnectFailedError:
            raise
        except LegError as error:
            raise LegBrokenError(instance, _with_hint(error.words)) from error

    async def version(self, instance: str) -> str | None:
        """The engine's vLLM release; None if it does not say. Raises nothing."""
        try:
            return await ask(self._engines, instance, VERSION, self._timeout_s)
        except LegError:
            return None

    def _without_answer(self, instance: str, error: LegError, begun_at: float) -> Check:
        if isinstance(error, OurTroubleError):
            return Check(Finding.NOTHING, error.words)
        if isinstance(error, ConnectFailedError):
            return Check(Finding.UNREACHABLE, error.words)
        if self._clock() - begun_at > self._timeout_s * STALLED:
            return Check(Finding.NOTHING, "kvproxy was held up itself")
        heard_at = self._engines.heard_at(instance)
        if heard_at is not None and heard_at > begun_at:
            return Check(Finding.BUSY, error.words)
        return Check(Finding.MISSED, _with_hint(error.words))


def _with_hint(words: str) -> str:
    """An engine that answers so is no vLLM: the words with a hint at that."""
    hints = ("not valid HTTP", "not JSON", "not a list of models", "status 404", "longer than")
    wrong = WRONG_PORT not in words and any(hint in words for hint in hints)
    return f"{words}; {WRONG_PORT}" if wrong else words


def wrong_model(cards: Sequence[ModelCard], model: str) -> str | None:
    """What an engine serves instead of `model`, in words; None if it serves `model`."""
    served = [card.id for card in cards if not card.parent]
    if model in served:
        return None
    return f"serves {listed(served) or 'no model'}, not {model!r} (--model)"
