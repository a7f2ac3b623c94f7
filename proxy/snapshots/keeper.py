"""The snapshot of a rank whose source is heard is at most one interval old, and none is written without need.

The rank's own subscriber copies it, in slices between two batches; what takes longer is done in a thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Generator
from functools import partial
from typing import Any, TypeVar

from kvevents import Checkpoint, PrefixIndex, Resumed
from kvevents.snapshot import Snapshot, encode, fingerprint
from kvevents.subscriber import Resume, Subscriber
from proxy.happenings import SnapshotEnded, Tell
from proxy.logs import Occasionally
from proxy.snapshots.directory import StateDirectory
from proxy.snapshots.disk_thread import DiskThread
from proxy.snapshots.restorer import READ_S, Found, Restorer
from proxy.snapshots.shown import SnapshotShown, StateDirShown
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

MAX_SHARE = 0.1
"""The largest share of time for writing, whatever the interval: a fleet that has very much cached is written
less often, rather than slowed down."""

LAST_S = 5.0
"""Seconds that the last writing may take when kvproxy stops: a hundred ranks of 50 000 blocks take two."""

UNCLAIMED_S = 3600.0
"""Seconds for which snapshots are kept of instances that are not in the fleet.

Instances that are added at run time may be added late after a restart. After this time no engine's replay
buffer reaches back to a snapshot."""

WARN_EVERY_S = 60.0

_T = TypeVar("_T")
_Rank = tuple[str, int]


class _Kept:
    """A rank that is followed, and its snapshot."""

    def __init__(self, subscriber: Subscriber, now: float) -> None:
        self.subscriber = subscriber
        self.found = Found()
        self.followed_at = now
        self.epoch = 0
        """The subscriber's epoch that the snapshot, if there is one, belongs to; in a later epoch it is
        wrong."""
        self.written: Checkpoint | None = None
        self.current_at: float | None = None
        """When the snapshot was last all that is known of the rank."""
        self.size_bytes = 0
        self.blocks = 0
        self.failed: str | None = None

    def start_over(self, epoch: int) -> None:
        """There is no snapshot on disk any more."""
        self.written = self.current_at = self.failed = None
        self.size_bytes = self.blocks = 0
        self.epoch = epoch


class StateKeeper:
    """Writes what the index holds, at intervals, and loads it when a rank is followed again."""

    def __init__(
        self,
        directory: StateDirectory,
        index: PrefixIndex,
        tell: Tell,
        *,
        interval_s: float,
        instances: Callable[[], Collection[str]],
        trusted: Callable[[str, int], bool],
        clock: Callable[[], float] = time.monotonic,
        read_s: float = READ_S,
        last_s: float = LAST_S,
        unclaimed_s: float = UNCLAIMED_S,
    ) -> None:
        """`instances`: the addresses in the fleet. `trusted`: whether the index of a rank is trusted; only
        such ranks are written. `read_s`, `last_s`, `unclaimed_s`: as the constants of these names. The keeper
        closes the directory.
        """
        self._directory = directory
        self._index = index
        self._made_with = fingerprint(index.hasher)
        self._tell = tell
        self._interval_s = interval_s
        self._instances = instances
        self._trusted = trusted
        self._clock = clock
        self._last_s = last_s
        self._unclaimed_s = unclaimed_s
        self._tasks = TaskOwner("state")
        # One thread: writes and removals reach the disk in the order in which they are asked for.
        self._thread = DiskThread()
        self._kept: dict[_Rank, _Kept] = {}
        self._restorer = Restorer(directory, index, self._made_with, tell, self._thread, read_s=read_s)
        self._failures = Occasionally(clock, WARN_EVERY_S)
        self._written_at: float | None = None
        self._unclaimed_at: float | None = None
        self._writing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write at intervals."""
        self._unclaimed_at = self._clock() + self._unclaimed_s
        self._writing = self._tasks.create(self._keep_writing(), name="snapshots")

    async def close(self) -> None:
        """Write once more what has changed, while the sources are still followed, and release the
        directory.
        """
        if self._writing is not None:
            self._writing.cancel()
        try:
            async with asyncio.timeout(self._last_s):
                await self._tasks.drained(self._last_s)
                await self._write_all()
                await self._in_thread(self._directory.close)
        except TimeoutError:
            log.warning(
                "snapshots: not all could be written within %g s; what was written before stays",
                self._last_s,
            )
        finally:
            await self._tasks.close()
            self._thread.shutdown(wait=False)

    # ---- as the event feeds ask ----------------------------------------------------------------------------

    def resume(self, instance: str, rank: int) -> Resume:
        """A `Resume` that loads the rank's snapshot, if there is one."""
        return partial(self._restorer.load, instance, rank, partial(self._loaded, instance, rank))

    def _loaded(self, instance: str, rank: int, found: Found) -> None:
        if (kept := self._kept.get((instance, rank))) is not None:
            kept.found = found
            kept.written, kept.blocks, kept.size_bytes = found.checkpoint, found.blocks, found.size_bytes

    def follow(self, instance: str, rank: int, subscriber: Subscriber) -> None:
        """From now on what this subscriber puts into the index is written."""
        self._kept[instance, rank] = _Kept(subscriber, self._clock())

    def unfollow(self, instance: str, rank: int) -> None:
        """The snapshot stays until the instance is forgotten."""
        self._kept.pop((instance, rank), None)

    def forget(self, instance: str) -> None:
        """An instance was removed: remove its snapshots."""
        self._tasks.create(self._remove(instance), name=f"forget {instance}")

    async def _remove(self, instance: str, rank: int | None = None) -> None:
        try:
            await self._in_thread(self._directory.remove, instance, rank)
        except OSError as error:
            log.warning("the snapshots of %s cannot be removed: %s", instance, error.strerror)

    # ---- what can be seen of it ----------------------------------------------------------------------------

    def status(self) -> StateDirShown:
        """For `/status`."""
        failed = next((kept.failed for kept in self._kept.values() if kept.failed is not None), None)
        return StateDirShown(
            interval_s=self._interval_s,
            last_written_s=_ago(self._clock(), self._written_at),
            snapshots=sum(kept.size_bytes > 0 for kept in self._kept.values()),
            bytes=sum(kept.size_bytes for kept in self._kept.values()),
            failed=failed,
        )

    def rank_status(self, instance: str, rank: int) -> SnapshotShown | None:
        """For `/status`; None for a rank that is not followed."""
        kept = self._kept.get((instance, rank))
        if kept is None:
            return None
        resumed = kept.subscriber.resumed
        return SnapshotShown(
            restored=resumed,
            why=kept.found.why_not(kept.subscriber),
            restored_blocks=kept.found.blocks if resumed is Resumed.RESTORED else None,
            age_s=_ago(self._clock(), kept.current_at),
            blocks=kept.blocks,
            bytes=kept.size_bytes,
            failed=kept.failed,
        )

    def ages_s(self) -> dict[_Rank, float]:
        """Seconds since each rank's snapshot was all that is known; since the rank is followed, if it never
        was.
        """
        now = self._clock()
        return {
            at: now - (kept.followed_at if kept.current_at is None else kept.current_at)
            for at, kept in self._kept.items()
            if kept.current_at is not None or kept.failed is not None
        }

    def sizes_bytes(self) -> dict[_Rank, int]:
        """The size of each rank's snapshot on disk."""
        return {at: kept.size_bytes for at, kept in self._kept.items() if kept.size_bytes}

    # ---- writing -------------------------------------------------------------------------------------------

    async def _keep_writing(self) -> None:
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            began_at = self._clock()
            await self._write_all()
            if self._unclaimed_at is not None and self._clock() >= self._unclaimed_at:
                self._unclaimed_at = None
                await self._remove_unclaimed()
            pause_s = max(self._interval_s, (self._clock() - began_at) / MAX_SHARE)

    async def _write_all(self) -> None:
        for at, kept in list(self._kept.items()):
            if self._kept.get(at) is kept:
                await self._write(at, kept)

    async def _write(self, at: _Rank, kept: _Kept) -> None:
        checkpoint, epoch = kept.subscriber.checkpoint, kept.subscriber.epoch
        began_at = self._clock()
        if not self._trusted(*at):
            if kept.size_bytes:
                await self._remove(*at)
            kept.start_over(epoch)
            return
        if epoch == kept.epoch and (checkpoint is None or checkpoint == kept.written):
            if checkpoint is not None:
                kept.current_at = began_at
            return
        snapshot = await kept.subscriber.at_rest(lambda now: self._copy(at, now))
        if self._kept.get(at) is not kept:
            return
        if snapshot is None:
            if epoch != kept.epoch:
                await self._remove(*at)
                kept.start_over(epoch)
            return
        copied_at = self._clock()
        try:
            kept.size_bytes = await self._in_thread(self._put, snapshot)
        except Exception as error:  # noqa: BLE001  # full disks, numbers beyond 64 bits: others are written all the same
            kept.failed = getattr(error, "strerror", None) or type(error).__name__
            self._tell(SnapshotEnded(*at, "failed"))
            if count := self._failures.count():
                log.warning(
                    "%d snapshots could not be written, that of %s rank %d last: %s", count, *at, kept.failed
                )
            return
        kept.written, kept.current_at, kept.failed = snapshot.checkpoint, copied_at, None
        kept.epoch = epoch
        kept.blocks = snapshot.blocks.hashes
        self._written_at = self._clock()
        self._tell(SnapshotEnded(*at, "written", self._written_at - began_at))

    def _copy(self, at: _Rank, checkpoint: Checkpoint) -> Generator[None, None, Snapshot | None]:
        blocks = yield from self._index.exporting(*at)
        return None if blocks is None else Snapshot(*at, checkpoint, blocks)

    async def _remove_unclaimed(self) -> None:
        try:
            gone = await self._in_thread(self._directory.remove_others, set(self._instances()))
        except OSError as error:
            log.warning("snapshots of instances that left cannot be removed: %s", error.strerror)
            return
        if gone:
            log.info("removed %d snapshots of instances that are not there any more", gone)

    # ---- in the thread -------------------------------------------------------------------------------------

    def _in_thread(self, function: Callable[..., _T], *args: Any) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _put(self, snapshot: Snapshot) -> int:
        data = encode(snapshot, self._made_with)
        self._directory.write(snapshot.instance, snapshot.rank, data)
        return len(data)


def _ago(now: float, then: float | None) -> float | None:
    return None if then is None else round(now - then, 1)
