"""All HTTP to engines goes through the `EngineClient`: whatever fails is raised as a LegError. Redirects are
not followed, bodies not decompressed, cookies not kept.
"""

import asyncio
import pathlib
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from proxy.config import Deadlines, InstanceSpec
from proxy.descriptors import Descriptors
from proxy.errors import DeadlineError, LegBrokenError, TooLongError
from proxy.headers import Headers
from proxy.request.body import Encoded
from proxy.request.uploads import Upload
from proxy.tls import engine_context
from proxy.upstream.bounds import in_words, max_bytes
from proxy.upstream.connection import Connection, Take
from proxy.upstream.names import FRESH_S, SILENT_S, Names
from proxy.upstream.pool import Pool
from proxy.upstream.questions import head_of
from proxy.upstream.sockets import EngineSocket, Sockets

KEEPALIVE_S = 4.0
"""How long a free connection is kept: vLLM closes it after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""

_GIVEN_UP = "the engine stopped answering"
_CUT = "the engine's answer was cut off"
_STREAM_CUT = "the engine's stream was cut off"


class EngineAnswer:
    """The head of an engine's answer, and its body as it arrives. MUST be closed; `with` does so."""

    __slots__ = (
        "_connection",
        "_content_length",
        "_max_bytes",
        "_path",
        "_pool",
        "headers",
        "instance",
        "is_event_stream",
        "status",
    )

    def __init__(self, path: str, asked_bytes: int, connection: Connection, pool: Pool) -> None:
        """`path`, `asked_bytes`: what was asked, and the length of that body. The head has arrived."""
        head = connection.answer
        self._path = path
        self._connection: Connection | None = connection
        self._pool = pool
        self._max_bytes = max_bytes(path, asked_bytes, head.status)
        self._content_length = head.content_length or 0
        self.instance = connection.instance
        self.status = head.status
        self.headers: Headers = head.headers
        self.is_event_stream = head.media_type == "text/event-stream"

    async def read(self, max_bytes: int | None = None) -> bytes:
        """The whole body, of at most `max_bytes`, and of no more than `upstream/bounds.py` allows.

        Raises LegBrokenError if it ends early, TooLongError as soon as it is longer: no more of it is read.
        """
        most = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        if self._content_length > most:
            raise self._too_long(most)
        if (connection := self._connection) is not None and connection.has_whole:
            chunk = connection.answer.take()
            self.close()
            if len(chunk) > most:
                raise self._too_long(most)
            return chunk
        chunks: list[bytes] = []
        size_bytes = 0
        while chunk := await self._next(None, _CUT):
            size_bytes += len(chunk)
            if size_bytes > most:
                raise self._too_long(most)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        """The next piece of the body as it arrives; empty at its end.

        Raises LegBrokenError if the body ends early, DeadlineError if no piece comes for `limit_s` seconds.
        """
        return await self._next(limit_s, _STREAM_CUT)

    async def pour(self, take: Take, limit_s: float) -> None:
        """Give `take` the pieces of the body as they arrive, in the same turn of the loop.

        Ends once `take` returns False, and once no more pieces come: `next_chunk` then says why. Raises
        DeadlineError if no piece comes for `limit_s` seconds.
        """
        connection = self._connection
        if connection is not None:
            await connection.pour(take, limit_s)
            self._release_if_whole(connection)

    async def _next(self, limit_s: float | None, cut: str) -> bytes:
        connection = self._connection
        if connection is None:
            return b""
        chunk = await connection.data(limit_s, cut)
        self._release_if_whole(connection)
        return chunk

    def _release_if_whole(self, connection: Connection) -> None:
        """Give the connection back as early as possible: the next leg may use it."""
        answer = connection.answer
        if answer.complete and not answer.body and answer.broken is None:
            self._connection = None
            self._pool.release(connection)

    def _too_long(self, max_bytes: int) -> TooLongError:
        self.close()
        return TooLongError(self.instance, f"its answer to {self._path} is longer than {in_words(max_bytes)}")

    def close(self) -> None:
        """Drop the connection unless the body was read to its end: the engine then aborts the request."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.answer.body or not connection.answer.complete:
                connection.drop()
            self._pool.release(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Uploaded:
    """A leg that was sent piece by piece, and whose answer is still to come. MUST be closed, or asked for its
    answer.
    """

    def __init__(self, path: str, connection: Connection, pool: Pool) -> None:
        self.connection = connection
        self._path = path
        self._pool = pool

    async def answer(self) -> EngineAnswer:
        """Wait for the head of the answer. Raises LegBrokenError if none comes."""
        try:
            await self.connection.head()
        except BaseException:
            self.close()
            raise
        return EngineAnswer(self._path, 0, self.connection, self._pool)

    def close(self) -> None:
        """Drop the connection."""
        self.connection.drop()
        self._pool.release(self.connection)


class EngineClient:
    """One connection pool to all engines; use it as an async context manager."""

    def __init__(
        self,
        *,
        engine_api_key: str | None = None,
        engine_ca: pathlib.Path | None = None,
        connect_timeout_s: float = Deadlines().connect_s,
        descriptors: Descriptors | None = None,
        keepalive_s: float = KEEPALIVE_S,
        name_fresh_s: float = FRESH_S,
        resolver_silent_s: float = SILENT_S,
    ) -> None:
        """`engine_ca`: a file of the authorities that certify https engines; `descriptors`: bounds the number
        of connections; `name_fresh_s`, `resolver_silent_s`: see `Names`.

        Raises ConfigError if `engine_ca` cannot be used.
        """
        self._authorization = f"Bearer {engine_api_key}" if engine_api_key else None
        self._names = Names(fresh_s=name_fresh_s, silent_s=min(resolver_silent_s, connect_timeout_s * 0.8))
        tls = engine_context(engine_ca)
        self._pool = Pool(
            self._names,
            tls,
            connect_timeout_s=connect_timeout_s,
            keepalive_s=keepalive_s,
            descriptors=descriptors,
        )
        self._sockets = Sockets(self._names, tls, self._pool, connect_timeout_s=connect_timeout_s)

    def reach(self, spec: InstanceSpec) -> None:
        """Connect to an instance with TLS, or without, from now on, as its spec says."""
        self._pool.speak(spec.address, https=spec.scheme == "https")

    def give_up(self, instance: str) -> None:
        """An engine was found dead although its connections are open: break every leg that waits for it."""
        self._pool.give_up(instance, _GIVEN_UP)

    def heard_at(self, instance: str) -> float | None:
        """When an engine last sent something, by `time.monotonic`; None if never."""
        return self._pool.heard_at(instance)

    def forget(self, instance: str) -> None:
        """An engine is no longer among the instances: close its free connections."""
        self._pool.forget(instance)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sockets.close()
        await self._pool.close()
        await self._names.close()

    def post(
        self, instance: str, path: str, body: Encoded, headers: Headers
    ) -> Coroutine[Any, Any, EngineAnswer]:
        """Send a leg and wait for the head of its answer. It is `_request` itself that is awaited.

        Raises ConnectFailedError if no byte was sent, LegBrokenError if the engine may have seen some.
        """
        return self._request("POST", instance, path, body, headers)

    async def upload(
        self, instance: str, path: str, body: Upload, headers: Headers, limit_s: float
    ) -> "Uploaded":
        """Send a leg whose body is still arriving. It goes over a connection of its own: one that was used
        might turn out to be closed, and the body cannot be sent again.

        Raises ConnectFailedError if no byte was sent, LegBrokenError if the engine may have seen some,
        DeadlineError if the engine reads nothing for `limit_s` seconds, and what reading the body raises.
        """
        try:
            head = head_of("POST", instance, path, headers, None, self._authorization, upload=body)
        except ValueError as error:
            raise LegBrokenError(instance, f"no answer ({error})") from error
        sent = Uploaded(path, await self._pool.fresh(instance), self._pool)
        try:
            await sent.connection.upload(head, body, limit_s)
        except BaseException:
            sent.close()
            raise
        return sent

    async def open(
        self, instance: str, path: str, headers: Headers, protocols: Sequence[str]
    ) -> EngineSocket:
        """Open a WebSocket; `path`: with its query. What the engine answers if it refuses is returned, too.

        Raises ConnectFailedError if no byte was sent, LegBrokenError if the engine may have seen some.
        """
        return await self._sockets.open(instance, path, headers, protocols, self._authorization)

    def ask(
        self, method: str, instance: str, path: str, body: Encoded | None, headers: Headers
    ) -> Coroutine[Any, Any, EngineAnswer]:
        """Send any request and wait for the head of its answer. Raises LegError as `post`."""
        return self._request(method, instance, path, body, headers)

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: Encoded | bytearray | None,
        timeout_s: float,
        headers: Headers | None = None,
        *,
        max_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        """The status and body of an engine's answer, whatever they are.

        Raises LegError if there is no answer, DeadlineError (a LegError) if none comes within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                with await self._request(method, instance, path, body, headers or []) as answer:
                    return answer.status, await answer.read(max_bytes)
        except TimeoutError:
            raise DeadlineError(instance, f"no answer to {path} within {timeout_s:g} s") from None

    async def _request(
        self, method: str, instance: str, path: str, body: Encoded | bytearray | None, headers: Headers
    ) -> EngineAnswer:
        size_bytes = None if body is None else len(body)
        try:
            head = head_of(method, instance, path, headers, size_bytes, self._authorization)
        except ValueError as error:
            raise LegBrokenError(instance, f"no answer ({error})") from error
        connection = self._pool.free(instance) or await self._pool.fresh(instance)
        while True:
            try:
                if not connection.send_whole(head, body) and body is not None:
                    await connection.send(head, body)
                await connection.head()
                return EngineAnswer(path, size_bytes or 0, connection, self._pool)
            except BaseException as error:
                connection.drop()
                self._pool.release(connection)
                # The engine may have closed a free connection just as it was used. A GET is sent again then;
                # a leg is not, since the engine may have acted on it.
                closed = isinstance(error, LegBrokenError) and not connection.answer.status
                stale = closed and connection.used and not connection.is_given_up
                if method != "GET" or not stale:
                    raise
            connection = await self._pool.fresh(instance)  # which is not `used`: there is no third time
