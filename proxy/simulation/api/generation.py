"""Invariant: a choice ends once, with one reason: the engine's, or a stop string, of which the engine knows
nothing.

The front of the engine: what one HTTP request waits for. Each of its choices is a request of its own in the
engine; tokens come in as steps end, and pieces of text go out.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.simulation.api.errors import ApiError, EngineGoneError, GenerationFailedError
from proxy.simulation.engine.engine import EngineModel
from proxy.simulation.engine.request import Request, Sampling, Status
from proxy.simulation.engine.text import OutputText
from proxy.simulation.engine.tokenizer import END
from proxy.simulation.engine.values import Output


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to a choice."""

    choice: "Choice"
    text: str
    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    finish_reason: str | None
    generated: int
    """The number of tokens of the choice so far."""


@dataclass(slots=True)
class Choice:
    """One answer to one prompt."""

    index: int
    prompt: Sequence[int]
    request: Request
    text: OutputText
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    params: dict[str, Any] | None = None

    def feed(self, output: Output) -> Piece:
        """Add a token; after the last one `finish_reason` is set."""
        token = output.token
        if token is None:  # the engine has dropped the request
            self.finish_reason = output.request.status.value
            self.text.finish(stopped=False)
            return Piece(self, self.text.delta(), (), (), self.finish_reason, len(self.tokens))
        self.tokens.append(token)
        self.contexts.append(output.context)
        request = output.request
        stopped = self.text.add(token, check_stop=token > END and len(self.tokens) > self.sampling.min_tokens)
        if request.status.finished:
            self.finish_reason = request.status.value
            self.stop_reason = request.stop_reason
            self.params = output.params
        if stopped is not None:
            self.finish_reason, self.stop_reason = Status.STOPPED.value, stopped
        if self.finish_reason is not None:
            self.text.finish(stopped=stopped is not None)
        return Piece(
            self, self.text.delta(), (token,), (output.context,), self.finish_reason, len(self.tokens)
        )


class Generation:
    """All choices of one HTTP request, on one rank."""

    def __init__(self, model: EngineModel, choices: Sequence[Choice]) -> None:
        self.model = model
        self.choices = choices
        self._by_request = {choice.request.id: choice for choice in choices}
        self._open = len(choices)
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()
        self._error: ApiError | None = None
        self.streamed = False

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return self._open == 0

    def feed(self, output: Output) -> None:
        """A step has ended. A choice whose text is complete is taken out of the engine."""
        choice = self._by_request[output.request.id]
        if choice.finish_reason is not None:
            return
        if output.token is None and output.request.status is not Status.ABORTED:
            self.fail(GenerationFailedError())
            return
        piece = choice.feed(output)
        if choice.finish_reason is not None:
            self._open -= 1
            if not output.request.status.finished:
                self.model.abort(output.request.id)
                self.model.stats.finished[choice.finish_reason] += 1
        if self.streamed:
            self._pieces.append(piece)
        if self.streamed or self.done:
            self._news.set()

    def fail(self, error: ApiError | None = None) -> None:
        """The engine cannot finish this request, or is gone."""
        self._error = error or EngineGoneError()
        self._news.set()

    async def finished(self) -> None:
        """Wait for all choices. Raises ApiError if the engine failed."""
        while not self.done:
            await self._wait()

    async def pieces(self) -> list[Piece]:
        """Wait for text; empty after the last piece. Raises ApiError if the engine failed."""
        while not self._pieces:
            if self.done:
                return []
            await self._wait()
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    async def _wait(self) -> None:
        if self._error is None:
            await self._news.wait()
            self._news.clear()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """The client has gone: take all unfinished choices out of the engine."""
        for choice in self.choices:
            if choice.finish_reason is None:
                self.model.abort(choice.request.id)
