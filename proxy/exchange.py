"""What comes in and what goes out: a reply begins with what an engine has really produced.

That is its whole answer, or the first event of a stream. A stream that begins with an error is an engine's failure
like any other, so it is found before the client hears anything.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack

import msgspec

from proxy.admission import Ticket
from proxy.collaborators import Answer
from proxy.errors import LegBrokenError
from proxy.generation import GenerationRequest
from proxy.headers import Headers
from proxy.scheduling.decision import Decision

MAX_EVENT_BYTES = 16 << 20
"""No event of an engine comes near this; more without an end is not an event stream."""


class Trace(msgspec.Struct):
    """What was tried for one client request, for its line in the log."""

    attempts: int = 0
    failed: list[str] = msgspec.field(default_factory=list)
    """`HOST:PORT:reason` of each attempt that failed."""


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


async def first_event(answer: Answer) -> bytes:
    """The bytes of a stream up to and with its first data line; comments that keep it alive prove nothing.

    Raises LegError.
    """
    begin = b""
    while chunk := await answer.next_chunk():
        begin += chunk
        if len(begin) > MAX_EVENT_BYTES:
            raise LegBrokenError(
                answer.instance, f"no event in the first {MAX_EVENT_BYTES} bytes of a stream"
            )
        at = begin.find(b"data:")
        if at >= 0 and b"\n" in begin[at:]:
            return begin
    raise LegBrokenError(answer.instance, "the stream ended before its first event")


class _StreamedError(msgspec.Struct):
    code: int = 500


class _StreamedFailure(msgspec.Struct):
    error: _StreamedError


_decode_failure = msgspec.json.Decoder(_StreamedFailure).decode


def _first_data(begin: bytes) -> bytes:
    return begin.partition(b"data:")[2].partition(b"\n")[0].strip()


def error_status(begin: bytes) -> int | None:
    """The status of a stream that begins with an error event; None if it begins with anything else."""
    try:
        code = _decode_failure(_first_data(begin)).error.code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return code if 400 <= code <= 599 else 500


def as_unary(answer: Answer, status: int, begin: bytes, decision: Decision) -> Reply:
    headers = [(name, value) for name, value in answer.headers if name.lower() != "content-type"]
    return Reply(status, [*headers, ("Content-Type", "application/json")], _first_data(begin), decision)
