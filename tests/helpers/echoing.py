"""An engine that fails in every way there is, each time with the request it was sent in its answer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from proxy.tasks import TaskOwner
from tests.hostile.raw_engine import MODELS


def _whole(status: bytes, body: bytes, head: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body)


def _error(sent: bytes) -> bytes:
    text = sent.decode("utf-8", "replace")
    return json.dumps({"error": {"message": text, "type": text, "param": text, "code": 500}}).encode()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _in_chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


WAYS: list[Callable[[bytes], bytes]] = [
    lambda sent: _whole(b"500 " + sent[:20].replace(b"\n", b" "), _error(sent)),
    lambda sent: _whole(b"400 Bad Request", _error(sent)),
    lambda sent: _whole(b"503 Service Unavailable", sent, b"Content-Type: text/plain\r\n"),
    lambda sent: _whole(b"200 OK", sent, b"Content-Type: text/plain\r\n"),
    lambda sent: _whole(b"200 OK",
    b'{"kv_transfer_params": ' + json.dumps(sent.decode("latin-1")).encode() + b"}"),
    lambda sent: _whole(b"200 OK", b'{"usage": ' + json.dumps(sent.decode("latin-1")).encode() + b"}"),
    lambda sent: _whole(b"307 Temporary Redirect", b"", b"Location: /" + sent[:50].hex().encode() + b"\r\n"),
    lambda sent: b"HTTP/1.1 " + sent + b"\r\n\r\n",
    lambda sent: b"HTTP/1.1 200 OK\r\nX-Echo\x00: " + sent + b"\r\n\r\n",
    lambda sent: b"HTTP/1.1 200 OK\r\nContent-Length: " + sent + b"\r\n\r\n",
    lambda sent: b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + sent,
    lambda sent: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent + b"\r\n" + sent,
    lambda sent: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" + sent,
    lambda sent: STREAM + _in_chunks(b"data: " + _error(sent) + b"\n\n"),
    lambda sent: STREAM + _in_chunks(b"data: {}\n\n", b"data: " + _error(sent) + b"\n\n") + b"0\r\n\r\n",
    lambda sent: STREAM + _in_chunks(b"data: {}\n\n", sent) + sent,
    lambda sent: sent,
    lambda _sent: b"",
]  # fmt: skip


class EchoingEngine(NamedTuple):
    """Where it listens, and what it was sent."""

    address: str
    legs: list[bytes]


@contextlib.asynccontextmanager
async def echoing_engine() -> AsyncIterator[EchoingEngine]:
    """Each generating request fails in the next of `WAYS`; it looks healthy to whoever checks."""
    tasks = TaskOwner("echoing engine")
    legs: list[bytes] = []
    others: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1]
                fields = dict(
                    line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
                )
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                if path == b"/v1/models":
                    writer.write(
                        _whole(b"200 OK", MODELS, b"Content-Type: application/json\r\nConnection: close\r\n")
                    )
                elif path in {b"/health", b"/ping"}:
                    writer.write(_whole(b"200 OK", b"", b"Connection: close\r\n"))
                else:
                    asked = legs if path.startswith(b"/v1/") else others
                    asked.append(body)
                    writer.write(WAYS[len(asked) % len(WAYS)](head + body))
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(
        lambda reader, writer: tasks.create(answer(reader, writer), name="connection"), "127.0.0.1", 0
    )
    try:
        yield EchoingEngine(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", legs)
    finally:
        server.close()
        await tasks.close()
