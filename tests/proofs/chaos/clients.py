"""A client tells one thing of each request: how it ended, judged by nothing but the bytes that came."""

import asyncio
import enum
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from socket import AF_INET, SO_RCVBUF, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any

import h11

from tests.proofs.chaos.workload import Manner, Plan, Workload

DEADLINE_S = 60.0
"""As long as a client waits for the end of an answer."""

READ_BYTES = 1 << 16
SLOW_READ_BYTES = 2048
SLOW_READ_PAUSE_S = 0.08
SMALL_BUFFER_BYTES = 4096


class End(enum.StrEnum):
    """How the connection treated the answer."""

    CLEAN = "clean"
    """As HTTP says that a complete answer ends."""
    CUT = "cut"
    """The connection ended before that."""
    NO_ANSWER = "no answer"
    """Not even a head came."""
    LEFT = "left"
    """The client went away on purpose."""
    DEADLINE = "deadline"
    """The client gave up after DEADLINE_S."""


class Says(enum.StrEnum):
    """What an answer's text is, next to the right one."""

    RIGHT = "all of it"
    BEGINNING = "its beginning"
    WRONG = "something else"


@dataclass
class Record:
    """One request as its client saw it. Times are of the monotonic clock."""

    plan: Plan
    begun: float
    head_at: float | None = None
    first_byte_at: float | None = None
    ended: float = 0.0
    end: End | None = None
    status: int | None = None
    prefill: str = ""
    decode: str = ""
    texts: tuple[str, ...] = ()
    done: bool = False
    """A stream said that it is complete: [DONE], or what its dialect says instead."""
    error: str = ""
    """The error event of a stream, the body of an error answer, or what the connection said."""
    error_event: bool = False
    malformed: str = ""
    says: "Says | None" = None

    def compare(self) -> None:
        """Compare what came with what is right; what is right needs no memory any more."""
        expected = self.plan.expected
        if self.texts == expected:
            self.says = Says.RIGHT
        elif all(right.startswith(text) for text, right in zip(self.texts, expected, strict=False)):
            self.says = Says.BEGINNING
        else:
            self.says = Says.WRONG
        if self.says is Says.RIGHT and not self.error and not self.malformed:
            slim = {"stream": self.plan.stream}
            self.plan, self.texts = replace(self.plan, body=slim, expected=()), ()

    def timeline(self, origin: float) -> str:
        def at(moment: float | None) -> str:
            return "-" if moment is None else f"{moment - origin:.2f}"

        return (
            f"begun {at(self.begun)}, head {at(self.head_at)}, first byte {at(self.first_byte_at)},"
            f" ended {at(self.ended)} s"
        )


