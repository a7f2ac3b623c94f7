"""The answer to a list of prompts begins only when the answer to every prompt has begun; then it is complete,
or cut with an error.

Each prompt is served as a request of its own, by a task of its own. A prompt that fails ends the others, and
so does the end of the reply: the others' legs end as if their client had left, and their holds are released.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack

import msgspec

from proxy.errors import EngineFailedError, LegBrokenError, LegError, StreamFailedError, UnavailableError
from proxy.happenings import Retried, Tell
from proxy.headers import Headers
from proxy.phases import Phase
from proxy.request.dialects.choices import DONE
from proxy.request.outline import LARGE_BODY_BYTES
from proxy.request.sse import EventReader
from proxy.serving.ends import Ends
from proxy.serving.exchange import Call, Reply
from proxy.serving.legs.leg import Reason
from proxy.serving.lists.answers import AnswerMerger
from proxy.serving.lists.split import split
from proxy.serving.lists.streams import StreamMerger
from proxy.serving.retry_budget import RetryBudget
from proxy.tasks import TaskOwner

MAX_WAITING_BYTES = 16 << 20
"""What is queued of the streams that have begun while others have not. They are read on meanwhile, because a
leg that ends makes room for one that waits to begin; beyond this, minutes of all prompts' text, they wait."""

MAX_QUEUED_BYTES = 256 << 10
"""What is queued for the client once all streams have begun: about what a single stream has in buffers."""

STARTED_AT_ONCE = 8
"""How many prompts begin in one turn of the event loop: placing one of 10 000 tokens takes nearly a
millisecond."""

WRITE_BYTES = 64 << 10
"""About how many bytes go to the client at a time."""


class Room(msgspec.Struct, frozen=True):
    """How much of the answers to one list is queued, and how much goes to the client at a time."""

    waiting_bytes: int = MAX_WAITING_BYTES
    queued_bytes: int = MAX_QUEUED_BYTES
    write_bytes: int = WRITE_BYTES


ROOM = Room()


JSON = [("Content-Type", "application/json")]

Serve = Callable[[Call, Collection[str]], Awaitable[Reply]]
"""Answers one prompt; the given instances get its legs only if no others can."""


async def serve_list(
    call: Call,
    serve: Serve,
    tasks: TaskOwner,
    tell: Tell,
    budget: RetryBudget,
    max_runs: int,
    room: Room = ROOM,
) -> Reply:
    """Answer a request for several prompts. Raises RequestError; may be cancelled.

    A prompt whose stream is cut before anything has reached the client is served anew: up to `max_runs` times
    in all, each but the first paid from the retry budget. The reply has the headers of the first prompt's
    answer and no decision, since each prompt has one. If an engine refuses a prompt, the reply is its answer.
    """
    if call.request.body.size_bytes > LARGE_BODY_BYTES:
        requests = await asyncio.to_thread(split, call.request)  # each prompt is copied
    else:
        requests = split(call.request)
    calls = [
        msgspec.structs.replace(
            call,
            request=request,
            leg_id=f"{call.leg_id}-{part}" if part else call.leg_id,
            ticket=call.ticket.part(),
        )
        for part, request in enumerate(requests)
    ]
    parts = _Parts(calls, serve, tell, budget, max_runs, call.request.sequences, room)
    ends = Ends()
    ends.add(parts.end)
    try:
        await parts.start(tasks)
        if (refusal := await parts.all_begun()) is not None:
            return refusal
        headers, body = parts.answer()
        return Reply(200, headers, body, None, ends.passed_on())
    finally:
        ends.close()


