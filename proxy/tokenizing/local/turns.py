"""Texts are tokenized a slice at a time, in fair turns: a long one delays others by one slice at most.

Clients take turns as they do in front of the engines (`proxy.fair_queue`), counted in bytes. Of a client's
own texts the one with the least left goes first, so that short ones do not wait for long ones where clients
are not told apart. A text that cannot be cut, and so makes one long slice, never gets all threads; while long
slices of a client wait, no more of its texts are read ahead of them. A job whose caller has gone gets no
turn.
"""

import asyncio
import functools
import sys
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from proxy.fair_queue import FairQueue, Waiting

R = TypeVar("R")

THREADS = 2
"""Texts that are tokenized at once off the event loop."""

SLICE_BYTES = 32 << 10
"""The bytes of text, in UTF-8, that are tokenized in one turn: 10 ms or so, and 5 to 7 MB of the library's
own objects."""


READ_AHEAD = 2
"""The most texts of a client that were read and wait with a long slice; until one of them goes, others stay
unread in their requests' bodies."""


INLINE_S = 0.005
"""How long texts may hold up one turn of the event loop, all together: as long as a thread that works on one
keeps it waiting. The last of them may take 5 ms more (the attack `special-tokens-in-little`, repeated)."""


class Slice(NamedTuple):
    """The next step of a job."""

    size_bytes: int
    left_bytes: int
    """The bytes that are left, this slice included, as far as is known."""


Job: TypeAlias = Generator[Slice, None, R]
"""Work in slices. It yields each slice before it does it, the first one at once, and returns the result."""


class Result(NamedTuple, Generic[R]):
    """What a job has come to."""

    value: R


def step(job: Job[R]) -> Slice | Result[R]:
    """Do the slice that a job has yielded last, and return the next, or its result."""
    try:
        return next(job)
    except StopIteration as end:
        return Result(end.value)


def at_once(job: Job[R]) -> R:
    """Do a job in this thread, and return its result."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: R = end.value
            return result


class LoopTime:
    """How long work has held up this turn of the event loop: many short texts may come at once."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    @property
    def is_left(self) -> bool:
        """Whether more work may be done in this turn."""
        return self._spent_s < INLINE_S

    def spend(self, seconds: float) -> None:
        """Work was done for so long."""
        if not self._spent_s:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._spent_s += seconds

    def _next_turn(self) -> None:
        self._spent_s = 0.0


class _Turn(Generic[R]):
    """A job that a caller waits for."""

    def __init__(self, client: str, job: Job[R], done: "asyncio.Future[R]") -> None:
        self.client = client
        self.job = job
        self.done = done
        self.begun = False
        self.is_ahead = False
        """Whether the job has begun, and waits with a long slice."""
        self.waiting: Waiting[_Turn[Any]] | None = None


class Turns:
    """Shares threads among jobs; used from one event loop. MUST be closed in the end."""

    def __init__(
        self,
        executor: Executor | None = None,
        threads: int = THREADS,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        """`executor`: has `threads` threads; None: one is made here. `slice_bytes`: a turn with more bytes is
        a long slice.
        """
        self._slice_bytes = slice_bytes
        self._threads = threads
        self._executor = (
            ThreadPoolExecutor(threads, thread_name_prefix="tokens") if executor is None else executor
        )
        self._queue: FairQueue[_Turn[Any]] = FairQueue(sys.maxsize)
        """The jobs that wait; their lanes are whether the next slice is a long one.

        Their memory is paid for by their bodies, so none is refused. A client with enough texts read ahead is
        held back; its jobs that have begun go on."""
        self._ahead: Counter[str] = Counter()
        self._running = {False: 0, True: 0}
        self._closed = False

    def __len__(self) -> int:
        """The number of jobs that wait for a turn."""
        return len(self._queue)

    def holds_back(self, client: str) -> bool:
        """Whether enough texts of a client are read ahead: no more of them is to be begun now."""
        return self._queue.is_held_back(client)

    async def run(
        self, client: str, job: Job[R], then: Slice | None = None, within_s: float | None = None
    ) -> R:
        """Do a client's job, and return its result. Raises what the job raises; if it is cancelled, it does
        no more than the current slice.

        `then`: the next slice of a job that has begun. Raises TimeoutError after `within_s`.
        """
        turn: _Turn[R] = _Turn(client, job, asyncio.get_running_loop().create_future())
        turn.begun = then is not None
        self._line_up(turn, next(job) if then is None else then)
        self._start()
        try:
            async with asyncio.timeout(within_s):
                result: R = await turn.done
        finally:
            if turn.waiting is not None and self._queue.drop(turn.waiting):
                self._set_ahead(turn, False)
                job.close()
        return result

    def close(self) -> None:
        """Begin no more slices, and cancel the jobs that wait."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        for waiting in self._queue:
            waiting.item.done.cancel()
            waiting.item.job.close()
            self._queue.drop(waiting)

    def _line_up(self, turn: _Turn[Any], then: Slice) -> None:
        if self._closed:
            turn.done.cancel()
            turn.job.close()
            return
        long = then.size_bytes > self._slice_bytes
        turn.waiting, _ = self._queue.push(
            turn.client, long, then.left_bytes, then.size_bytes, turn, needs_place=not turn.begun
        )
        self._set_ahead(turn, turn.begun and long)

    def _set_ahead(self, turn: _Turn[Any], is_ahead: bool) -> None:
        client = turn.client
        self._ahead[client] += is_ahead - turn.is_ahead
        turn.is_ahead = is_ahead
        is_enough = self._ahead[client] >= READ_AHEAD
        if not self._ahead[client]:
            del self._ahead[client]
        if is_enough != self._queue.is_held_back(client):
            (self._queue.hold_back if is_enough else self._queue.let_go)(client)

    def _start(self) -> None:
        while not self._closed and sum(self._running.values()) < self._threads:
            enough = self._running[True] >= max(1, self._threads - 1)
            waiting = self._queue.next((True,) if enough else ())
            if waiting is None:
                return
            self._queue.take(waiting)
            turn, long = waiting.item, bool(waiting.lane)
            turn.waiting, turn.begun = None, True
            self._set_ahead(turn, False)
            self._running[long] += 1
            done = asyncio.get_running_loop().run_in_executor(self._executor, step, turn.job)
            done.add_done_callback(functools.partial(self._stepped, turn, long=long))

    def _stepped(self, turn: _Turn[Any], done: "asyncio.Future[Slice | Result[Any]]", *, long: bool) -> None:
        self._running[long] -= 1
        if done.cancelled():
            turn.done.cancel()
            turn.job.close()
            return
        error = done.exception()
        if turn.done.done():  # its caller has gone
            turn.job.close()
        elif error is not None:
            turn.done.set_exception(error)
        elif isinstance(came := done.result(), Slice):
            self._line_up(turn, came)
        else:
            turn.done.set_result(came.value)
        self._start()
