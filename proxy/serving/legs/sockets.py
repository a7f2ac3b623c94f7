"""What the end of a WebSocket shows of its engine is told once, as for a stream."""

from proxy.errors import LegError
from proxy.serving.exchange import OpenSocket
from proxy.serving.legs.leg import SERVED, Leg, Legs, reason_of
from proxy.serving.ports import Socket

SWITCHED = 101
"""The status of an answer that opens a WebSocket."""


class LegSocket(OpenSocket):
    """The socket of a leg, which is over with it. A client that leaves shows nothing of the engine: whoever
    holds the reply closes it.
    """

    def __init__(self, socket: Socket, legs: Legs, leg: Leg) -> None:
        self._socket = socket
        self._legs = legs
        self._leg = leg
        self.protocol = socket.protocol

    @property
    def close_code(self) -> int:
        """As `OpenSocket`."""
        return self._socket.close_code

    async def receive(self) -> str | bytes | None:
        """As `OpenSocket`."""
        try:
            message = await self._socket.receive()
        except LegError as error:
            self._failed(error)
            raise
        if message is None:
            self._served()
        return message

    async def send(self, message: str | bytes) -> None:
        """As `OpenSocket`."""
        try:
            await self._socket.send(message)
        except LegError as error:
            self._failed(error)
            raise

    async def finish(self, code: int) -> None:
        """As `OpenSocket`."""
        self._served()
        await self._socket.finish(code)

    def _served(self) -> None:
        self._legs.served(self._leg.chosen.instance)
        self._leg.over(SERVED, answered=True)

    def _failed(self, error: LegError) -> None:
        self._legs.failed(error)
        self._leg.over(reason_of(error))
