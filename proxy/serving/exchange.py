"""A client's request comes in as a `Call` and goes out as a `Reply`, which begins with what an engine has
really produced.

That is the engine's whole answer, or a stream up to its first event that holds something generated. A stream
that fails earlier is an engine's failure like any other, and can be retried: the client has heard nothing.
"""

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec

from proxy.admission import Ticket
from proxy.errors import DeadlineError, LegBrokenError, LegError, StreamFailedError
from proxy.happenings import BlockKeys
from proxy.headers import Headers
from proxy.request.deadlines import Goal
from proxy.request.dialects import Dialect, Failure, Usage
from proxy.request.generation import GenerationRequest
from proxy.request.judging import PARAMS, judge, wants_judging, without_params
from proxy.request.sse import EventCutter, events, only_comments
from proxy.request.uploads import Upload
from proxy.scheduling.decision import Decision
from proxy.serving.ends import Ends
from proxy.serving.ports import Answer

MAX_HELD_EVENTS = 64
MAX_HELD_BYTES = 256 << 10
MAX_HELD_S = 10.0
"""A stream that brings more events or bytes than this without anything generated, or goes on for longer,
counts as begun all the same. vLLM sends the role with the first token, and an error that comes instead 0.1 s
later; but chunks of hidden reasoning are empty, and their client should see that something happens."""


class Held(msgspec.Struct, frozen=True):
    """How much of a stream is held back while nothing is generated; beyond any of it the stream counts as
    begun.
    """

    events: int = MAX_HELD_EVENTS
    size_bytes: int = MAX_HELD_BYTES
    seconds: float = MAX_HELD_S
    """Counted from the first event."""


HELD = Held()


LATE_CLOSE_S = 0.1
"""How long an engine may take to end its answer after the event that ends the stream, so that its connection
can be used again. The client has the whole answer by then."""


class Handshake(msgspec.Struct, frozen=True):
    """A WebSocket that a client wants."""

    query: str
    """The query of its path, with the question mark; empty if there is none."""
    protocols: tuple[str, ...] = ()
    """The subprotocols that it speaks."""


class Trace(msgspec.Struct):
    """What was tried for one client request: for its line in the access log, and for `RequestEnded`."""

    attempts: int = 0
    failed: list[str] = msgspec.field(default_factory=list)
    """`HOST:PORT:reason` of each attempt that failed."""
    prompt: "Known | None" = None
    """Of the prompt that was placed last; None if none was, or if its tokens are unknown."""
    placed: "Foreseen | None" = None
    """Of the attempt that began last; None if none did, or if nobody wants to know."""
    prefill_usage: Usage | None = None
    """What the prefill leg of that attempt told of the prompt; None if none was answered."""
    prefill_s: float | None = None
    """What the prefill leg of that attempt took; None if none was answered."""


class Foreseen(msgspec.Struct, frozen=True):
    """A decision as an attempt begins to follow it."""

    decision: Decision
    at: float
    """In seconds of the monotonic clock."""
    ttft_ms: float | None
    """How long from then to the first token, as it is predicted; None if the policy predicts nothing."""


class Known(msgspec.Struct, frozen=True):
    """What is known of a prompt that was placed."""

    tokens: int
    block_keys: BlockKeys


class Call(msgspec.Struct, frozen=True):
    """One client request."""

    request: GenerationRequest
    headers: Headers
    """The client's headers that engines may see."""
    leg_id: str
    """The request id that both legs carry: kvproxy's own, not the client's."""
    started_at: float
    ticket: Ticket = msgspec.field(default_factory=Ticket)
    """Whose request it is, and how long it had to wait."""
    trace: Trace = msgspec.field(default_factory=Trace)
    session: str | None = None
    """As `Question.session`."""
    goal: Goal | None = None
    """As `Question.goal`."""
    upload: Upload | None = None
    """What its one leg carries in place of the body of the request; None: that body."""
    handshake: Handshake | None = None
    """The WebSocket that its one leg opens; None: it opens none."""
    only: str | None = None
    """As `Question.only`."""
    stored_as: str | None = None
    """The id under which the engine that answers may store its answer; None if it does not."""


class Reply:
    """What goes to the client. Whoever has one MUST close it: that ends the claims, and the engine's work if
    it still runs.
    """

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: "bytes | AsyncIterator[bytes]",
        decision: Decision | None,
        ends: Ends | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        """The whole body, or the events of a stream as they come (raises LegError if the stream is cut)."""
        self.decision = decision
        self.socket: OpenSocket | None = None
        """The open WebSocket, of a reply of status 101."""
        self._ends = ends

    def also_ends(self, ends: Ends) -> None:
        """Have `close` close `ends` too, after what the reply holds itself."""
        if self._ends is not None:
            ends.add(self._ends.close)
        self._ends = ends

    def close(self) -> None:
        """Give back what the request still holds."""
        if self._ends is not None:
            self._ends.close()


class OpenSocket(abc.ABC):
    """An engine's side of a WebSocket; whoever ends it says how it has ended."""

    protocol: str | None
    """The subprotocol that the engine has chosen."""

    @abc.abstractmethod
    async def receive(self) -> str | bytes | None:
        """The engine's next message; None once it has closed the socket. Raises LegError if it breaks."""

    @abc.abstractmethod
    async def send(self, message: str | bytes) -> None:
        """Pass a message on. Raises LegError."""

    @abc.abstractmethod
    async def finish(self, code: int) -> None:
        """Close it in order."""

    @property
    @abc.abstractmethod
    def close_code(self) -> int:
        """The code with which the engine has closed it."""


Take = Callable[[bytes], bool]
"""Gets a run of whole events; returns whether it wants more now. It MUST NOT raise."""


