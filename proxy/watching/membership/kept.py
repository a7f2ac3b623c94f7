"""A change over /instances/* is on disk before it is answered, and a disk that fails prevents no change."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from proxy.config import InstanceSpec
from proxy.snapshots.directory import StateDirectory, UnusableFileError
from proxy.snapshots.disk_thread import DiskThread
from proxy.watching.membership import members
from proxy.watching.membership.members import NOTHING, MembersError, Present, Restored

log = logging.getLogger(__name__)

WRITE_S = 5.0
"""Seconds that a change waits for the disk."""


class Kept:
    """Reads which instances there were, once, and writes which there are, whenever that changes."""

    def __init__(
        self,
        directory: StateDirectory,
        model: str,
        flags: Sequence[InstanceSpec],
        why_not: Callable[[InstanceSpec], str | None],
        *,
        write_s: float = WRITE_S,
    ) -> None:
        """`flags`: the instances that the command line names. Reads the directory; raises nothing.

        `why_not`: why an instance that no flag names is not allowed, None if it is. `write_s`: as the
        constant of this name.
        """
        self._directory = directory
        self._model = model
        self._flags = flags
        self._write_s = write_s
        self._thread = DiskThread()
        self._writing: Future[None] | None = None
        self.restored = self._read(why_not)

    def _read(self, why_not: Callable[[InstanceSpec], str | None]) -> Restored:
        try:
            data = self._directory.read_instances()
            return NOTHING if data is None else self._of(data, why_not)
        except OSError as error:
            log.warning("the instances that were added or drained before cannot be read: %s", error.strerror)
        except (MembersError, UnusableFileError) as error:
            self._set_aside(error)
        return NOTHING

    def _of(self, data: bytes, why_not: Callable[[InstanceSpec], str | None]) -> Restored:
        return members.beside(members.decode(data, self._model), self._flags, why_not)

    def _set_aside(self, why: Exception) -> None:
        try:
            aside = self._directory.set_instances_aside()
        except OSError as error:
            aside = f"nothing ({error.strerror})"
        log.warning("what was kept of added and drained instances was set aside as %s: %s", aside, why)

    def changed(self, present: Iterable[Present]) -> None:
        """These instances are there now, and are to be there after a restart. Writing begins at once."""
        data = members.encode(members.differing(self._model, self._flags, present))
        try:
            self._writing = self._thread.submit(self._write, data)
        except RuntimeError:  # kvproxy ends, and may have released the directory
            log.warning("a change of the instances came too late to be kept")

    def _write(self, data: bytes) -> None:
        try:
            self._directory.write_instances(data)
        except OSError as error:
            log.warning(
                "the instances could not be written, so a restart forgets the last change: %s", error.strerror
            )

    async def written(self) -> None:
        """Wait until the last change is on disk, `write_s` at most. Raises nothing."""
        if self._writing is None:
            return
        _, late = await asyncio.wait({asyncio.wrap_future(self._writing)}, timeout=self._write_s)
        if late:
            log.warning("the instances are not on disk yet: it does not answer")

    async def close(self, *, alone: bool) -> None:
        """Accept no more changes; earlier ones are written first, if the disk answers.

        `alone`: nothing else uses the directory, so it is released as well.
        """
        if alone:
            self._writing = self._thread.submit(self._directory.close)
        self._thread.shutdown(wait=False)
        await self.written()
