"""A WebSocket to an engine is opened as legs are: by the same names, with the same TLS, under the same bound
on descriptors.

aiohttp speaks the protocol.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.errors import ConnectFailedError, LegBrokenError, envelope
from proxy.headers import Headers
from proxy.upstream.connection import words_of
from proxy.upstream.names import Names
from proxy.upstream.pool import Pool

MAX_MESSAGE_BYTES = 16 << 20
"""The largest message, as of uvicorn, which answers for vLLM (`ws_max_size`)."""

HEARTBEAT_S = 20.0
"""How often an engine that sends nothing is pinged; uvicorn pings as often. One that does not answer in half
that time is taken for dead."""

CLOSE_S = 1.0
"""How long an engine may take to answer that a socket is closed."""


class _Resolver(AbstractResolver):
    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=where[0],
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, where in await self._names.resolve(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is open."""


class EngineSocket:
    """A WebSocket to an engine, or its engine's refusal to open one. MUST be closed."""

    def __init__(
        self,
        instance: str,
        status: int,
        pool: Pool,
        opened: aiohttp.ClientWebSocketResponse[bool] | None = None,
    ) -> None:
        self.instance = instance
        self.status = status
        """101 if it is open."""
        self.headers: Headers = []
        self.is_event_stream = False
        self._pool = pool
        self._opened = opened
        self._holds_place = True
        self._refusal = b""
        if opened is None:
            words = f"the engine opens no WebSocket here (status {status})"
            self._refusal = msgspec.json.encode(envelope(words, "WebSocketRefusedError", status))
            self.headers = [("Content-Type", "application/json")]

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the engine has chosen."""
        return self._opened.protocol if self._opened is not None else None

    @property
    def close_code(self) -> int:
        """The code with which the engine has closed it; 1006 if it did so without."""
        code = self._opened.close_code if self._opened is not None else None
        return code or aiohttp.WSCloseCode.ABNORMAL_CLOSURE

    async def receive(self) -> str | bytes | None:
        """The engine's next message; None once it has closed the socket in order.

        Raises LegBrokenError if the socket breaks.
        """
        if self._opened is None:
            return None
        message = await self._opened.receive()
        if message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
            data: str | bytes = message.data
            return data
        if message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING}:
            return None  # the engine closes it, or `finish` does
        if message.type is aiohttp.WSMsgType.CLOSED and self.close_code != _BROKEN:
            return None
        raise LegBrokenError(self.instance, "the engine's socket broke")

    async def send(self, message: str | bytes) -> None:
        """Pass a message on, as fast as the engine reads. Raises LegBrokenError."""
        if self._opened is None:
            return
        try:
            if isinstance(message, str):
                await self._opened.send_str(message)
            else:
                await self._opened.send_bytes(message)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise LegBrokenError(self.instance, f"the engine's socket broke ({words_of(error)})") from error

    async def finish(self, code: int) -> None:
        """Close it in order, with a code for the engine."""
        if self._opened is not None:
            await self._opened.close(code=code)

    async def read(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002  # there is nothing to bound
        """The body of a refusal. It is kvproxy's own: aiohttp keeps none, and uvicorn sends none."""
        return self._refusal

    async def next_chunk(self, limit_s: float | None = None) -> bytes:  # noqa: ARG002
        """As `read`."""
        return b""

    async def pour(self, take: Any, limit_s: float) -> None:
        """As `read`."""

    def close(self) -> None:
        """Drop it at once, unless it was closed in order. A second call does nothing."""
        if not self._holds_place:
            return
        self._holds_place = False
        self._pool.gives_place()
        if self._opened is not None and not self._opened.closed:
            response = self._opened._response  # noqa: SLF001  # to close without waiting for the engine
            response.close()


_BROKEN = aiohttp.WSCloseCode.ABNORMAL_CLOSURE


class Sockets:
    """Opens WebSockets to engines; MUST be closed."""

    def __init__(self, names: Names, tls: ssl.SSLContext, pool: Pool, *, connect_timeout_s: float) -> None:
        self._names = names
        self._tls = tls
        self._pool = pool
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def open(
        self, instance: str, path: str, headers: Headers, protocols: Sequence[str], authorization: str | None
    ) -> EngineSocket:
        """Open one; `path`: with its query; `protocols`: those that the client speaks.

        Raises ConnectFailedError if no byte was sent, LegBrokenError if the engine may have seen some.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=_Resolver(self._names), limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            )
        given = [(name, value) for name, value in headers if not name.lower().startswith("sec-websocket-")]
        if authorization is not None:
            given = [each for each in given if each[0].lower() != "authorization"]
            given.append(("Authorization", authorization))
        scheme = "wss" if self._pool.is_https(instance) else "ws"
        self._pool.takes_place(instance)
        try:
            opened = await self._session.ws_connect(
                f"{scheme}://{instance}{path}",
                headers=given,
                protocols=protocols,
                ssl=self._tls,
                heartbeat=HEARTBEAT_S,
                max_msg_size=MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status >= 400:
                return EngineSocket(instance, error.status, self._pool)
            self._pool.gives_place()
            raise LegBrokenError(instance, f"no WebSocket (status {error.status})") from error
        except BaseException as error:
            self._pool.gives_place()
            if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError):
                cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
                raise ConnectFailedError(instance, words_of(cause)) from error
            if isinstance(error, aiohttp.ClientError | OSError | ValueError):
                raise LegBrokenError(instance, f"no WebSocket ({words_of(error)})") from error
            raise
        return EngineSocket(instance, 101, self._pool, opened)

    async def close(self) -> None:
        """Close all of them."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)
