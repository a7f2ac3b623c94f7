"""What the end of a stream shows of its engine is told once, however the stream ends.

The end of one whose client leaves shows nothing: whoever holds the reply closes it.
"""

from proxy.errors import LegError, StreamFailedError
from proxy.serving.exchange import EngineStream, Runs, Take
from proxy.serving.legs.leg import REFUSED, SERVED, Leg, Legs, Reason, Streaming, reason_of

_NO_TOKEN = b'"choices":[]'
"""In an event of usage alone."""


class Rest(Runs):
    """The events of a stream that has begun. Both ways to have them raise LegError if it is cut or fails."""

    def __init__(self, stream: EngineStream, legs: Legs, leg: Leg) -> None:
        """`leg` is over with the stream."""
        self._stream = stream
        self._legs = legs
        self._leg = leg

    async def __anext__(self) -> bytes:
        try:
            run = await self._stream.next()
        except LegError as error:
            self._failed(error)
            raise
        if run:
            return run
        self._legs.served(self._leg.chosen.instance)
        self._leg.over(SERVED, answered=True)
        await self._stream.drain()
        raise StopAsyncIteration

    async def pour(self, take: Take) -> None:
        """As `Runs`."""
        try:
            await self._stream.pour(take)
        except LegError as error:
            self._failed(error)
            raise

    def _failed(self, error: LegError) -> None:
        if isinstance(error, StreamFailedError):
            self._legs.broke_off(error)
            self._leg.over(REFUSED if error.clients_own else Reason.STATUS)
        else:
            self._legs.failed(error)
            self._leg.over(reason_of(error))


class CountedRest(Rest):
    """The same of a stream whose events are counted."""

    def __init__(self, stream: EngineStream, legs: Legs, leg: Leg, counted: Streaming) -> None:
        super().__init__(stream, legs, leg)
        self._counted = counted

    async def __anext__(self) -> bytes:
        run = await super().__anext__()
        self._count(run)
        return run

    async def pour(self, take: Take) -> None:
        """As `Runs`."""

        def counts(run: bytes) -> bool:
            self._count(run)
            return take(run)

        await super().pour(counts)

    def _count(self, run: bytes) -> None:
        counted = self._counted
        if counted.events is None:
            counted.events = 0  # what came with the first token
            return
        counted.events += run.count(b"\n\n") - (_NO_TOKEN in run)
