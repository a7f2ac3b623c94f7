"""Connections that a burst needed are closed once it is over, however steady the load that follows."""

import asyncio
import time

from proxy.upstream.client import EngineClient

KEEPALIVE_S = 0.3
BURST = 40


class Engine:
    """Answers when it is let; counts its open connections."""

    def __init__(self) -> None:
        self.open = 0
        self.most = 0
        self.goes_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                await reader.readexactly(length)
                await self.goes_on.wait()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def test_a_bursts_connections_are_closed_under_steady_load() -> None:
    engine = Engine()
    async with (
        await asyncio.start_server(engine.serve, "127.0.0.1", 0) as server,
        EngineClient(keepalive_s=KEEPALIVE_S) as client,
    ):
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def ask() -> None:
            with await client.post(address, "/v1/completions", b"{}", []) as answer:
                assert await answer.read() == b"{}"

        async with asyncio.TaskGroup() as burst:
            for _ in range(BURST):
                burst.create_task(ask())
            while engine.most < BURST:  # noqa: ASYNC110  # they have all come
                await asyncio.sleep(0.01)
            engine.goes_on.set()
        gives_up_at = time.monotonic() + 30
        while engine.open > 2 and time.monotonic() < gives_up_at:
            await asyncio.gather(
                ask(), ask()
            )  # two at a time, so often that no connection would ever be idle
        assert engine.open <= 2
        assert engine.most == BURST
