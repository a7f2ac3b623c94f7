"""Every answer carries the request's id, and every error of kvproxy's own has the one envelope and shows no
traceback.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.typedefs import Handler

from proxy.edge.app_keys import SERVICE
from proxy.edge.read_body import check_framing
from proxy.edge.visit import VISIT, Visit, visit_of
from proxy.edge.wording import dialect_at, worded
from proxy.errors import NotFoundError, RequestError, UnavailableError, envelope
from proxy.happenings import Answered, RequestUnrouted
from proxy.headers import REQUEST_ID, safe_id
from proxy.request.dialects import Dialect

log = logging.getLogger(__name__)

MAX_LOGGED_PATH_CHARS = 200

SERVER = "kvproxy"
"""The `Server` header of all answers, those of engines included."""

CLIENT_LEFT_STATUS = 499
"""The status in the log of a request whose client left; it is nginx's number for that."""


class InFlight:
    """The requests that are being answered, by the tasks of their connections.

    Such a task waits for that of its request, so that to cancel it is to cancel the request.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._none: asyncio.Event | None = None
        """Set when no request is left; None while nobody waits for that."""
        self.cutting = asyncio.Event()
        """Set once kvproxy cancels the requests that still run: their clients have not left, and are told
        why."""

    def begins(self, task: asyncio.Task[Any]) -> None:
        """Count the request of a connection's task, until `ends`."""
        self._tasks.add(task)

    def ends(self, task: asyncio.Task[Any]) -> None:
        """Count it no more: the request is answered."""
        self._tasks.discard(task)
        if self._none is not None and not self._tasks:
            self._none.set()

    def cut(self) -> None:
        """Cancel every request; each still tells its client why."""
        self.cutting.set()
        for task in self._tasks:
            task.cancel()

    async def none_left(self) -> None:
        """Wait until no request is in flight."""
        while self._tasks:
            self._none = self._none or asyncio.Event()
            self._none.clear()
            await self._none.wait()


class Load:
    """How many generating requests are being answered, those in the queue included."""

    def __init__(self) -> None:
        self.count = 0


LOAD_KEY: web.AppKey[Load] = web.AppKey("load", Load)

IN_FLIGHT_KEY: web.AppKey[InFlight] = web.AppKey("in_flight", InFlight)


@web.middleware
async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn the request's errors into answers, and tell `Answered` when it is over."""
    visit = visit_of(request)
    app = request.app
    service = app[SERVICE]
    in_flight = app[IN_FLIGHT_KEY]
    task = request.task
    in_flight.begins(task)
    status = CLIENT_LEFT_STATUS
    try:
        try:
            check_framing(request)
            response = await handler(request)
        except (Exception, asyncio.CancelledError) as error:
            answer = _answer_to(error, request, visit)
            if answer is None:
                raise
            response = answer
        status = response.status
        return response
    finally:
        in_flight.ends(task)
        if 400 <= status < CLIENT_LEFT_STATUS and "outcome" not in visit.notes:
            service.tell(RequestUnrouted("unauthorized" if status == 401 else "client_error"))
        if visit.lease is not None:
            visit.lease.end()
        if visit.body is not None:
            service.discarding.add(visit.body)
            visit.body = None
        path = _path(request)
        service.tell(
            Answered(
                request.method,
                path,
                status,
                time.monotonic() - visit.started_at,
                visit.request_id if visit.is_named_here else safe_id(visit.request_id),
                visit.notes,
                request.method != "POST" or path.rstrip("/") == "/ping",
            )
        )


