"""What the end of a stream shows of its engine is told once, however the stream ends.

The end of one whose client leaves shows nothing: whoever holds the reply closes it.
"""

from proxy.errors import LegError, StreamFailedError
from proxy.serving.exchange import EngineStream, Runs, Take
from proxy.serving.legs.leg import REFUSED, SERVED, Leg, Legs, Reason, reason_of


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
