"""Steps on the disk come one after the other, and one that never ends holds up nobody's exit."""

import subprocess
import sys
import threading

import pytest

from proxy.snapshots.disk_thread import DiskThread

HANGS = """
import threading
from proxy.snapshots.disk_thread import DiskThread
begun, never = threading.Event(), threading.Event()
thread = DiskThread()
thread.submit(lambda: (begun.set(), never.wait()))
begun.wait(20)
thread.shutdown(wait=False)
print("left")
"""


def test_steps_run_one_by_one_in_order_each_with_its_result() -> None:
    thread, seen = DiskThread(), list[int]()

    def step(number: int) -> int:
        seen.append(number)
        if number == 3:
            raise OSError("the disk is full")
        return number * 10

    futures = [thread.submit(step, number) for number in range(6)]
    thread.shutdown()
    assert seen == list(range(6))
    assert [future.result() for future in futures if future is not futures[3]] == [0, 10, 20, 40, 50]
    with pytest.raises(OSError, match="full"):
        futures[3].result()
    with pytest.raises(RuntimeError):
        thread.submit(step, 7)


def test_a_step_cancelled_in_time_is_not_done() -> None:
    thread, goes_on, seen = DiskThread(), threading.Event(), list[str]()
    thread.submit(goes_on.wait, 20)
    given_up = thread.submit(seen.append, "given up")
    wanted = thread.submit(seen.append, "wanted")
    assert given_up.cancel()
    goes_on.set()
    wanted.result(20)
    assert seen == ["wanted"]
    thread.shutdown()


def test_a_disk_that_hangs_does_not_keep_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "left\n"


def test_a_thread_that_was_never_used_ends_at_once() -> None:
    DiskThread().shutdown()
