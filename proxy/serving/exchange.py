"""What comes in and what goes out: a reply begins with what an engine has really produced.

That is its whole answer, or the first event of a stream that holds something generated. A stream that fails
before is an engine's failure like any other, so it is found before the client hears anything.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress

import msgspec

from proxy.admission import Ticket
from proxy.errors import DeadlineError, LegBrokenError, LegError, StreamFailedError
from proxy.happenings import BlockKeys
from proxy.headers import Headers
from proxy.request.dialects import Dialect, Failure
from proxy.request.generation import GenerationRequest
from proxy.request.judging import judge, wants_judging, without_params
from proxy.request.sse import EventCutter, events, only_comments
from proxy.scheduling.decision import Decision
from proxy.serving.ports import Answer

MAX_HELD_EVENTS = 64
MAX_HELD_BYTES = 256 << 10
MAX_HELD_S = 10.0
"""So many events and bytes without anything generated, or so long since the first of them, and a stream
counts as begun all the same. vLLM sends the role with the first token, and an error that comes instead 0.1 s
later; but chunks of hidden reasoning are empty, and whoever waits for them should see that something
happens."""


class Held(msgspec.Struct, frozen=True):
    """What a stream may bring without anything generated; with more of any of it the stream counts as
    begun.
    """

    events: int = MAX_HELD_EVENTS
    size_bytes: int = MAX_HELD_BYTES
    seconds: float = MAX_HELD_S
    """Since the first event."""


HELD = Held()


LATE_CLOSE_S = 0.1
"""How long an engine may take to end its answer after the mark that ends the stream; its connection is used
again then. The client has all of it by that time."""


class Trace(msgspec.Struct):
    """What was tried for one client request, for its line in the log and for who hears of its end."""

    attempts: int = 0
    failed: list[str] = msgspec.field(default_factory=list)
    """`HOST:PORT:reason` of each attempt that failed."""
    prompt: "Known | None" = None
    """Of its last prompt."""


class Known(msgspec.Struct, frozen=True):
    """What of a prompt is known when it was placed."""

    tokens: int
    block_keys: BlockKeys


class Call(msgspec.Struct, frozen=True):
    """One client request on its way."""

    request: GenerationRequest
    headers: Headers
    """The client's headers that engines may see."""
    leg_id: str
    """The request id both legs carry."""
    started_at: float
    ticket: Ticket = msgspec.field(default_factory=Ticket)
    """Whose request it is, and how long it had to wait."""
    trace: Trace = msgspec.field(default_factory=Trace)


class Reply:
    """What goes to the client. Close it: that ends the claims, and the engine's work if it still runs."""

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        decision: Decision | None,
        stack: ExitStack | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        """All of it, or a stream of events as it comes (raising LegError if it is cut)."""
        self.decision = decision
        self._stack = stack or ExitStack()

    def also_ends(self, stack: ExitStack) -> None:
        """Close this, too, after what the reply holds itself."""
        own, self._stack = self._stack, stack
        stack.callback(own.close)

    def close(self) -> None:
        """Give back what the request still holds."""
        self._stack.close()


