"""Requests are recorded off the event loop and in bounded memory: what the disk cannot take in time is left
out and counted, and no request waits for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from proxy.happenings import Happening, RequestEnded, RequestsLost, RequestsRecorded, Tell
from proxy.observability.family import Group
from proxy.observability.record_files import RecordFiles
from proxy.observability.series import counter
from proxy.snapshots.disk_thread import DiskThread
from proxy.traces.recording import Recording

log = logging.getLogger(__name__)

FLUSH_S = 0.5
"""How long requests may wait for others that are written with them."""

MAX_WAITING = 20_000
"""Requests that may wait to be written: several seconds of the most that a kvproxy serves."""

MAX_WAITING_KEYS = 4 << 20
"""Keys of blocks that may wait with them: 32 MiB."""

LOG_AGAIN_S = 60.0
"""How long a disk may fail before the log says so again."""

LAST_S = 5.0
"""How long the end of the process waits for what is not written."""

LOST = {"behind": "more came than could be written", "disk": "they could not be written"}
"""Why requests are not in a recording."""

RECORDING = (
    counter(
        "recorded_requests",
        "Requests that were written to the recording.",
        RequestsRecorded,
        amount="count",
    ),
    counter(
        "unrecorded_requests",
        "Requests that are missing in the recording.",
        RequestsLost,
        "reason",
        amount="count",
        starts_with=LOST,
        words={"reason": LOST},
    ),
)

ON_THE_PAGE = Group(
    "Recording", tuple(series.family for series in RECORDING), "With [`--record`](traces.md#recording)."
)


class Recorder:
    """A consumer that writes a line for each request. It belongs to the event loop."""

    hears = (RequestEnded,)

    def __init__(
        self,
        files: RecordFiles,
        tell: Tell,
        *,
        recording: Recording | None = None,
        flush_s: float = FLUSH_S,
        most_waiting: int = MAX_WAITING,
        most_keys: int = MAX_WAITING_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._tell = tell
        self._recording = Recording() if recording is None else recording
        self._flush_s = flush_s
        self._most_waiting = most_waiting
        self._most_keys = most_keys
        self._clock = clock
        self._thread = DiskThread()
        self._waiting: list[RequestEnded] = []
        self._keys = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._logged_at: float | None = None
        self._closed = False

    def hear(self, happening: Happening) -> None:
        """Take a request."""
        if not isinstance(happening, RequestEnded):
            return
        if self._closed:
            self._tell(RequestsLost(1, "behind"))
            return
        keys = sum(map(len, happening.block_keys.values()))
        if len(self._waiting) >= self._most_waiting or self._keys + keys > self._most_keys:
            self._tell(RequestsLost(1, "behind"))
            return
        self._waiting.append(happening)
        self._keys += keys
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
        batch, self._waiting, self._keys = self._waiting, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        self._writing.add_done_callback(lambda done: self._written(done, len(batch)))

    def _write(self, batch: Sequence[RequestEnded]) -> None:
        """In the thread."""
        self._files.write(self._recording.lines(batch))

    def _written(self, done: asyncio.Future[None], count: int) -> None:
        self._writing = None
        if (error := done.exception()) is None:
            self._tell(RequestsRecorded(count))
        else:
            self._lost(count, "disk", error)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    def _lost(self, count: int, reason: str, error: BaseException | None = None) -> None:
        self._tell(RequestsLost(count, reason))
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= LOG_AGAIN_S:
            self._logged_at = now
            why = f": {error}" if error is not None else ""
            log.warning("%d requests are missing in the recording, %s%s", count, LOST[reason], why)