class _Parts:
    """The prompts of one list while they are served."""

    def __init__(
        self,
        calls: Sequence[Call],
        serve: Serve,
        tell: Tell,
        budget: RetryBudget,
        max_runs: int,
        sequences: int,
        room: Room,
    ) -> None:
        self._calls = calls
        self._serve = serve
        self._tell = tell
        self._budget = budget
        self._max_runs = max_runs
        self._most = room
        self._tasks: list[asyncio.Task[None]] = []
        self._answers = AnswerMerger(sequences)
        self._stream = StreamMerger(len(calls), sequences)
        self._begun: dict[int, Headers] = {}
        """The headers of the answers that have begun."""
        self._streamed: set[bool] = set()
        self._running = set(range(len(calls)))
        self._failure: Reply | Exception | None = None
        self._started = self._ended = False
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def start(self, tasks: TaskOwner) -> None:
        """Begin a few prompts a turn, so that other requests need not wait for the first steps of all."""
        for part, call in enumerate(self._calls):
            if part and part % STARTED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._ended:
                return
            self._tasks.append(
                tasks.create(self._run(part, call), name=f"prompt {part} of {self._calls[0].leg_id}")
            )

    def end(self) -> None:
        """Cancel all that still runs. Only once: a second cancellation would cut short what the first gives
        back.
        """
        if self._ended:
            return
        self._ended = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def all_begun(self) -> Reply | None:
        """Wait until every prompt's answer has begun. Returns the refusal if an engine gave one; raises the
        error if a prompt failed.
        """
        while self._failure is None and len(self._begun) < len(self._calls):
            self._news.clear()
            await self._news.wait()
        if isinstance(self._failure, Exception):
            raise self._failure
        self._started = self._failure is None
        return self._failure

    def answer(self) -> tuple[Headers, bytes | AsyncIterator[bytes]]:
        """The headers and the body of the answer to all, once all have begun. Raises EngineFailedError."""
        if self._streamed == {False}:
            return self._begun[0], self._answers.merged()
        if self._streamed != {True}:
            raise EngineFailedError("one engine answered with a stream and another without")
        try:
            self._stream.begin(next(data for part, data in self._queue if part == 0))
        except (ValueError, StopIteration) as error:
            raise EngineFailedError(
                "an engine's stream begins with something else than a completion"
            ) from error
        return self._begun[0], self._events()

    # -- one prompt ---------------------------------------------------------------------------------------

    async def _run(self, part: int, call: Call) -> None:
        try:
            await self._serve_at_last(part, call)
        except asyncio.CancelledError:
            words = "the request was given up"
            self._fail(LegBrokenError("kvproxy", words) if self._started else UnavailableError(words))
            raise
        except Exception as error:  # noqa: BLE001  # whoever waits for the answer gets it, whatever it is
            self._fail(error)
        self._running.discard(part)
        self._news.set()

    async def _serve_at_last(self, part: int, call: Call) -> None:
        avoid: set[str] = set()
        with ExitStack() as retry:  # gives the budget back that a retry has taken
            for runs_left in reversed(range(self._max_runs)):
                try:
                    await self._serve_once(part, call, avoid)
                    return
                except LegError as error:
                    retry.close()
                    if self._started:
                        raise
                    if isinstance(error, StreamFailedError) and error.clients_own:
                        self._fail(Reply(error.status, JSON, error.body, None))
                        return
                    if not (runs_left and self._budget.take()):
                        raise EngineFailedError(f"no engine answered in full: {error.words}") from error
                    retry.callback(self._budget.give_back)
                    avoid.add(error.instance)
                    self._tell(Retried(Phase.DECODE, error.instance, Reason.BROKEN))
                    self._forget(part)

    async def _serve_once(self, part: int, call: Call, avoid: Collection[str]) -> None:
        reply = await self._serve(call, avoid)
        with ExitStack() as stack:
            stack.callback(reply.close)
            if reply.status != 200:
                self._fail(reply)
                return
            try:
                if isinstance(reply.body, bytes):
                    self._answers.add(part, reply.body)
                    self._begin(part, reply)
                else:
                    await self._read(part, reply, reply.body)
            except ValueError as error:
                raise LegBrokenError(_engine(reply), str(error)) from error

    async def _read(self, part: int, reply: Reply, chunks: AsyncIterator[bytes]) -> None:
        reader = EventReader()
        done = False
        async for chunk in chunks:
            events = [] if done else reader.feed(chunk)
            if DONE in events:
                done = True
                events = events[: events.index(DONE)]
            await self._put(part, reply, events)
        if not done:
            raise LegBrokenError(_engine(reply), "the stream ended without its last event")
        if part not in self._begun:
            raise LegBrokenError(_engine(reply), "the stream ended before its first event")

    def _begin(self, part: int, reply: Reply) -> None:
        self._begun[part] = reply.headers
        self._streamed.add(not isinstance(reply.body, bytes))
        self._news.set()

    async def _put(self, part: int, reply: Reply, events: list[bytes]) -> None:
        """Queue events as soon as there is room. The first of a stream need no room: all streams wait for
        them.
        """
        size = sum(len(data) for data in events)
        while part in self._begun and self._queue and self._queued_bytes + size > self._limit_bytes:
            self._room.clear()
            await self._room.wait()
        idle = self._started and not self._queue  # a comment helps the client only if nothing else is sent
        self._queue.extend((part, data) for data in events if data or idle)
        self._queued_bytes += size
        if any(events) and part not in self._begun:
            self._begin(part, reply)
        self._news.set()

    @property
    def _limit_bytes(self) -> int:
        return self._most.queued_bytes if self._started else self._most.waiting_bytes

    def _forget(self, part: int) -> None:
        """Drop what a prompt has brought: it is served anew."""
        self._begun.pop(part, None)
        self._queue = deque(queued for queued in self._queue if queued[0] != part)
        self._queued_bytes = sum(len(data) for _, data in self._queue)
        self._room.set()

    def _fail(self, failure: Reply | Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self.end()
        self._news.set()

    # -- all of them --------------------------------------------------------------------------------------

    async def _events(self) -> AsyncIterator[bytes]:
        """The events of all prompts as they come. Raises LegError if one of them fails."""
        while True:
            if self._queue:
                yield self._take()
            elif isinstance(self._failure, Exception):
                raise self._failure
            elif self._running:
                self._news.clear()
                await self._news.wait()
            else:
                break
        yield self._stream.end()

    def _take(self) -> bytes:
        events: list[bytes] = []
        size = 0
        while self._queue and size < self._most.write_bytes:
            part, data = self._queue.popleft()
            self._queued_bytes -= len(data)
            events.append(self._stream.chunk(part, data))
            size += len(data)
        if self._queued_bytes < self._limit_bytes:
            self._room.set()
        return b"".join(events)


def _engine(reply: Reply) -> str:
    chosen = reply.decision.decode.chosen if reply.decision is not None else None
    return chosen.instance if chosen is not None else "the engine"
