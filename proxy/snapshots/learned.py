"""What was learned of the engines' speed is on disk at most one interval late, whole or as it was before, for
each model that they served; a file that cannot be read is set aside, and it is learned anew.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from proxy.snapshots.directory import StateDirectory, UnusableFileError
from proxy.snapshots.disk_thread import DiskThread
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

LAST_S = 2.0
"""Seconds that the last writing may take when kvproxy stops."""


class LearnedKeeper:
    """Reads what an earlier process has learned, once, and writes what this one has."""

    def __init__(
        self,
        directory: StateDirectory,
        model: str,
        *,
        state: Callable[[], Any],
        restore: Callable[[Any], None],
        interval_s: float,
        last_s: float = LAST_S,
    ) -> None:
        """Reads the directory; raises nothing. `model`: what the engines serve: what others take who serve
        another is kept apart. `state`: what is known now, as values of JSON; `restore` takes what it gave,
        and raises ValueError if it cannot be that. `interval_s`: seconds between two writings.
        """
        self._directory = directory
        self._model = model
        self._state = state
        self._interval_s = interval_s
        self._last_s = last_s
        self._tasks = TaskOwner("learned")
        self._thread = DiskThread()
        self._written = b""
        self._failed = False
        self.restored = self._read(restore)
        """Whether there was something to begin with."""

    def _read(self, restore: Callable[[Any], None]) -> bool:
        try:
            data = self._directory.read_learned(self._model)
            if data is None:
                return False
            restore(msgspec.json.decode(data))
        except OSError as error:
            log.warning("what was learned of the engines' speed cannot be read: %s", error.strerror)
            return False
        except (UnusableFileError, ValueError, RecursionError) as error:
            self._set_aside(error)
            return False
        self._written = data
        return True

    def _set_aside(self, why: Exception) -> None:
        try:
            aside = self._directory.set_learned_aside(self._model)
        except OSError as error:
            aside = f"nothing ({error.strerror})"
        log.warning("what was learned of the engines' speed was set aside as %s: %s", aside, why)

    def start(self) -> None:
        """Begin to write at intervals."""
        self._tasks.create(self._keep_writing(), name="writing")

    async def close(self) -> None:
        """Write once more, if the disk answers. The directory MUST be closed after this."""
        await self._tasks.close()
        try:
            async with asyncio.timeout(self._last_s):
                await self._write()
        except TimeoutError:
            log.warning("what was learned of the engines' speed is not on disk: it does not answer")
        finally:
            self._thread.shutdown(wait=False)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._write()

    async def _write(self) -> None:
        """Write, if there is anything new. What cannot be written stays as it was, and is tried again."""
        try:
            data = msgspec.json.encode(self._state())
            if data == self._written:
                return
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._directory.write_learned, self._model, data)
        except (OSError, msgspec.MsgspecError, TypeError, ValueError) as error:
            if not self._failed:
                why = error.strerror if isinstance(error, OSError) else error
                log.warning("what was learned of the engines' speed cannot be written: %s", why)
            self._failed = True
            return
        self._written, self._failed = data, False
