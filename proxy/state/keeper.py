"""What lies on disk of a rank is never older than the interval while its source is heard, nor written in vain.

Copying is done by the rank's own subscriber, in slices between two batches; what takes longer is done in a thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from kvevents import Checkpoint, PrefixIndex, Resume, Resumed, Subscriber
from kvevents.exported import ExportedRank
from kvevents.snapshot import Snapshot, SnapshotError, decode, encode, fingerprint
from proxy.logs import Occasionally
from proxy.state.directory import StateDirectory, UnusableFileError
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

MOST_SHARE = 0.1
"""The share of the time that is spent writing, whatever the interval: a fleet that has very much cached is written
less often, rather than slow."""

READ_S = 10.0
"""An engine does not wait longer for what was known of it: a disk that hangs must not keep a fleet from starting."""

LAST_S = 5.0
"""How long the last writing may take when kvproxy stops: a hundred ranks of 50 000 blocks take two seconds."""

UNCLAIMED_S = 3600.0
"""How long snapshots are kept of instances that are not there: whoever adds instances at run time may do so late
after a restart. By then no engine's replay buffer reaches back to them."""

WARN_EVERY_S = 60.0

_WHY = {
    "new_process": "the engine was restarted meanwhile",
    "gap": "the engine's replay buffer does not reach back to it",
    "unverified": "the engine's replay did not answer",
}

_T = TypeVar("_T")
_Rank = tuple[str, int]


class Accounts(Protocol):
    """Where counters and timings go."""

    def snapshot_written(self, seconds: float) -> None:
        """From the copying to the end of writing."""
        ...

    def snapshot_failed(self) -> None:
        """A snapshot could not be written."""
        ...

    def snapshot_broken(self) -> None:
        """A snapshot could not be read."""
        ...