def _answer_to(error: BaseException, request: web.Request, visit: Visit) -> web.StreamResponse | None:
    """The answer to a request that ends in `error`; None if nobody would hear it, or it is no failure."""
    if request.version < HttpVersion10 and request.transport is not None:
        request.transport.abort()  # aiohttp would answer in HTTP/0.9, which nobody speaks
        return web.Response(status=CLIENT_LEFT_STATUS)
    if isinstance(error, RequestError):
        return error_response(error, worded(error, request))
    if isinstance(error, web.HTTPException):
        return _enveloped(error, request) if error.status >= 400 else None
    if isinstance(error, ConnectionError):
        return web.Response(status=CLIENT_LEFT_STATUS)  # the client has left; the status is for the log
    if isinstance(error, asyncio.CancelledError):
        if not cut_by_us(request) or request.writer.output_size > 0:
            return None
        stopping = UnavailableError("kvproxy is shutting down", headers={"Connection": "close"})
        return error_response(stopping, worded(stopping, request))
    request_id = safe_id(visit.request_id)
    log.error("%s %s failed (id %s)", request.method, _path(request), request_id, exc_info=error)
    if request.transport is not None and request.writer.output_size > 0:
        request.transport.close()  # an answer has begun already; a second one must not follow
    failed = RequestError("kvproxy failed on this request; its log says why")
    return error_response(failed, worded(failed, request))


def _enveloped(error: web.HTTPException, request: web.Request) -> web.Response:
    words = None
    if error.status == NotFoundError.status:
        words = f"kvproxy does not serve {request.method} {_path(request)}; see /openapi.json"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        only = " and ".join(sorted(error.allowed_methods))
        words = f"kvproxy does not serve {request.method} {_path(request)}, only {only}; see /openapi.json"
    return enveloped(error, words, dialect_at(request))


def cut_by_us(request: web.Request) -> bool:
    """Whether kvproxy, which is shutting down, has cancelled the request; if not, its client left."""
    return request.app[IN_FLIGHT_KEY].cutting.is_set()


def enveloped(
    error: web.HTTPException, words: str | None = None, dialect: Dialect | None = None
) -> web.Response:
    """An error of aiohttp's in the words of `dialect`, by default in the one envelope; `words`: the message
    to give instead of its own.
    """
    ours = RequestError(words or error.text or error.reason)
    ours.status, ours.kind = error.status, _kind(error.status)
    reply = envelope(str(ours), ours.kind, ours.status) if dialect is None else dialect.error(ours)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return _json(reply, error.status, headers)


def error_response(error: RequestError, body: Mapping[str, Any] | None = None) -> web.Response:
    """The answer to a request that ends in `error`; `body`: the error in its dialect's words, by default in
    the one envelope.
    """
    body = body or envelope(str(error), error.kind, error.status, error.param)
    response = _json(body, error.status, error.headers)
    if error.headers.get("Connection") == "close":
        response.force_close()
    return response


def _json(body: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> web.Response:
    """An answer with the `Content-Type` of an engine's, which names no charset."""
    encoded = json.dumps(body).encode()
    return web.Response(body=encoded, status=status, headers=headers, content_type="application/json")


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the request's id and the `Server` header (an `on_response_prepare` signal).

    While kvproxy drains, the answer also ends its connection, so that clients that keep connections open find
    another replica for their next request. So does one in HTTP/1.0 whose length is not known: nothing else
    tells its end.
    """
    endless = request.version < HttpVersion11 and "Content-Length" not in response.headers
    if endless or request.app[SERVICE].draining.is_set():
        response.force_close()
        response.headers["Connection"] = "close"
    if (visit := request.get(VISIT)) is not None:
        response.headers[REQUEST_ID] = visit.request_id
    response.headers["Server"] = SERVER


def _path(request: web.Request) -> str:
    """The path for the log, without its query; as it was sent, since a decoded one may hold line breaks."""
    return request.raw_path.partition("?")[0][:MAX_LOGGED_PATH_CHARS]


def _kind(status: int) -> str:
    kinds = {404: NotFoundError.kind, 503: UnavailableError.kind, 405: "MethodNotAllowedError"}
    return kinds.get(status, "BadRequestError" if status < 500 else RequestError.kind)
