"""A connection to an engine carries one request after the other, and no request gets the answer to another.

Bytes are read only as fast as they are taken, so a slow reader holds up its own engine and fills no memory.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from typing import cast

from proxy.errors import DeadlineError, LegBrokenError
from proxy.request.body import Encoded, Pieces
from proxy.request.json_pieces import Buffer
from proxy.request.uploads import Upload
from proxy.upstream.answers import AnswerReader

MAX_HELD_BYTES = 128 << 10
"""How much of a body is held until it is taken; with more, reading pauses."""

WHOLE_BYTES = 64 << 10
"""A request's body up to this is written with its head, at once."""

PIECE_BYTES = 256 << 10
"""A larger body is written in pieces of this size, as fast as the engine reads."""


Take = Callable[[bytes], bool]
"""Gets bytes as they arrive; returns whether it wants more. It MUST NOT raise."""


class Connection(asyncio.Protocol):
    """A connection to an engine; the pool makes it, keeps it and closes it."""

    __slots__ = (
        "_at_head",
        "_clock",
        "_given_up",
        "_listener",
        "_loop",
        "_lost",
        "_paused",
        "_poured_at",
        "_reading_paused",
        "_sent_whole",
        "_take",
        "_timer",
        "_transport",
        "_waiter",
        "answer",
        "heard_at",
        "https",
        "in_use",
        "instance",
        "used",
    )

    def __init__(
        self, instance: str, listener: "Listener", *, https: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`listener`: hears when the connection is closed; `clock`: any monotonic seconds."""
        self.instance = instance
        self.https = https
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._given_up: str | None = None
        self._paused = False
        self._reading_paused = False
        self._at_head = False
        self._sent_whole = True
        self._take: Take | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock = clock
        self._poured_at = 0.0
        self.answer = AnswerReader()
        self.in_use = True
        """Whether it carries a request now."""
        self.used = False
        """Whether it carried a request before: the engine may have closed it since."""
        self.heard_at = 0.0
        """When bytes arrived last, in seconds of its clock; 0 if none have."""

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer, take = self.answer, self._take
        answer.feed(data)
        self.heard_at = self._clock()
        if not self.in_use:  # these bytes belong to no request
            self.drop()
            return
        if take is not None and answer.body:
            self._poured_at = self.heard_at
            if not take(answer.take()):
                self._take = None
            elif not answer.complete and answer.broken is None:
                return
            self._wake()
            return
        if answer.body_bytes > MAX_HELD_BYTES and not self._reading_paused and not answer.complete:
            self._reading_paused = True
            if self.is_open:
                self._must.pause_reading()
        if answer.body or answer.complete or answer.broken is not None or (self._at_head and answer.head):
            self._wake()

    def eof_received(self) -> None:
        """The engine sends nothing more. If a request is still being written it will not be read: abort."""
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._lost is None and self._transport is not None:
            self.answer.closed()  # the engine closed it in order
        if self._lost is None:
            self._lost = words_of(error) if error is not None else "its connection ended early"
        self._transport = None
        self._listener.closed(self)
        self._wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # What the pool and the client call.

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Whether its request is over, sent and answered in full, and another may be sent."""
        answer = self.answer
        return answer.complete and answer.reusable and self._sent_whole and self.is_open

    @property
    def has_whole(self) -> bool:
        """Whether the whole answer is here."""
        return self.answer.complete and self.answer.broken is None and not self._reading_paused

    @property
    def is_given_up(self) -> bool:
        """Whether its engine was given up while a request waited for it."""
        return self._given_up is not None

    @property
    def is_waited_for(self) -> bool:
        """Whether a request waits for the engine: for bytes, or for room to write."""
        return self._waiter is not None and not self._waiter.done()

    def begin(self) -> None:
        """A request will be sent on it."""
        self.in_use = True
        self.answer.begin()

    def send_whole(self, head: bytes, body: Encoded | bytearray | None) -> bool:
        """Write a request at once if its body is small; tells whether it was."""
        if body is not None and len(body) > WHOLE_BYTES:
            return False
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if body is not None:
                head = b"".join((head, *body)) if isinstance(body, Pieces) else head + body
            transport.write(head)
        return True

    async def send(self, head: bytes, body: Encoded | bytearray) -> None:
        """Write a request piece by piece. Returns early if the engine answers, or closes, before its end."""
        if not self.is_open:
            return
        self._sent_whole = False
        self._at_head = True
        parts: list[Buffer] = [head]
        size_bytes = 0
        for piece in body if isinstance(body, Pieces) else (body,):
            view = memoryview(piece)
            at = 0
            while at < len(view):
                part = view[at : at + PIECE_BYTES - size_bytes]
                parts.append(part)
                at += len(part)
                size_bytes += len(part)
                if size_bytes == PIECE_BYTES:
                    if not await self._write(parts):
                        return
                    await asyncio.sleep(0)
                    parts, size_bytes = [], 0
        if not parts or await self._write(parts):
            self._sent_whole = True

    async def upload(self, head: bytes, body: Upload, limit_s: float) -> None:
        """Write a request whose body is still arriving. Returns early if the engine answers, or closes,
        before its end.

        Raises DeadlineError if the engine reads nothing for `limit_s` seconds, and what reading the body
        raises: the connection is no use then.
        """
        self._sent_whole = False
        self._at_head = True
        parts: list[Buffer] = [head]
        chunked = body.size_bytes is None
        async for piece in body.pieces():
            parts += [b"%x\r\n" % len(piece), piece, b"\r\n"] if chunked else [piece]
            if not await self._write(parts, limit_s):
                return
            parts = []
        if chunked:
            parts.append(b"0\r\n\r\n")
        if not parts or await self._write(parts, limit_s):
            self._sent_whole = True

    async def _write(self, parts: "list[Buffer]", limit_s: float | None = None) -> bool:
        """Write parts of a request once there is room. Returns False if the engine answers, or closes.

        Raises DeadlineError if there is none for `limit_s` seconds.
        """
        while self._paused and self.is_open and not self._has_said:
            await self._wait(limit_s)
        if self._has_said or not self.is_open:
            return False
        self._must.write(b"".join(parts))  # `writelines` of some 3.12 and 3.13 does not call `pause_writing`
        return True

    async def head(self) -> None:
        """Wait for the head of the answer. Raises LegBrokenError if there is none."""
        answer = self.answer
        self._at_head = True
        while not answer.head:
            if answer.broken is not None or self._lost is not None:
                raise self._broken("no answer")
            self._waiter = self._loop.create_future()
            await self._waiter
        if answer.broken is not None:
            raise self._broken("no answer")
        if not 200 <= answer.status <= 599:  # 101 and numbers that are no status
            raise LegBrokenError(self.instance, f"status {answer.status} is no answer")
        self._at_head = False

    async def data(self, limit_s: float | None, cut: str) -> bytes:
        """The bytes of the body that have arrived since the last call, at least one; b"" at its end.

        Raises LegBrokenError with the words of `cut` if the body ends early, DeadlineError if nothing arrives
        for `limit_s` seconds.
        """
        answer = self.answer
        while not answer.body:
            if answer.broken is not None:
                raise self._broken(cut)
            if answer.complete:
                return b""
            if self._lost is not None:
                raise self._broken(cut)
            await self._wait(limit_s)
        if self._reading_paused:
            self._reading_paused = False
            if self.is_open:
                self._must.resume_reading()
        return answer.take()

    async def pour(self, take: "Take", limit_s: float) -> None:
        """Give `take` the bytes of the body in the turn of the loop in which they arrive.

        Ends once `take` returns False, and once no more bytes come: `data` then says why. Raises
        DeadlineError if nothing arrives for `limit_s` seconds.
        """
        answer = self.answer
        while answer.body:
            if not take(await self.data(None, "")):
                return
        if answer.complete or answer.broken is not None or self._lost is not None:
            return
        self._take, self._poured_at = take, self._clock()
        waiter = self._waiter = self._loop.create_future()
        self._timer = self._loop.call_later(limit_s, self._look, waiter, limit_s)
        try:
            await waiter
        finally:
            self._take = None
            if self._waiter is waiter:
                self._waiter = None
            self._timer.cancel()

    def _look(self, waiter: "asyncio.Future[None]", limit_s: float) -> None:
        """Raise DeadlineError in `pour` if nothing arrived for `limit_s`; else set the timer anew."""
        left_s = self._poured_at + limit_s - self._clock()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look, waiter, limit_s)
        else:
            _late(waiter, self.instance, limit_s)

    def give_up(self, why: str) -> None:
        """Close it, and raise LegBrokenError with the words `why` in the request that waits."""
        self._given_up = self._lost = why
        self.drop()
        self._wake()

    def drop(self) -> None:
        """Close it at once: the engine then aborts the request that it works on."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._listener.closing(self)
            transport.abort()

    @property
    def _has_said(self) -> bool:
        """Whether the head of an answer has arrived, or bytes that are no answer."""
        return self.answer.head or self.answer.broken is not None

    @property
    def _must(self) -> asyncio.Transport:
        """The transport of a connection that is open."""
        if self._transport is None:
            raise RuntimeError("the connection is closed")
        return self._transport

    def _broken(self, what: str) -> LegBrokenError:
        words = self._given_up or f"{what} ({self.answer.broken or self._lost})"
        return LegBrokenError(self.instance, words)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, limit_s: float | None) -> None:
        """Wait until something happens. Raises DeadlineError if nothing does for `limit_s` seconds."""
        waiter = self._waiter = self._loop.create_future()
        timer = (
            None if limit_s is None else self._loop.call_later(limit_s, _late, waiter, self.instance, limit_s)
        )
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
            if timer is not None:
                timer.cancel()


class Listener:
    """Hears what becomes of connections; a base class."""

    def closing(self, connection: Connection) -> None:
        """A connection is being closed from this side; its descriptor stays open until `closed`."""
        raise NotImplementedError

    def closed(self, connection: Connection) -> None:
        """A connection is closed, by either side."""
        raise NotImplementedError


def _late(waiter: "asyncio.Future[None]", instance: str, limit_s: float) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineError(instance, f"the engine sent nothing for {limit_s:g} s"))


def words_of(error: BaseException) -> str:
    """What went wrong, without the addresses, codes and pieces of answers that libraries' messages carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message or 'it does not fit the name'})"
    if isinstance(error, ssl.SSLError):
        return "no TLS connection came about"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own words contain the address
    return "the connection was closed"
