"""Lines reach a file off the event loop and in bounded memory: what the disk cannot take in time is left out
and counted, and nobody waits for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from proxy.observability.record_files import RecordFiles
from proxy.snapshots.disk_thread import DiskThread

log = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_S = 0.5
"""How long items may wait for others that are written with them."""

MAX_WAITING = 20_000
"""Items that may wait to be written: several seconds of the most that a kvproxy serves."""

LOG_AGAIN_S = 60.0
"""How long a disk may fail before the log says so again."""

LAST_S = 5.0
"""How long the end of the process waits for what is not written."""

LOST = {"behind": "more came than could be written", "disk": "they could not be written"}
"""Why lines are missing."""


class LineWriter(Generic[T]):
    """Writes lines for items, in a thread of its own. It belongs to the event loop."""

    def __init__(
        self,
        files: RecordFiles,
        lines: Callable[[Sequence[T]], Sequence[bytes]],
        *,
        wrote: Callable[[int], None],
        lost: Callable[[int, str], None],
        where: str,
        most_weight: int,
        flush_s: float = FLUSH_S,
        most_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lines`: makes the lines of items, in the thread; `wrote` and `lost` are told how many items were
        written, or were not and why (as `LOST`); `where`: where they are missing then, for the log;
        `most_weight`: of what may wait, as `add` has it.
        """
        self._files = files
        self._lines = lines
        self._wrote = wrote
        self._lose = lost
        self._where = where
        self._most_weight = most_weight
        self._flush_s = flush_s
        self._most_waiting = most_waiting
        self._clock = clock
        self._thread = DiskThread()
        self._waiting: list[T] = []
        self._weight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._logged_at: float | None = None
        self._closed = False

    def add(self, item: T, weight: int) -> None:
        """Write an item soon; `weight`: what it takes of what may wait."""
        if (
            self._closed
            or len(self._waiting) >= self._most_waiting
            or self._weight + weight > self._most_weight
        ):
            self._lose(1, "behind")
            return
        self._waiting.append(item)
        self._weight += weight
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    async def close(self) -> None:
        """Write what waits, for `LAST_S` at most; what is not written then is counted as lost."""
        self._closed = True
        until = self._clock() + LAST_S
        while (self._waiting or self._writing is not None) and (left := until - self._clock()) > 0:
            if self._writing is None:
                self._flush()
            if self._writing is not None:
                await asyncio.wait([self._writing], timeout=left)
                await asyncio.sleep(0)  # `_written` runs
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            self._lost(len(self._waiting), "behind")
            self._waiting.clear()
        if self._writing is None:
            self._thread.submit(self._files.close)
        self._thread.shutdown(wait=False)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting, self._weight = self._waiting, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        self._writing.add_done_callback(lambda done: self._written(done, len(batch)))

    def _write(self, batch: Sequence[T]) -> None:
        """In the thread."""
        self._files.write(self._lines(batch))

    def _written(self, done: asyncio.Future[None], count: int) -> None:
        self._writing = None
        if (error := done.exception()) is None:
            self._wrote(count)
        else:
            self._lost(count, "disk", error)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    def _lost(self, count: int, reason: str, error: BaseException | None = None) -> None:
        self._lose(count, reason)
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= LOG_AGAIN_S:
            self._logged_at = now
            why = f": {error}" if error is not None else ""
            log.warning("%d requests are missing in %s, %s%s", count, self._where, LOST[reason], why)
