"""A reading sees the index exactly as it is at a checkpoint: no batch is applied before the reading has
ended.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from kvevents.source_events import Checkpoint

T = TypeVar("T")


class _Reading(Generic[T]):
    def __init__(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> None:
        self.steps = steps
        self.answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()


class Readings:
    """The readings that wait for a checkpoint of one subscriber, in the order they were asked for."""

    def __init__(self) -> None:
        self._waiting: list[_Reading[Any]] = []

    @property
    def waiting(self) -> bool:
        """Whether any reading waits."""
        return bool(self._waiting)

    def add(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> "asyncio.Future[T | None]":
        """A future for what `steps` returns, or for None if there is nothing to read."""
        reading = _Reading(steps)
        self._waiting.append(reading)
        return reading.answer

    async def serve(self, checkpoint: Checkpoint | None) -> None:
        """Carry out all readings; the caller applies no batch meanwhile. Without a checkpoint each gets
        None.
        """
        while self._waiting:
            reading = self._waiting[0]
            answer = await in_slices(reading.steps(checkpoint)) if checkpoint is not None else None
            self._waiting.pop(0)
            if not reading.answer.done():
                reading.answer.set_result(answer)

    def end(self) -> None:
        """Give None to all readings that wait: there will be no checkpoint any more."""
        for reading in self._waiting:
            if not reading.answer.done():
                reading.answer.set_result(None)
        self._waiting.clear()


async def in_slices(steps: Generator[None, None, T]) -> T:
    """What the generator returns. The event loop runs other tasks after each of its pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(0)
