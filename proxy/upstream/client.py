"""All HTTP to engines: what aiohttp raises leaves here as a LegError, and no answer is followed, decoded or
stored.
"""

import asyncio
import errno
import os
import pathlib
import socket
import ssl
import time
from collections import defaultdict
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from proxy.config import Deadlines, InstanceSpec
from proxy.descriptors import Descriptors
from proxy.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    DeadlineError,
    LegBrokenError,
    NoSocketError,
    TooLongError,
    UnresolvedError,
)
from proxy.headers import Headers
from proxy.request.body import Encoded, Pieces
from proxy.request.deadlines import Scope
from proxy.tls import engine_context
from proxy.upstream.bounds import in_words, most_bytes
from proxy.upstream.names import FRESH_S, SILENT_S, Names, ResolverError
from proxy.upstream.pool import Pool

KEEPALIVE_S = 4.0
"""vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); ours are dropped before."""

LARGE_BODY_BYTES = 1 << 20
"""More than this at once would hold up the event loop; aiohttp warns of it."""

_PIECE_BYTES = 64 << 10
"""Written at once, before everybody else has a turn."""

_JSON = "application/json"

_NOTHING_LEFT_HERE = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class _Wait(Scope):
    """One wait for bytes of an engine, as a context manager.

    Raises LegBrokenError if the engine is given up meanwhile, DeadlineError once time is up.
    """

    __slots__ = ("_beside", "_heard", "_instance", "_limit_s", "given_up")

    def __init__(
        self, instance: str, limit_s: float | None, beside: "set[_Wait]", heard: dict[str, float]
    ) -> None:
        """`beside`: the waits for the engine, of which this is one while it lasts."""
        super().__init__(None if limit_s is None else asyncio.get_running_loop().time() + limit_s)
        self._instance = instance
        self._limit_s = limit_s
        self._beside = beside
        self._heard = heard
        self.given_up = False

    def late(self) -> LegBrokenError | DeadlineError:
        if self.given_up:
            return LegBrokenError(self._instance, "the engine stopped answering")
        return DeadlineError(self._instance, f"the engine sent nothing for {self._limit_s:g} s")

    def __enter__(self) -> Self:
        self._beside.add(self)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.discard(self)
        if kind is None:
            self._heard[self._instance] = time.monotonic()
        super().__exit__(kind, error, trace)