class Runs(AsyncIterator[bytes], abc.ABC):
    """Runs of whole events, one after the other. Between two of them an iterator may call `pour`."""

    @abc.abstractmethod
    async def pour(self, take: Take) -> None:
        """Give `take` the next runs in the turn of the loop in which they arrive, while it returns True.

        Ends before a run that must be looked at, which iterating gives then. Raises what iterating raises.
        """


class EngineStream:
    """An engine's stream, in runs of whole events, up to the event that ends it; nothing after that is passed
    on.

    Comments are passed on, but they do not prove that the engine is at work: they extend no deadline.
    """

    def __init__(
        self,
        answer: Answer,
        chunk_s: float,
        dialect: Dialect,
        *,
        held: Held = HELD,
        late_close_s: float = LATE_CLOSE_S,
        recount: Callable[[bytes], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`chunk_s`: how long the engine may pause between chunks; `late_close_s`: how long it may take to
        close after its last event; `recount`: what becomes of each run that was judged.
        """
        self._answer = answer
        self._dialect = dialect
        self._chunk_s = chunk_s
        self._most = held
        self._late_close_s = late_close_s
        self._recount = recount
        self._clock = clock
        self._cutter = EventCutter()
        self._held = self._ready = b""
        self._failure: Failure | None = None
        self._done = False
        self._waited_s = 0.0
        self._waits_since = 0.0

    async def begin(self) -> Failure | None:
        """Wait until something was generated; returns the failure if the engine reports one before.

        Raises LegError if the stream is cut before.
        """
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
                break  # held back for `Held.seconds`
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
        """The next events; empty once the stream is complete.

        Raises LegError if the stream is cut, StreamFailedError if the engine reports a failure in it.
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
                if self._recount is not None:
                    passed = self._recount(passed)
            if self._held:
                passed, self._held = self._held + passed, b""
            if passed:
                return passed
        if self._failure is not None:
            raise StreamFailedError(self._answer.instance, *self._failure)
        return b""

    async def pour(self, take: Take) -> None:
        """Give `take` runs of whole events in the turn of the loop in which they arrive.

        Ends once `take` returns False, and before a run that must be looked at, which `next` gives then.
        `take` MUST NOT raise. Raises what `next` raises.
        """
        if self._held or self._ready or self._done or self._failure:
            return
        spoilt: str | None = None
        in_full = not self._waited_s
        feed, clock, ends_or_fails = self._cutter.feed, self._clock, self._dialect.wants_judging

        def pass_on(chunk: bytes) -> bool:
            nonlocal spoilt
            try:
                run = feed(chunk)
            except ValueError as error:
                spoilt = str(error)
                return False
            if run.startswith(b"data") and not self._waited_s:
                self._waits_since = clock()
            else:
                self._heard(run)
            if run and (len(run) > MAX_HELD_BYTES or PARAMS in run or ends_or_fails(run)):
                self._ready = run
                return False
            wanted = not run or take(run)
            return wanted and in_full and not self._waited_s  # else the engine has another time left

        self._waits_since = self._clock()
        try:
            await self._answer.pour(pass_on, max(0.0, self._chunk_s - self._waited_s))
        except DeadlineError as error:
            if not self._waited_s:
                raise
            raise self._nothing_but_comments() from error
        if spoilt is not None:
            raise LegBrokenError(self._answer.instance, spoilt)

    async def drain(self) -> None:
        """Wait up to `late_close_s` for the engine to end its answer, after the last event."""
        with suppress(LegError, TimeoutError):
            async with asyncio.timeout(self._late_close_s):
                while await self._answer.next_chunk():
                    pass

    async def _pending(self) -> bytes:
        """The next run of whole events; empty if the chunk completed none."""
        if self._held:
            return b""  # the events that were held back go first
        self._waits_since = self._clock()
        try:
            chunk = await self._answer.next_chunk(max(0.0, self._chunk_s - self._waited_s))
        except DeadlineError as error:
            if not self._waited_s:
                raise
            raise self._nothing_but_comments() from error
        run = self._whole(chunk)
        if run is None:
            raise LegBrokenError(self._answer.instance, "the stream ended without its last event")
        self._heard(run)
        return run

    def _heard(self, run: bytes) -> None:
        """A chunk arrived that completed the events of `run`: renew the deadline unless all are comments."""
        now = self._clock()
        if only_comments(run) if run else self._cutter.tail_is_comment:
            self._waited_s += now - self._waits_since
        else:
            self._waited_s = 0.0
        self._waits_since = now

    def _nothing_but_comments(self) -> DeadlineError:
        words = f"the engine sent nothing but comments for {self._chunk_s:g} s"
        return DeadlineError(self._answer.instance, words)

    def _whole(self, chunk: bytes) -> bytes | None:
        """The whole events that `chunk` completes; None if the answer ends without the event that ends it."""
        if chunk:
            try:
                return self._cutter.feed(chunk)
            except ValueError as error:
                raise LegBrokenError(self._answer.instance, str(error)) from error
        rest = self._cutter.rest()
        _, failure, done = judge(self._dialect, rest)
        return rest if failure is not None or done else None  # anything else may be half an event

    def _shown(self, held: list[bytes]) -> bytes:
        """The held-back events, without what clients must not see."""
        run = b"".join(held)
        return judge(self._dialect, run).passed if wants_judging(self._dialect, run) else run


def as_unary(answer: Answer, failure: Failure, decision: Decision) -> Reply:
    """The reply for a failure inside an answer of status 200, with the status that the failure names."""
    headers = [(name, value) for name, value in answer.headers if name.lower() != "content-type"]
    body = without_params(failure.body)
    return Reply(failure.status, [*headers, ("Content-Type", "application/json")], body, decision)
