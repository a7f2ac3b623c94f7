"""What is loaded for a rank is, key for key, what was written for it; any other file is set aside, and
reported.

Loading does not show that it is still true: the rank's subscriber finds that out.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from kvevents import Checkpoint, PrefixIndex, Resumed
from kvevents.snapshot import Snapshot, SnapshotError, decode
from kvevents.subscriber import Subscriber, in_slices
from proxy.happenings import SnapshotEnded, Tell
from proxy.snapshots.directory import StateDirectory, UnusableFileError

log = logging.getLogger(__name__)

READ_S = 10.0
"""Seconds that a rank waits for its snapshot: on a disk that hangs, all ranks begin with nothing."""

_SILENT = "the disk does not answer"

_WHY = {
    "new_process": "the engine was restarted meanwhile",
    "gap": "the engine's replay buffer does not reach back to it",
    "unverified": "the engine's replay did not answer",
    "rebuild": "it was found to be wrong",
}


class Found:
    """What was found on disk for a rank when it was followed."""

    def __init__(self) -> None:
        self.checkpoint: Checkpoint | None = None
        self.blocks = 0
        self.size_bytes = 0
        self.why: str | None = None
        """Why a snapshot could not be loaded; None if it was loaded, or there was none."""

    def why_not(self, subscriber: Subscriber) -> str | None:
        """Why the snapshot does not count, in words for `/status`; None if it does, or there was none."""
        if subscriber.resumed is Resumed.STALE:
            return _WHY.get(subscriber.stale_because or "", subscriber.stale_because)
        return self.why


class Restorer:
    """Loads snapshots into an index, one at a time, so that those of a hundred ranks are not in memory at
    once.
    """

    def __init__(
        self,
        directory: StateDirectory,
        index: PrefixIndex,
        made_with: bytes,
        tell: Tell,
        thread: Executor,
        *,
        read_s: float = READ_S,
    ) -> None:
        """`made_with`: the fingerprint of the index's keys. `thread`: reads the directory. `read_s`: seconds
        that a rank waits for it.
        """
        self._directory = directory
        self._index = index
        self._made_with = made_with
        self._tell = tell
        self._thread = thread
        self._read_s = read_s
        self._turn = asyncio.Lock()
        self._reading: asyncio.Future[tuple[Snapshot, int] | None] | None = None

    async def load(self, instance: str, rank: int, tell: Callable[[Found], None]) -> Checkpoint | None:
        """Load a rank's snapshot, if there is one, and call `tell` with what was found. Raises nothing."""
        async with self._turn:
            found = Found()
            snapshot = await self._look(instance, rank, found)
            if snapshot is not None and await in_slices(self._index.loading(instance, rank, snapshot.blocks)):
                found.checkpoint, found.blocks = snapshot.checkpoint, snapshot.blocks.hashes
        tell(found)
        return found.checkpoint

    async def _look(self, instance: str, rank: int, found: Found) -> Snapshot | None:
        try:
            read = await self._read_in_time(instance, rank)
        except SnapshotError as error:  # logged when the file was set aside
            found.why = str(error)
        except TimeoutError:
            found.why = _SILENT
            log.warning("the snapshot of %s rank %d could not be read: %s", instance, rank, found.why)
        except OSError as error:
            found.why = f"it could not be read: {error.strerror or type(error).__name__}"
            log.warning("the snapshot of %s rank %d: %s", instance, rank, found.why)
        else:
            if read is None:
                return None
            snapshot, found.size_bytes = read
            return snapshot
        self._tell(SnapshotEnded(instance, rank, "broken"))
        return None

    async def _read_in_time(self, instance: str, rank: int) -> tuple[Snapshot, int] | None:
        async with asyncio.timeout(self._read_s):
            if self._reading is not None and not self._reading.done():
                raise TimeoutError  # a read before this one timed out, and has not ended yet
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(self._thread, self._read, instance, rank)
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
            return await asyncio.shield(self._reading)

    def _read(self, instance: str, rank: int) -> tuple[Snapshot, int] | None:
        try:
            data = self._directory.read(instance, rank)
            if data is None:
                return None
            return _of(instance, rank, decode(data, self._made_with)), len(data)
        except (SnapshotError, UnusableFileError) as error:
            aside = self._directory.set_aside(instance, rank)
            log.warning("the snapshot of %s rank %d was set aside as %s: %s", instance, rank, aside, error)
            raise SnapshotError(str(error)) from None


def _of(instance: str, rank: int, snapshot: Snapshot) -> Snapshot:
    if (snapshot.instance, snapshot.rank) != (instance, rank):
        raise SnapshotError(f"it is one of {snapshot.instance} rank {snapshot.rank}")
    return snapshot
