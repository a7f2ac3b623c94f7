"""A connection to kvproxy on which every byte is the test's own."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.helpers.service import Service

BODY = b'{"prompt":[1],"max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


CHUNKS = chunk(BODY) + b"0\r\n\r\n"


class Received:
    """What came back, and whether the connection was closed after it."""

    def __init__(self, data: bytes, closed: bool) -> None:
        self.data = data
        self.closed = closed

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        heads = [line for line in self.data.split(b"\r\n") if line.startswith(b"HTTP/")]
        return [int(line.split()[1]) for line in heads]

    @property
    def error(self) -> Any:
        """The error of the one answer."""
        return json.loads(self.data.partition(b"\r\n\r\n")[2])["error"]


@contextlib.asynccontextmanager
async def connection(
    service: Service,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(service.host, service.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def send(service: Service, data: bytes, *, timeout_s: float = 10) -> Received:
    """Send `data` and read until kvproxy closes the connection, at most `timeout_s`."""
    received = bytearray()
    async with connection(service) as (reader, writer):
        try:
            async with asyncio.timeout(timeout_s):
                writer.write(data)
                await writer.drain()
                while piece := await reader.read(1 << 16):
                    received += piece
        except TimeoutError:
            return Received(bytes(received), closed=False)
        except ConnectionError:
            pass
    return Received(bytes(received), closed=True)
