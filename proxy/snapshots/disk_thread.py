"""Disk work is done one piece at a time, in order, and a disk that hangs cannot keep the process from ending.

When a process ends, Python waits for the threads of its own executors, however long that takes; not for this
one. Its work is then left as it is, so each step must leave a directory that can be read.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class DiskThread(Executor):
    """One daemon thread, started with its first task."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `function` after all that was submitted before. Raises RuntimeError after `shutdown`."""
        if self._closed:
            raise RuntimeError("the disk's thread was ended")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="disk", daemon=True)
            self._thread.start()
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  # raised to the caller that waits
                future.set_exception(error)
            else:
                future.set_result(result)

        self._wanted.put(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Accept no more work; the thread ends after what was submitted. `wait`: wait until it has ended."""
        self._closed = True
        self._wanted.put(None)
        if wait and self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (run := self._wanted.get()) is not None:
            run()
