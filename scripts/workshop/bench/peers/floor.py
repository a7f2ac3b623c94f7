"""A proxy on the libraries that kvproxy uses, which does nothing but pass whole answers on: the least that
any router on them takes.

    python floor.py PORT ENGINE_PORT ...

aiohttp answers clients, httptools reads engines, uvloop turns both. No checks, no deadlines, no metrics, no
log, one leg, engines in turns.
"""

import asyncio
import itertools
import sys
from typing import cast

import httptools
import uvloop
from aiohttp import web

HOST = "127.0.0.1"


class _Engine(asyncio.Protocol):
    """A connection that carries one request after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bytes] | None = None
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        answered, body = self._answered, self._body
        self._body = b""
        if answered is not None and not answered.done():
            answered.set_result(body)

    async def post(self, path: str, body: bytes) -> bytes:
        if self._transport is None:
            raise ConnectionError("the engine's connection is closed")
        self._answered = self._loop.create_future()
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self._answered


class _Floor:
    def __init__(self, engines: list[int]) -> None:
        self._turns = itertools.cycle(engines)
        self._free: dict[int, list[_Engine]] = {port: [] for port in engines}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        port = next(self._turns)
        free = self._free[port]
        if free:
            engine = free.pop()
        else:
            loop = asyncio.get_running_loop()
            _, engine = await loop.create_connection(_Engine, HOST, port)
        answer = await engine.post(request.path, body)
        free.append(engine)
        return web.Response(body=answer, content_type="application/json")


async def _serve(port: int, engines: list[int]) -> None:
    runner = web.ServerRunner(web.Server(_Floor(engines).answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, HOST, port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
