"""Each request becomes a line of the recording, which nobody waits for (`line_writer`)."""

import time
from collections.abc import Callable

from proxy.happenings import Happening, RequestEnded, RequestsLost, RequestsRecorded, Tell
from proxy.observability.family import Group
from proxy.observability.line_writer import FLUSH_S, LOST, MAX_WAITING, LineWriter
from proxy.observability.record_files import RecordFiles
from proxy.observability.series import counter
from proxy.traces.recording import Recording

MAX_WAITING_KEYS = 4 << 20
"""Keys of blocks that may wait to be written: 32 MiB."""

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
        self._lines = LineWriter[RequestEnded](
            files,
            (Recording() if recording is None else recording).lines,
            wrote=lambda count: tell(RequestsRecorded(count)),
            lost=lambda count, reason: tell(RequestsLost(count, reason)),
            where="the recording",
            most_weight=most_keys,
            flush_s=flush_s,
            most_waiting=most_waiting,
            clock=clock,
        )

    def hear(self, happening: Happening) -> None:
        """Take a request."""
        if isinstance(happening, RequestEnded):
            self._lines.add(happening, sum(map(len, happening.block_keys.values())))

    async def close(self) -> None:
        """As `LineWriter.close`."""
        await self._lines.close()