class EngineStream:
    """An engine's stream, in runs of whole events up to the mark that ends it; whatever comes after is not
    read.

    Comments are passed on, but they do not prove that the engine is at work: they put off no deadline.
    """

    def __init__(
        self,
        answer: Answer,
        chunk_s: float,
        dialect: Dialect,
        *,
        held: Held = HELD,
        late_close_s: float = LATE_CLOSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`chunk_s`: how long it may pause once it has begun; `late_close_s`: and once it has said all."""
        self._answer = answer
        self._dialect = dialect
        self._chunk_s = chunk_s
        self._most = held
        self._late_close_s = late_close_s
        self._clock = clock
        self._cutter = EventCutter()
        self._held = self._ready = b""
        self._failure: Failure | None = None
        self._done = False
        self._waited_s = 0.0

    async def begin(self) -> Failure | None:
        """Wait until something was generated; a failure before that is returned. Raises LegError."""
        dialect = self._dialect
        held: list[bytes] = []
        size_bytes = count = 0
        until: float | None = None
        while True:
            try:
                chunk = await self._answer.next_chunk(
                    None if until is None else max(0.0, until - self._clock())
                )
            except DeadlineError:
                break  # it was held for long enough
            run = self._whole(chunk)
            if run is None:
                raise LegBrokenError(self._answer.instance, "the stream ended before its first event")
            at = 0
            for event, data in events(run):
                if data and (failure := dialect.failure(data, event)) is not None:
                    return failure
                size_bytes += len(event)
                count += bool(data)
                said = data and (dialect.ends(data) or dialect.produces(data))
                if said or count > self._most.events or size_bytes > self._most.size_bytes:
                    self._held, self._ready = self._shown(held), run[at:]
                    return None
                at += len(event)
                held.append(event)
                if data and until is None:
                    until = self._clock() + self._most.seconds
        self._held = self._shown(held)
        return None

    async def next(self) -> bytes:
        """The next events, nothing once the stream is complete. Raises LegError, StreamFailedError if it
        failed.
        """
        ready, self._ready = self._ready, b""
        while not (self._done or self._failure):
            run = ready or await self._pending()
            ready = b""
            passed = run
            if large := len(run) > MAX_HELD_BYTES:
                await asyncio.sleep(0)  # joining it took milliseconds, and so does what follows
            if wants_judging(self._dialect, run):
                if large:
                    await asyncio.sleep(0)
                passed, self._failure, self._done = judge(self._dialect, run)
            if self._held:
                passed, self._held = self._held + passed, b""
            if passed:
                return passed
        if self._failure is not None:
            raise StreamFailedError(self._answer.instance, *self._failure)
        return b""

    async def drain(self) -> None:
        """Give the engine the moment it takes to end its answer, after all was said."""
        with suppress(LegError, TimeoutError):
            async with asyncio.timeout(self._late_close_s):
                while await self._answer.next_chunk():
                    pass

    async def _pending(self) -> bytes:
        """The next run of whole events, nothing while one is under way."""
        if self._held:
            return b""  # what was held back for too long goes first
        begun_at = self._clock()
        try:
            chunk = await self._answer.next_chunk(max(0.0, self._chunk_s - self._waited_s))
        except DeadlineError as error:
            if not self._waited_s:
                raise
            words = f"the engine sent nothing but comments for {self._chunk_s:g} s"
            raise DeadlineError(self._answer.instance, words) from error
        run = self._whole(chunk)
        if run is None:
            raise LegBrokenError(self._answer.instance, "the stream ended without its last event")
        if only_comments(run) if run else self._cutter.tail_is_comment:
            self._waited_s += self._clock() - begun_at
        else:
            self._waited_s = 0.0
        return run

    def _whole(self, chunk: bytes) -> bytes | None:
        """What is complete with the next piece; None at the end of the answer."""
        if chunk:
            try:
                return self._cutter.feed(chunk)
            except ValueError as error:
                raise LegBrokenError(self._answer.instance, str(error)) from error
        rest = self._cutter.rest()
        _, failure, done = judge(self._dialect, rest)
        return rest if failure is not None or done else None  # anything else may be half an event

    def _shown(self, held: list[bytes]) -> bytes:
        """Events in which nothing was generated yet, as clients may see them."""
        run = b"".join(held)
        return judge(self._dialect, run).passed if wants_judging(self._dialect, run) else run


def as_unary(answer: Answer, failure: Failure, decision: Decision) -> Reply:
    """The reply that a failure would have been if the engine had told of it in time."""
    headers = [(name, value) for name, value in answer.headers if name.lower() != "content-type"]
    body = without_params(failure.body)
    return Reply(failure.status, [*headers, ("Content-Type", "application/json")], body, decision)