class _Waits:
    """Who waits for bytes of which engine, so that all can be told when it is given up."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[_Wait]] = defaultdict(set)
        self.heard: dict[str, float] = {}
        """When each engine last sent something anybody waited for."""

    def on(self, instance: str, limit_s: float | None = None) -> _Wait:
        """A wait, of `limit_s` seconds at most."""
        return _Wait(instance, limit_s, self._waiting[instance], self.heard)

    def give_up(self, instance: str) -> None:
        """End all waiting for an engine."""
        waiting = self._waiting.pop(instance, set())
        for wait in waiting:
            wait.given_up = True
            wait.end()

    def forget(self, instance: str) -> None:
        """An engine is gone; who still waits for it waits on."""
        self.heard.pop(instance, None)
        if not self._waiting.get(instance):
            self._waiting.pop(instance, None)


class EngineAnswer:
    """The head of an engine's answer, and its body as it comes. Close it, or use `with`."""

    def __init__(
        self, instance: str, path: str, response: aiohttp.ClientResponse, waits: _Waits, asked_bytes: int
    ) -> None:
        """`path` and `asked_bytes`: what was asked, and how many bytes that took."""
        self._waits = waits
        self._path = path
        self._most_bytes = most_bytes(path, asked_bytes, response.status)
        self.instance = instance
        self.status = response.status
        self.headers: Headers = list(response.headers.items())
        self.is_event_stream = response.content_type == "text/event-stream"
        self._response = response

    async def read(self, most_bytes: int | None = None) -> bytes:
        """The whole body, of `most_bytes` at most or else what an answer to that may have
        (`upstream.bounds`).

        Raises LegBrokenError if it ends early, TooLongError once it is longer: no more of it is read.
        """
        most = self._most_bytes if most_bytes is None else min(most_bytes, self._most_bytes)
        if (self._response.content_length or 0) > most:
            raise self._too_long(most)
        try:
            with self._waits.on(self.instance):
                chunks: list[bytes] = []
                size_bytes = 0
                while chunk := await self._response.content.readany():
                    size_bytes += len(chunk)
                    if size_bytes > most:
                        raise self._too_long(most)
                    chunks.append(chunk)
                return b"".join(chunks)
        except (aiohttp.ClientError, OSError) as error:
            raise LegBrokenError(
                self.instance, f"the engine's answer was cut off ({_words(error)})"
            ) from error

    def _too_long(self, most_bytes: int) -> TooLongError:
        self.close()
        return TooLongError(
            self.instance, f"its answer to {self._path} is longer than {in_words(most_bytes)}"
        )

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        """The next piece of the body as it arrives, nothing at its end.

        Raises LegBrokenError if the body ends early, DeadlineError if no piece comes for `limit_s` seconds.
        """
        try:
            with self._waits.on(self.instance, limit_s):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise LegBrokenError(
                self.instance, f"the engine's stream was cut off ({_words(error)})"
            ) from error

    def close(self) -> None:
        """Drop the connection unless the body was read to its end: the engine then aborts the request."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        """`engine_ca`: a file of the authorities that certify https engines; `descriptors`: what bounds its
        connections; `name_fresh_s`, `resolver_silent_s`: as `Names` has them.

        Raises ConfigError.
        """
        self._descriptors = descriptors
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._authorization = {"Authorization": f"Bearer {engine_api_key}"} if engine_api_key else {}
        self._tls = engine_context(engine_ca)
        self._https: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._names = Names(fresh_s=name_fresh_s, silent_s=min(resolver_silent_s, connect_timeout_s * 0.8))
        self._waits = _Waits()

    def reach(self, spec: InstanceSpec) -> None:
        """From now on, speak to an instance as it was named: with TLS, or without."""
        (self._https.add if spec.scheme == "https" else self._https.discard)(spec.address)

    def give_up(self, instance: str) -> None:
        """An engine was found dead although its connections stand: every leg that waits for it is broken."""
        self._waits.give_up(instance)

    def heard_at(self, instance: str) -> float | None:
        """When an engine last sent something, by `time.monotonic`; None if never."""
        return self._waits.heard.get(instance)

    def forget(self, instance: str) -> None:
        """An engine is not among the instances any more."""
        self._waits.forget(instance)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=Pool(
                self._descriptors,
                limit=0,
                keepalive_timeout=self._keepalive_s,
                ssl=self._tls,
                resolver=self._names,
                use_dns_cache=False,  # names are remembered longer than by aiohttp, and never waited for twice
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent",),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        await self._names.close()

    async def post(self, instance: str, path: str, body: Encoded, headers: Headers) -> EngineAnswer:
        """Send a leg and wait for the head of its answer.

        Raises ConnectFailedError if no byte was sent, LegBrokenError if the engine may have seen some.
        """
        return await self._request("POST", instance, path, body, headers)

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: bytes | bytearray | None,
        timeout_s: float,
        headers: Headers | None = None,
        *,
        most_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an engine's answer, whatever they are. Raises LegError, DeadlineError if time is
        up.
        """
        try:
            async with asyncio.timeout(timeout_s):
                with await self._request(method, instance, path, body, headers or []) as answer:
                    return answer.status, await answer.read(most_bytes)
        except TimeoutError:
            raise DeadlineError(instance, f"no answer to {path} within {timeout_s:g} s") from None

    async def _request(
        self, method: str, instance: str, path: str, body: Encoded | bytearray | None, headers: Headers
    ) -> EngineAnswer:
        if self._session is None:
            raise RuntimeError("the client is used outside its `async with`")
        sent = CIMultiDict(headers)
        sent.update(self._authorization)
        sent["Accept-Encoding"] = "identity"
        if body is not None:
            sent["Content-Type"] = _JSON
        try:
            with self._waits.on(instance):
                response = await self._session.request(
                    method,
                    f"{'https' if instance in self._https else 'http'}://{instance}{path}",
                    data=_payload(body),
                    headers=sent,
                    allow_redirects=False,
                )
        except aiohttp.ConnectionTimeoutError as error:
            words = f"no connection within {self._connect_timeout_s:g} s"
            self._names.doubt(_host(instance))
            raise ConnectTimeoutError(instance, words) from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(cause := error.os_error, ResolverError):
                raise UnresolvedError(instance, f"its address is not known: {cause}") from error
            ours = getattr(error, "errno", None) in _NOTHING_LEFT_HERE
            if not ours:
                self._names.doubt(_host(instance))
            raise (NoSocketError if ours else ConnectFailedError)(instance, _words(error)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise LegBrokenError(instance, f"no answer ({_words(error)})") from error
        if not 200 <= response.status <= 599:  # others announce an answer, or are nothing at all
            response.close()
            raise LegBrokenError(instance, f"status {response.status} is no answer")
        return EngineAnswer(instance, path, response, self._waits, len(body or b""))


def _host(instance: str) -> str:
    return instance.rpartition(":")[0].strip("[]")


class _InPieces(aiohttp.payload.Payload):
    """A large body, sent piece by piece from where it lies. aiohttp's own way with bytes copies all of it at
    once.
    """

    _autoclose = True

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(pieces, content_type=_JSON)
        self._size = len(pieces)
        self._pieces = pieces

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for piece in self._pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _PIECE_BYTES):
                await writer.write(bytes(view[start : start + _PIECE_BYTES]))
                await asyncio.sleep(0)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        del content_length  # the length announced is that of all pieces
        await self.write(writer)


def _payload(body: Encoded | bytearray | None) -> bytes | _InPieces | None:
    """The body as aiohttp wants it."""
    if body is None:
        return None
    if isinstance(body, Pieces):
        return _InPieces(body)
    return _InPieces(Pieces([body])) if len(body) > LARGE_BODY_BYTES else bytes(body)


def _words(error: BaseException) -> str:
    """What happened, without the addresses, codes and pieces of answers that library messages carry."""
    cause = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "it does not fit the name"
        return f"its certificate is not accepted ({why})"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "no TLS connection came about"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not valid HTTP"
    if isinstance(error, aiohttp.ClientOSError) and error.errno is None:
        return "the connection was closed"  # aiohttp's own words have the URL
    if isinstance(error, aiohttp.ClientPayloadError):
        return "its connection ended early"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, socket.gaierror):
        return "its name has no address"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno)  # asyncio's own words have the address
    return str(error) or type(error).__name__