class _Kept:
    """One rank that is followed."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.written: Checkpoint | None = None
        self.current_at: float | None = None
        """When what is on disk was last all there was to know."""
        self.size_bytes = 0
        self.blocks = 0
        self.failed: str | None = None


class _Found:
    """What was there of a rank when it was followed."""

    def __init__(self) -> None:
        self.checkpoint: Checkpoint | None = None
        self.blocks = 0
        self.size_bytes = 0
        self.why: str | None = None


class StateKeeper:
    """Writes what the index holds at intervals, and has it ready when an engine is followed anew."""

    def __init__(
        self,
        directory: StateDirectory,
        index: PrefixIndex,
        accounts: Accounts,
        *,
        interval_s: float,
        instances: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`instances`: the addresses in the fleet. The keeper closes the directory."""
        self._directory = directory
        self._index = index
        self._made_with = fingerprint(index.hasher)
        self._accounts = accounts
        self._interval_s = interval_s
        self._instances = instances
        self._clock = clock
        self._tasks = TaskOwner("state")
        # One thread: what is written or removed later is so later on disk.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._kept: dict[_Rank, _Kept] = {}
        self._found: dict[_Rank, _Found] = {}
        self._failures = Occasionally(clock, WARN_EVERY_S)
        self._written_at: float | None = None
        self._unclaimed_at: float | None = None

    def start(self) -> None:
        """Begin to write."""
        self._unclaimed_at = self._clock() + UNCLAIMED_S
        self._tasks.create(self._keep_writing(), name="snapshots")

    async def close(self) -> None:
        """Write once more what changed, while the sources are still followed, and give the directory up."""
        await self._tasks.close()
        try:
            async with asyncio.timeout(LAST_S):
                await self._write_all()
                await self._in_thread(self._directory.close)
        except TimeoutError:
            log.warning(
                "snapshots: not all could be written within %g s; what was written before stays", LAST_S
            )
        self._thread.shutdown(wait=False)

    # ---- as the event feeds ask -----------------------------------------------------------------------------

    async def known(self, instance: str, rank: int) -> Resume | None:
        """What was written of a rank and can be loaded; None if there is nothing. Raises nothing."""
        found = self._found[instance, rank] = _Found()
        try:
            async with asyncio.timeout(READ_S):
                read = await self._in_thread(self._read, instance, rank)
        except SnapshotError as error:
            self._accounts.snapshot_broken()
            found.why = str(error)
            return None
        except (OSError, TimeoutError) as error:
            self._accounts.snapshot_broken()
            found.why = f"it could not be read: {_words(error)}"
            log.warning("the snapshot of %s rank %d could not be read: %s", instance, rank, _words(error))
            return None
        if read is None:
            return None
        snapshot, found.size_bytes = read
        found.checkpoint, found.blocks = snapshot.checkpoint, _blocks(snapshot.blocks)
        return Resume(snapshot.checkpoint, lambda: self._index.loading(instance, rank, snapshot.blocks))

    def follow(self, instance: str, rank: int, subscriber: Subscriber) -> None:
        """From now on what this subscriber puts into the index is written."""
        kept = self._kept[instance, rank] = _Kept(subscriber)
        if (found := self._found.get((instance, rank))) is not None:
            kept.written, kept.blocks, kept.size_bytes = found.checkpoint, found.blocks, found.size_bytes

    def unfollow(self, instance: str, rank: int) -> None:
        """What is written stays until the instance is forgotten."""
        self._kept.pop((instance, rank), None)

    async def forget(self, instance: str) -> None:
        """An instance has left for good."""
        for at in [at for at in self._found if at[0] == instance]:
            del self._found[at]
        try:
            await self._in_thread(self._directory.remove, instance)
        except OSError as error:
            log.warning("the snapshots of %s cannot be removed: %s", instance, error.strerror)

    # ---- what can be seen of it -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        failed = next((kept.failed for kept in self._kept.values() if kept.failed is not None), None)
        return {
            "interval_s": self._interval_s,
            "last_written_s": _ago(self._clock(), self._written_at),
            "snapshots": sum(kept.size_bytes > 0 for kept in self._kept.values()),
            "bytes": sum(kept.size_bytes for kept in self._kept.values()),
            "failed": failed,
        }

    def rank_status(self, instance: str, rank: int) -> dict[str, Any] | None:
        """For `/status`; None for a rank that is not followed."""
        kept = self._kept.get((instance, rank))
        if kept is None:
            return None
        found = self._found.get((instance, rank)) or _Found()
        resumed = kept.subscriber.resumed
        why = found.why
        if resumed is Resumed.STALE:
            why = _WHY.get(kept.subscriber.stale_because or "", kept.subscriber.stale_because)
        return {
            "restored": resumed.value,
            "why": why,
            "restored_blocks": found.blocks if resumed is Resumed.RESTORED else None,
            "age_s": _ago(self._clock(), kept.current_at),
            "blocks": kept.blocks,
            "bytes": kept.size_bytes,
            "failed": kept.failed,
        }

    def ages_s(self) -> dict[_Rank, float]:
        """How long ago what is on disk of each rank was all there was to know."""
        now = self._clock()
        return {at: now - kept.current_at for at, kept in self._kept.items() if kept.current_at is not None}

    def sizes_bytes(self) -> dict[_Rank, int]:
        """What each rank's snapshot takes on disk."""
        return {at: kept.size_bytes for at, kept in self._kept.items() if kept.size_bytes}

    # ---- writing --------------------------------------------------------------------------------------------

    async def _keep_writing(self) -> None:
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            began_at = self._clock()
            await self._write_all()
            if self._unclaimed_at is not None and self._clock() >= self._unclaimed_at:
                self._unclaimed_at = None
                await self._remove_unclaimed()
            pause_s = max(self._interval_s, (self._clock() - began_at) / MOST_SHARE)

    async def _write_all(self) -> None:
        for at, kept in list(self._kept.items()):
            if self._kept.get(at) is kept:
                await self._write(at, kept)

    async def _write(self, at: _Rank, kept: _Kept) -> None:
        checkpoint = kept.subscriber.checkpoint
        if checkpoint is None:
            return
        began_at = self._clock()
        if checkpoint == kept.written:
            kept.current_at = began_at
            return
        snapshot = await kept.subscriber.at_rest(lambda now: self._copy(at, now))
        if snapshot is None or self._kept.get(at) is not kept:
            return
        copied_at = self._clock()
        try:
            kept.size_bytes = await self._in_thread(self._put, snapshot)
        except OSError as error:
            kept.failed = _words(error)
            self._accounts.snapshot_failed()
            if count := self._failures.count():
                log.warning(
                    "%d snapshots could not be written, that of %s rank %d last: %s", count, *at, kept.failed
                )
            return
        kept.written, kept.current_at, kept.failed = snapshot.checkpoint, copied_at, None
        kept.blocks = _blocks(snapshot.blocks)
        self._written_at = self._clock()
        self._accounts.snapshot_written(self._written_at - began_at)

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

    # ---- in the thread --------------------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _put(self, snapshot: Snapshot) -> int:
        data = encode(snapshot, self._made_with)
        self._directory.write(snapshot.instance, snapshot.rank, data)
        return len(data)

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


def _blocks(exported: ExportedRank) -> int:
    return sum(len(tier.hashes) for tier in exported.tiers)


def _words(error: OSError | TimeoutError) -> str:
    return error.strerror or type(error).__name__


def _ago(now: float, then: float | None) -> float | None:
    return None if then is None else round(now - then, 1)
