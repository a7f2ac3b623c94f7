"""Runs of a stream are written to the client's connection in the turn of the loop in which they arrive.

They go past aiohttp's writer, in the framing that its head announced, and count in `output_size` as what it
writes itself. It takes no task to pass a run on: the one that serves the request sleeps until something is to
be looked at, or the client has more unread than its connection holds.
"""

from aiohttp import hdrs, web

UNREAD_BYTES = 64 << 10
"""What may wait for the client before its engine is no longer read; where asyncio's transports, too, say that
a writer should pause."""

_EVENT_ENDS = b"\n\n"


class Splice:
    """The runs of one stream on their way to one client."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        """The head of `response` has been written, or goes out with the first run by `response.write`."""
        self._writer = request.writer
        self._transport = request.transport
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self.before = self.last = b""
        """The last run but one, and the last."""

    def note(self, run: bytes) -> None:
        """A run was passed on by other means: remember it."""
        self.before, self.last = self.last, run

    def take(self, run: bytes) -> bool:
        """Write a run. True if the client takes more now. Raises nothing."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False  # the client has left, and its request is about to be cancelled
        self.before, self.last = self.last, run
        data = b"%x\r\n%b\r\n" % (len(run), run) if self._chunked else run
        self._writer.output_size += len(data)
        transport.write(data)
        return transport.get_write_buffer_size() <= UNREAD_BYTES

    async def room(self) -> None:
        """Wait until the client takes more."""
        await self._writer.drain()


class CountingSplice(Splice):
    """A splice that counts events, for a recording."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        super().__init__(request, response)
        self.events = 0

    def note(self, run: bytes) -> None:
        """As `Splice.note`."""
        self.events += run.count(_EVENT_ENDS)
        super().note(run)

    def take(self, run: bytes) -> bool:
        """As `Splice.take`."""
        self.events += run.count(_EVENT_ENDS)
        return super().take(run)
