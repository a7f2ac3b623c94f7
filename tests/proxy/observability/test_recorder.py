"""The recorder waits for nobody, and counts what it cannot write."""

import asyncio
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from proxy.happenings import Happening, RequestEnded, RequestsLost, RequestsRecorded
from proxy.observability.record_files import RecordFiles
from proxy.observability.recorder import Recorder
from tests.helpers.service import wait_until


class Files(RecordFiles):
    """Files whose disk hangs until it is let go, and fails on demand."""

    def __init__(self) -> None:
        super().__init__(pathlib.Path("unused"), 1, 1)
        self.going = threading.Event()
        self.error: OSError | None = None
        self.written: list[int] = []
        self.began = 0
        self.closed = False

    def write(self, lines: Sequence[bytes]) -> None:
        self.began += 1
        self.going.wait(20)
        if self.error is not None:
            raise self.error
        self.written.append(len(lines))

    def close(self) -> None:
        self.closed = True


def ended(keys: int = 0) -> RequestEnded:
    return RequestEnded(
        "completions", "ok", 1.0, block_keys={16: np.zeros(keys, dtype=np.uint64)} if keys else {}
    )


def recorder(files: Files, told: list[Happening], **more: float) -> Recorder:
    return Recorder(files, told.append, **{"flush_s": 0.0, **more})  # type: ignore[arg-type]  # figures


async def test_what_comes_while_the_disk_is_busy_is_written_together() -> None:
    files, told = Files(), list[Happening]()
    tested = recorder(files, told)
    tested.hear(ended())
    await wait_until(lambda: files.began == 1)
    for _ in range(5):
        tested.hear(ended())
    files.going.set()
    await wait_until(lambda: files.written == [1, 5])
    await wait_until(lambda: told == [RequestsRecorded(1), RequestsRecorded(5)])
    await tested.close()


async def test_more_than_may_wait_is_lost_and_counted() -> None:
    files, told = Files(), list[Happening]()
    tested = recorder(files, told, most_waiting=3, most_keys=10)
    for _ in range(5):
        tested.hear(ended())
    assert told == [RequestsLost(1, "behind")] * 2
    told.clear()
    await wait_until(lambda: files.began == 1)
    tested.hear(ended(keys=8))
    tested.hear(ended(keys=3))
    tested.hear(ended(keys=2))
    assert told == [RequestsLost(1, "behind")]
    files.going.set()
    await wait_until(lambda: files.written == [3, 2])
    await tested.close()


async def test_a_disk_that_fails_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    files, told = Files(), list[Happening]()
    files.going.set()
    files.error = OSError(28, "No space left on device")
    tested = recorder(files, told)
    for number in range(3):
        tested.hear(ended())
        await wait_until(lambda: len(told) == number + 1)  # noqa: B023  # waited for here
    assert told == [RequestsLost(1, "disk")] * 3
    (message,) = [message for message in caplog.messages if "recording" in message]
    assert message.startswith("1 requests are missing in the recording, they could not be written: ")
    assert message.endswith("No space left on device")
    files.error = None
    tested.hear(ended())
    await wait_until(lambda: told[-1] == RequestsRecorded(1))
    await tested.close()


async def test_its_end_waits_for_what_was_heard() -> None:
    files, told = Files(), list[Happening]()
    files.going.set()
    tested = recorder(files, told, flush_s=3600.0)
    tested.hear(ended())
    await tested.close()
    assert (files.written, told) == ([1], [RequestsRecorded(1)])
    await wait_until(lambda: files.closed)
    tested.hear(ended())
    assert told[-1] == RequestsLost(1, "behind")


async def test_its_end_does_not_wait_for_a_disk_that_hangs() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 3.0
        return now

    files, told = Files(), list[Happening]()
    tested = Recorder(files, told.append, flush_s=0.0, clock=clock)
    tested.hear(ended())
    await wait_until(lambda: files.began == 1)
    tested.hear(ended())
    await asyncio.wait_for(tested.close(), 20)
    assert told == [RequestsLost(1, "behind")]
    files.going.set()
