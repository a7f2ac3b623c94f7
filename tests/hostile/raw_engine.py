"""An engine every byte of whose answers is told it; what nothing is told of it answers as a healthy one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from proxy.tasks import TaskOwner

MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"

_WRITE_BYTES = 64 << 10

Pieces = bytes | Iterable[bytes] | Callable[[], Iterable[bytes]]
"""An answer; what is called makes it anew each time."""


def answer(body: bytes, status: bytes = b"200 OK", head: bytes = b"") -> bytes:
    """A whole answer of JSON."""
    return (
        b"HTTP/1.1 %s\r\n%sConnection: close\r\nContent-Type: application/json\r\nContent-Length: "
        b"%d\r\n\r\n%s"
    ) % (
        status,
        head,
        len(body),
        body,
    )


HEALTHY: dict[str, Pieces] = {
    "/health": answer(b""),
    "/v1/models": answer(MODELS),
    "/version": answer(b'{"version": "0.32.0"}'),
}


class RawEngine:
    """Where it listens, what it was asked, and how much of its answers was taken."""

    def __init__(self, says: Mapping[str, Pieces]) -> None:
        self.says = HEALTHY | dict(says)
        self.asked: list[str] = []
        self.sent_bytes = 0
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request."""
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                length = next(
                    (x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), b":0"
                )
                await reader.readexactly(int(length.partition(b":")[2]))
                self.asked.append(path)
                said = self.says.get(path, answer(b"{}", b"404 Not Found"))
                pieces = said() if callable(said) else said
                for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                    for start in range(0, len(piece), _WRITE_BYTES):
                        part = piece[start : start + _WRITE_BYTES]
                        writer.write(part)
                        await writer.drain()
                        self.sent_bytes += len(part)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def raw_engine(says: Mapping[str, Pieces]) -> AsyncIterator[RawEngine]:
    """`says`: the bytes of the answer for each path; those that are not there are a healthy engine's, or
    404."""
    tasks = TaskOwner("raw engine")
    engine = RawEngine(says)
    server = await asyncio.start_server(
        lambda reader, writer: tasks.create(engine.serve(reader, writer), name="connection"), "127.0.0.1", 0
    )
    engine.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()
        await tasks.close()
