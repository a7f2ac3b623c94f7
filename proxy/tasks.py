"""Every background task has a name and one owner, and the owner ends only after its tasks have."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class TaskOwner:
    """Creates, names, watches and finally ends tasks. A task that fails is logged, never lost."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    def create(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start `coro` as a task of this owner; `name`: for the log."""
        task = asyncio.get_running_loop().create_task(coro, name=f"{self._name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no task is left, for `timeout_s` seconds at most. False if some are left."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._tasks:  # a task that ends may have started another
                    await asyncio.wait(set(self._tasks))
        except TimeoutError:
            pass
        return not self._tasks

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
