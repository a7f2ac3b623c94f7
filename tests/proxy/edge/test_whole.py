"""An answer that is written at once is, but for the order of its headers, what aiohttp writes."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.edge.app_keys import SERVICE
from proxy.edge.middlewares import finish_head
from proxy.edge.visit import visit_of
from proxy.edge.whole import MAX_BYTES, whole_answer
from proxy.headers import Headers
from proxy.service import Service

TYPE = ("Content-Type", "application/json")
BODY = b'{"object": "text_completion"}'
DATE = re.compile(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")


class Serving:
    """A server whose path `/whole` answers as is tested here, and any other as aiohttp does."""

    def __init__(self, *finishers: Any) -> None:
        self.service = cast(Service, SimpleNamespace(draining=asyncio.Event()))
        self.answer: tuple[int, Headers, bytes] = (200, [TYPE], BODY)
        self.kinds: list[type[web.StreamResponse]] = []
        """Of the answers."""
        self.port = 0
        self._app = web.Application()
        self._app[SERVICE] = self.service
        self._app.on_response_prepare.extend([finish_head, *finishers])
        self._app.add_routes([web.post("/{how}", self._handle)])

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        visit = visit_of(request)
        status, headers, body = self.answer
        if request.path != "/whole":
            return web.Response(status=status, headers=CIMultiDict(headers), body=body)
        made = whole_answer(request, self.service, visit, status, headers, body)
        self.kinds.append(type(made))
        return made

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Serving"]:
        runner = web.AppRunner(self._app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    async def ask(self, *paths: str, version: str = "1.1", more: str = "") -> tuple[bytes, bool]:
        """What comes back to requests that are sent together, and whether the connection was closed by it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST %s HTTP/{version}\r\nHost: x\r\nX-Request-Id: mine\r\nContent-Length: 0\r\n{more}\r\n"
        writer.write("".join(head % path for path in paths).encode())
        received, closed = b"", False
        async with asyncio.timeout(10):
            while received.count(b"\r\n\r\n") < len(paths) or not received.endswith(self.answer[2]):
                if not (data := await reader.read(1 << 20)):
                    closed = True
                    break
                received += data
            if not closed and b"onnection: close" in received:
                closed = await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return received, closed


def sorted_head(received: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = received.partition(b"\r\n\r\n")
    line, *headers = DATE.sub(b"then", head).split(b"\r\n")
    return line, sorted(headers), body


ANSWERS: dict[str, tuple[int, Headers, bytes]] = {
    "usual": (200, [("date", "Mon, 30 Nov 2026 16:00:00 GMT"), ("server", "uvicorn"), TYPE], BODY),
    "without a date": (200, [TYPE], BODY),
    "without a type": (200, [], BODY),
    "empty": (200, [], b""),
    "an error": (400, [TYPE, ("Retry-After", "1")], BODY),
    "of its own number": (299, [TYPE], BODY),
    "without a body": (204, [TYPE], b""),
    "not modified": (304, [TYPE], b""),
    "twice the same": (200, [TYPE, ("X-A", "1"), ("x-a", "2")], BODY),
    "not ASCII": (200, [TYPE, ("X-A", "caf\u00e9")], BODY),
    "large": (200, [TYPE], b"x" * MAX_BYTES),
    "larger": (200, [TYPE], b"x" * (MAX_BYTES + 1)),
}


@pytest.mark.parametrize("more", ["", "Connection: close\r\n", "Connection: keep-alive\r\n"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
async def test_it_is_what_aiohttp_writes(name: str, *, draining: bool, version: str, more: str) -> None:
    async with Serving().running() as serving:
        serving.answer = ANSWERS[name]
        if draining:
            serving.service.draining.set()
        made, made_closed = await serving.ask("/whole", version=version, more=more)
        theirs, theirs_closed = await serving.ask("/theirs", version=version, more=more)
    assert sorted_head(made) == sorted_head(theirs)
    assert made_closed == theirs_closed
    at_once = version == "1.1" and name not in {"without a body", "not modified", "larger"}
    assert (serving.kinds == [web.Response]) is not at_once


async def test_requests_that_come_together_are_answered_in_their_order() -> None:
    async with Serving().running() as serving:
        received, closed = await serving.ask("/whole", "/theirs", "/whole", "/whole")
    assert received.count(BODY) == 4
    assert not closed


async def test_what_is_not_text_is_passed_on_as_it_came() -> None:
    odd = b"\xff\xfe"
    async with Serving().running() as serving:
        serving.answer = (200, [TYPE, ("X-A", odd.decode("utf-8", "surrogateescape"))], BODY)
        received, _ = await serving.ask("/whole")
    assert b"\r\nX-A: " + odd + b"\r\n" in received


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0"])
async def test_no_header_breaks_out_of_its_line(value: str) -> None:
    async with Serving().running() as serving:
        serving.answer = (200, [TYPE, ("X-A", value)], BODY)
        received, closed = await serving.ask("/whole")
    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"Evil" not in received
    assert closed


async def test_who_has_a_say_in_heads_is_asked() -> None:
    async def say(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Said"] = "yes"

    async with Serving(say).running() as serving:
        received, _ = await serving.ask("/whole")
    assert b"\r\nX-Said: yes\r\n" in received


async def test_a_client_that_reads_nothing_is_waited_for() -> None:
    """The next request of its connection is not looked at while more than a transport takes is unread."""
    async with Serving().running() as serving:
        serving.answer = (200, [TYPE], b"x" * MAX_BYTES)
        reader, writer = await asyncio.open_connection("127.0.0.1", serving.port, limit=1 << 10)
        many = 150
        writer.write(b"POST /whole HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * many)
        async with asyncio.timeout(20):
            received_bytes = len(await reader.readexactly(MAX_BYTES))
            assert len(serving.kinds) < many
            while received_bytes < many * MAX_BYTES or len(serving.kinds) < many:
                received_bytes += len(await reader.read(1 << 20))
        writer.close()
        await writer.wait_closed()
