"""A client tells one thing of each request: how it ended, judged by nothing but the bytes that came."""

import asyncio
import enum
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from socket import SO_RCVBUF, SOL_SOCKET, socket
from typing import Any

import aiohttp

from proof.workload import Manner, Plan, Workload

DEADLINE_S = 60.0
"""As long as a client waits for the end of an answer."""

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
    """A stream said [DONE]."""
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


@asynccontextmanager
async def sessions() -> AsyncIterator[dict[bool, aiohttp.ClientSession]]:
    """Connections for clients that read at once (False), and for those that read slowly (True)."""

    def small(info: Any) -> socket:
        family, kind, protocol, *_ = info
        made = socket(family, kind, protocol)
        made.setblocking(False)
        made.setsockopt(SOL_SOCKET, SO_RCVBUF, SMALL_BUFFER_BYTES)
        return made

    forever = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=forever, connector=aiohttp.TCPConnector(limit=0)) as quick,
        aiohttp.ClientSession(
            timeout=forever,
            connector=aiohttp.TCPConnector(limit=0, socket_factory=small, force_close=True),
        ) as slow,
    ):
        yield {False: quick, True: slow}


async def send(session: aiohttp.ClientSession, url: str, plan: Plan) -> Record:
    """Send one request and take its answer as planned."""
    record = Record(plan, time.monotonic())
    leaves = plan.manner is Manner.LEAVES
    try:
        async with asyncio.timeout(plan.leaves_after_s if leaves else DEADLINE_S):
            await _exchange(session, url, record)
    except TimeoutError:
        record.end = End.LEFT if leaves else End.DEADLINE
    except (aiohttp.ClientError, OSError) as error:
        record.end = End.NO_ANSWER if record.status is None else End.CUT
        record.error = record.error or f"{type(error).__name__}: {error}"
    record.ended = time.monotonic()
    record.compare()
    return record


async def _exchange(session: aiohttp.ClientSession, url: str, record: Record) -> None:
    plan = record.plan
    slow = plan.manner is Manner.READS_SLOWLY
    more: dict[str, Any] = {"read_bufsize": SLOW_READ_BYTES} if slow else {}
    async with session.post(
        url + plan.path, json=plan.body, headers={"X-Request-Id": plan.id}, **more
    ) as answer:
        record.head_at = time.monotonic()
        record.status = answer.status
        record.prefill = answer.headers.get("X-Kvproxy-Prefill", "")
        record.decode = answer.headers.get("X-Kvproxy-Decode", "")
        if answer.headers.get("X-Request-Id") != plan.id:
            record.malformed = "the answer carries another request's id"
        if answer.content_type != "text/event-stream":
            data = await answer.read()
            record.first_byte_at = time.monotonic()
            record.end = End.CLEAN
            _whole(record, data)
            return
        reading = _Events(record)
        while chunk := await (answer.content.read(SLOW_READ_BYTES) if slow else answer.content.readany()):
            if record.first_byte_at is None:
                record.first_byte_at = time.monotonic()
            reading.feed(chunk)
            if slow:
                await asyncio.sleep(SLOW_READ_PAUSE_S)
        reading.end()
        record.end = End.CLEAN


def _whole(record: Record, data: bytes) -> None:
    try:
        body = json.loads(data)
        if record.status != 200:
            record.error = str(body["error"]["message"])
            return
        choices = sorted(body["choices"], key=lambda choice: int(choice["index"]))
        record.texts = tuple(_text(choice, "message") for choice in choices)
    except (ValueError, KeyError, TypeError) as error:
        record.malformed = f"{type(error).__name__}: {error} in {data[:200]!r}"


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
        data = event.removeprefix(b"data: ")
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
            for choice in body["choices"]:
                before = record.texts[0] if record.texts else ""
                record.texts = (before + _text(choice, "delta"),)
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
        """Each client asks, takes its answer, thinks for `pause_s` on average, until the event; all answers are awaited."""
        clients = list(workloads)
        async with sessions() as ways, asyncio.TaskGroup() as group:
            for number, workload in enumerate(clients):
                late_s = ramp_s * number / len(clients)
                group.create_task(self._client(workload, ways, until, pause_s, late_s))

    async def _client(
        self,
        workload: Workload,
        ways: dict[bool, aiohttp.ClientSession],
        until: asyncio.Event,
        pause_s: float,
        late_s: float,
    ) -> None:
        await _pause(until, late_s)
        while not until.is_set():
            plan = workload.next()
            self.running += 1
            self._begun.append(time.monotonic())
            try:
                record = await send(ways[plan.manner is Manner.READS_SLOWLY], self.url, plan)
            finally:
                self.running -= 1
            self.records.append(record)
            await _pause(until, workload.pause_s(pause_s))

    def ends(self) -> Counter[str]:
        """How many requests ended how."""
        return Counter(str(record.end) for record in self.records)


async def _pause(until: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
