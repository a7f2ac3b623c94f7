"""Invariant: a connection carries one question at a time and its answer; a lost connection is a failed
transfer.

It stands for NIXL's handshake port and remote reads between real engines: msgpack maps after a four-byte
length, on a loopback connection. A decode engine pulls, releases and sends heartbeats; the prefill engine
answers from its holds.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.simulation.engine.memory import Content
from proxy.simulation.engine.request import Remote
from proxy.simulation.engine.values import Handshake, Heartbeat, Pull, Release
from proxy.tasks import TaskOwner

_LENGTH = 4


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a decode engine sends; `verb` is pull, release, heartbeat or meet."""

    verb: str
    engine_id: str
    request_id: str
    blocks: tuple[int, ...] = ()


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """`known` is false if the engine that was asked is not the one that was meant, because it was
    restarted.
    """

    known: bool
    contents: list[tuple[int, list[int]]] = []


class TransferError(Exception):
    """The other engine does not answer, or is another process."""


class _NoReplyError(TransferError):
    """The other engine may have got the question, and does not answer."""


_VERBS = {Release: "release", Heartbeat: "heartbeat", Handshake: "meet"}
_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


async def _receive(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    return await reader.readexactly(length)


def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    body = _encode(message)
    writer.write(len(body).to_bytes(_LENGTH, "big") + body)


class SideChannelServer:
    """Answers other engines. `answer` is called for each question, synchronously."""

    def __init__(self, answer: Callable[[Ask], Reply]) -> None:
        self._answer = answer
        self._tasks = TaskOwner("side channel")
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Begin to listen. Returns the port."""
        self._server = await asyncio.start_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.create(self._serve(reader, writer), name="peer")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _send(writer, self._answer(_decode_ask(await _receive(reader))))
                await writer.drain()
        except (OSError, EOFError, msgspec.DecodeError):
            pass  # the peer has gone, or is no engine
        finally:
            writer.transport.abort()


class SideChannelClient:
    """Asks other engines, and keeps idle connections for the next question."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._idle: dict[tuple[str, int], list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def pull(self, command: Pull) -> Sequence[Content]:
        """The contents of the blocks. Raises TransferError if the other engine cannot give them."""
        reply = await self._ask(command.remote, "pull", command.blocks)
        if not reply.known:
            raise TransferError("the engine was restarted since")
        return [Content.from_wire(content) for content in reply.contents]

    async def tell(self, command: Release | Heartbeat | Handshake) -> None:
        """Send a notice. Raises TransferError if it did not reach the engine that is meant."""
        if not (await self._ask(command.remote, _VERBS[type(command)])).known:
            raise TransferError("the engine was restarted since")

    def close(self) -> None:
        """Drop idle connections."""
        for connections in self._idle.values():
            for _, writer in connections:
                writer.transport.abort()
        self._idle.clear()

    async def _ask(self, remote: Remote, verb: str, blocks: tuple[int, ...] = ()) -> Reply:
        idle = self._idle.setdefault((remote.host, remote.port), [])
        ask = Ask(verb, remote.engine_id, remote.request_id, blocks)
        while idle:
            reader, writer = idle.pop()
            try:
                return await self._exchange(idle, reader, writer, ask)
            except _NoReplyError:
                raise  # the question may still be read, and a second pull would not find the hold
            except TransferError:
                continue  # most likely it was closed while idle
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(remote.host, remote.port)
        except OSError as error:
            raise TransferError(str(error)) from error
        return await self._exchange(idle, reader, writer, ask)

    async def _exchange(
        self,
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ask: Ask,
    ) -> Reply:
        kept = False
        try:
            _send(writer, ask)
            async with asyncio.timeout(self._timeout_s):
                reply = _decode_reply(await _receive(reader))
            idle.append((reader, writer))
            kept = True
        except TimeoutError:
            raise _NoReplyError(f"no reply within {self._timeout_s:g} s") from None
        except (OSError, EOFError, msgspec.DecodeError) as error:
            raise TransferError(str(error)) from error
        else:
            return reply
        finally:
            if not kept:
                writer.transport.abort()
