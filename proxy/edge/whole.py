"""The head and the body of a whole answer are written at once, and are what aiohttp would write.

aiohttp keeps headers in a dictionary, has it changed by signals, and writes by way of a stream writer. For
the answers of engines, which are many and small, that costs more than all else on their way back.
"""

import email.utils
import re
import time

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from proxy.edge.middlewares import SERVER
from proxy.edge.visit import Visit
from proxy.headers import REQUEST_ID, Headers
from proxy.service import Service

MAX_BYTES = 256 << 10
"""Of a body that is copied behind its head. A larger one is written piece by piece, while its client is
watched."""

_NO_BODY = frozenset({204, 304})
"""Statuses whose answers end with their heads (RFC 9110 section 6.4.1)."""

_NEVER_IN_A_LINE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters, by which an engine's header could begin another one."""


class _Date:
    """The `Date` of answers, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, email.utils.formatdate(second, usegmt=True)
        return self._text


_date = _Date()


def whole_answer(
    request: web.Request, service: Service, visit: Visit, status: int, headers: Headers, body: bytes
) -> web.StreamResponse:
    """The answer with an engine's `headers`, as far as they cross, and `body`.

    What is not usual is left to aiohttp: versions before HTTP/1.1, answers without a body, and applications
    where others than `finish_head` have a say in heads (`on_response_prepare`), as with CORS.
    """
    if (
        request.version == HttpVersion11
        and status >= web.HTTPOk.status_code
        and status not in _NO_BODY
        and len(body) <= MAX_BYTES
        and len(request.app.on_response_prepare) == 1
    ):
        return _InOneWrite(service, visit, status, headers, body)
    return web.Response(status=status, headers=CIMultiDict(headers), body=body)


class _InOneWrite(web.StreamResponse):
    """Such an answer; aiohttp has it written once its handler has ended."""

    def __init__(self, service: Service, visit: Visit, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(status=status)
        self._service = service
        self._visit = visit
        self._whole = body
        self._lines = _lines(headers, body)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it. Raises ConnectionError if the client has left."""
        if self._eof_sent:
            return None
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if self._service.draining.is_set():
            self._keep_alive = False
        close = "" if self._keep_alive else "Connection: close\r\n"
        head = (
            f"HTTP/1.1 {self.status} {self.reason}\r\n{self._lines}"
            f"{REQUEST_ID}: {self._visit.request_id}\r\nServer: {SERVER}\r\n{close}\r\n"
        )
        data = head.encode("utf-8", "surrogateescape") + self._whole
        self._eof_sent = True
        transport, writer = request.transport, request.writer
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        writer.output_size += len(data)
        transport.write(data)
        if request.protocol.writing_paused:
            await writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: all of it has been written."""


def _lines(headers: Headers, body: bytes) -> str:
    """The lines of a head that are not our own. Raises ValueError if a header would break out of its line."""
    lines = [f"Content-Length: {len(body)}\r\n"]
    has_date = False
    has_type = not body
    for name, value in headers:
        lower = name.lower()
        if lower == "server":
            continue
        if lower == "date":
            has_date = True
        elif lower == "content-type":
            has_type = True
        line = f"{name}: {value}"
        if not line.isprintable() and _NEVER_IN_A_LINE.search(line):
            raise ValueError("an engine's header holds a control character")
        lines.append(line + "\r\n")
    if not has_date:
        lines.append(f"Date: {_date.now()}\r\n")
    if not has_type:
        lines.append("Content-Type: application/octet-stream\r\n")
    return "".join(lines)
