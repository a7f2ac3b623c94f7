"""What was learned of the engines' speed, for each model that they served, and where responses are stored is
on disk at most one interval late, whole or as it was before; a file that cannot be read is set aside, and
what was in it is learned anew.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from proxy.snapshots.directory import StateDirectory, UnusableFileError
from proxy.snapshots.disk_thread import DiskThread
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

LAST_S = 2.0
"""Seconds that the last writing may take when kvproxy stops."""


class KeptFile(NamedTuple):
    """A file of the state directory that is written as a whole."""

    words: str
    """What is in it, for the log."""
    read: Callable[[], bytes | None]
    write: Callable[[bytes], None]
    set_aside: Callable[[], str]

    @classmethod
    def learned(cls, directory: StateDirectory, model: str) -> "KeptFile":
        """What was learned of engines that serve a model: what others take who serve another is kept
        apart.
        """
        return cls(
            "what was learned of the engines' speed",
            partial(directory.read_learned, model),
            partial(directory.write_learned, model),
            partial(directory.set_learned_aside, model),
        )

    @classmethod
    def responses(cls, directory: StateDirectory) -> "KeptFile":
        """Where responses are stored."""
        words = "where responses are stored"
        return cls(words, directory.read_responses, directory.write_responses, directory.set_responses_aside)


class FileKeeper:
    """Reads what an earlier process knew, once, and writes what this one does."""

    def __init__(
        self,
        file: KeptFile,
        *,
        state: Callable[[], Any],
        restore: Callable[[Any], None],
        interval_s: float,
        last_s: float = LAST_S,
    ) -> None:
        """Reads the file; raises nothing. `state`: what is known now, as values of JSON; `restore` takes what
        it gave, and raises ValueError if it cannot be that. `interval_s`: seconds between two writings.
        """
        self._file = file
        self._state = state
        self._interval_s = interval_s
        self._last_s = last_s
        self._tasks = TaskOwner("kept file")
        self._thread = DiskThread()
        self._written = b""
        self._failed = False
        self.restored = self._read(restore)
        """Whether there was something to begin with."""

    def _read(self, restore: Callable[[Any], None]) -> bool:
        try:
            data = self._file.read()
            if data is None:
                return False
            restore(msgspec.json.decode(data))
        except OSError as error:
            log.warning("%s cannot be read: %s", self._file.words, error.strerror)
            return False
        except (UnusableFileError, ValueError, RecursionError) as error:
            self._set_aside(error)
            return False
        self._written = data
        return True

    def _set_aside(self, why: Exception) -> None:
        try:
            aside = self._file.set_aside()
        except OSError as error:
            aside = f"nothing ({error.strerror})"
        log.warning("%s was set aside as %s: %s", self._file.words, aside, why)

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
            log.warning("%s is not on disk: it does not answer", self._file.words)
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
            await loop.run_in_executor(self._thread, self._file.write, data)
        except (OSError, msgspec.MsgspecError, TypeError, ValueError) as error:
            if not self._failed:
                why = error.strerror if isinstance(error, OSError) else error
                log.warning("%s cannot be written: %s", self._file.words, why)
            self._failed = True
            return
        self._written, self._failed = data, False