class Line:
    """One client's connection to kvproxy: kept while answers end cleanly, as browsers and SDKs keep theirs.

    h11 tells a clean end from a cut one, and what had come before a cut is seen: both are what is to be
    judged.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, plan: Plan) -> None:
        """Connect if need be, and send a request."""
        if self._writer is None or plan.manner is Manner.READS_SLOWLY:
            await self._connect(small=plan.manner is Manner.READS_SLOWLY)
        body = json.dumps(plan.body).encode()
        head = h11.Request(
            method="POST",
            target=plan.path,
            headers=[
                ("Host", f"{self._host}:{self._port}"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("X-Request-Id", plan.id),
            ],
        )
        parts = [self._http.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        assert self._writer is not None  # connected above
        self._writer.write(b"".join(part for part in parts if part))
        await self._writer.drain()

    async def events(self, read_bytes: int, pause_s: float = 0.0) -> AsyncIterator[h11.Response | h11.Data]:
        """The answer's head and its data as they come. Ends if the answer ends cleanly, raises OSError or
        h11.RemoteProtocolError if it is cut.
        """
        assert self._reader is not None  # something was sent
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(read_bytes))
                if pause_s:
                    await asyncio.sleep(pause_s)
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.Response | h11.Data):
                yield event
            else:
                raise h11.RemoteProtocolError(f"{event} instead of an answer")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _connect(self, *, small: bool) -> None:
        self.close()
        self._http = h11.Connection(h11.CLIENT)
        sock = socket(AF_INET, SOCK_STREAM)
        sock.setblocking(False)
        if small:
            sock.setsockopt(SOL_SOCKET, SO_RCVBUF, SMALL_BUFFER_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self._host, self._port))
        except BaseException:
            sock.close()
            raise
        limit = SLOW_READ_BYTES if small else READ_BYTES
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=limit)


async def send(line: Line, plan: Plan) -> Record:
    """Send one request and take its answer as planned."""
    record = Record(plan, time.monotonic())
    leaves = plan.manner is Manner.LEAVES
    try:
        async with asyncio.timeout(plan.leaves_after_s if leaves else DEADLINE_S):
            await _exchange(line, record)
    except TimeoutError:
        record.end = End.LEFT if leaves else End.DEADLINE
    except (h11.RemoteProtocolError, OSError) as error:
        record.end = End.NO_ANSWER if record.status is None else End.CUT
        record.error = record.error or f"{type(error).__name__}: {error}"
    record.ended = time.monotonic()
    if record.end is not End.CLEAN or plan.manner is Manner.READS_SLOWLY:
        line.close()
    record.compare()
    return record


async def _exchange(line: Line, record: Record) -> None:
    slow = record.plan.manner is Manner.READS_SLOWLY
    await line.send(record.plan)
    whole, events = bytearray(), _Events(record)
    streamed = False
    async for event in line.events(
        SLOW_READ_BYTES if slow else READ_BYTES, SLOW_READ_PAUSE_S if slow else 0.0
    ):
        if isinstance(event, h11.Response):
            record.head_at = time.monotonic()
            record.status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
            record.prefill = headers.get("x-kvproxy-prefill", "")
            record.decode = headers.get("x-kvproxy-decode", "")
            streamed = headers.get("content-type", "").startswith("text/event-stream")
            if headers.get("x-request-id") != record.plan.id:
                record.malformed = "the answer carries another request's id"
            continue
        record.first_byte_at = record.first_byte_at or time.monotonic()
        if streamed:
            events.feed(bytes(event.data))
        else:
            whole += event.data
    record.end = End.CLEAN
    if streamed:
        events.end()
    else:
        _whole(record, bytes(whole))


def _whole(record: Record, data: bytes) -> None:
    try:
        body = json.loads(data)
        if record.status != 200:
            record.error = str(body["error"]["message"])
            return
        record.texts = _texts(body)
    except (ValueError, KeyError, TypeError) as error:
        record.malformed = f"{type(error).__name__}: {error} in {data[:200]!r}"


def _texts(body: dict[str, Any]) -> tuple[str, ...]:
    """The texts of an answer: of its choices, of a response, or of a message."""
    if "choices" in body:
        choices = sorted(body["choices"], key=lambda choice: int(choice["index"]))
        return tuple(_text(choice, "message") for choice in choices)
    blocks = body["content"] if "content" in body else [b for item in body["output"] for b in item["content"]]
    return ("".join(str(block["text"]) for block in blocks),)


_LAST = frozenset({"response.completed", "message_stop"})
"""The types of events that end a complete stream where none is [DONE]."""


def _piece(event: dict[str, Any]) -> str:
    """The text in an event of a stream."""
    if "choices" in event:
        return "".join(_text(choice, "delta") for choice in event["choices"])
    kind = event["type"]
    if kind == "response.output_text.delta":
        return str(event["delta"])
    return str(event["delta"]["text"]) if kind == "content_block_delta" else ""


def _text(choice: dict[str, Any], part: str) -> str:
    return str(choice["text"] if "text" in choice else choice[part].get("content") or "")


class _Events:
    """Reads a stream's events as they come, so that a cut one shows what had arrived."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        *events, self._tail = (self._tail + chunk).split(b"\n\n")
        for event in events:
            self._event(event)

    def end(self) -> None:
        if self._tail:
            self._record.malformed = f"a clean end within an event: {self._tail[:100]!r}"

    def _event(self, event: bytes) -> None:
        record = self._record
        first, _, second = event.partition(b"\n")
        name, data = (first, second) if second else (b"", first)
        data = data.removeprefix(b"data: ")
        if record.done or record.error_event:
            record.malformed = f"an event after the last one: {event[:100]!r}"
        if data == b"[DONE]":
            record.done = True
            return
        try:
            body = json.loads(data)
            if "error" in body:
                record.error_event, record.error = True, str(body["error"]["message"])
                return
            if name and name != b"event: " + body["type"].encode():
                record.malformed = f"an event that is named otherwise: {event[:100]!r}"
            record.done = body.get("type") in _LAST
            record.texts = ("".join(record.texts) + _piece(body),)
        except (ValueError, KeyError, TypeError) as error:
            record.malformed = f"{type(error).__name__}: {error} in {event[:200]!r}"


@dataclass
class Crowd:
    """All clients and what became of their requests."""

    url: str = ""
    records: list[Record] = field(default_factory=list)
    running: int = 0
    _begun: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def begun_since(self, moment: float) -> int:
        """How many requests were sent since a moment not long ago."""
        return sum(begun >= moment for begun in self._begun)

    async def run(
        self, workloads: Iterable[Workload], until: asyncio.Event, pause_s: float, ramp_s: float = 2.0
    ) -> None:
        """Each client asks, takes its answer, thinks for `pause_s` on average, until the event; all answers
        are awaited."""
        clients = list(workloads)
        async with asyncio.TaskGroup() as group:
            for number, workload in enumerate(clients):
                late_s = ramp_s * number / len(clients)
                group.create_task(self._client(workload, until, pause_s, late_s))

    async def _client(
        self,
        workload: Workload,
        until: asyncio.Event,
        pause_s: float,
        late_s: float,
    ) -> None:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        line = Line(host, int(port))
        await _pause(until, late_s)
        try:
            while not until.is_set():
                plan = workload.next()
                self.running += 1
                self._begun.append(time.monotonic())
                try:
                    record = await send(line, plan)
                finally:
                    self.running -= 1
                self.records.append(record)
                await _pause(until, workload.pause_s(pause_s))
        finally:
            line.close()

    def ends(self) -> Counter[str]:
        """How many requests ended how."""
        return Counter(str(record.end) for record in self.records)


async def _pause(until: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
