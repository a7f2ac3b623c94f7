"""Every answer carries the request's id, and every error of kvproxy's own has the one envelope and shows no
traceback.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion10, web
from aiohttp.typedefs import Handler

from proxy.admission import BodyLease
from proxy.edge.app_keys import SERVICE
from proxy.edge.read_body import check_framing
from proxy.errors import NotFoundError, RequestError, UnavailableError, envelope
from proxy.happenings import Answered, RequestUnrouted
from proxy.headers import REQUEST_ID, safe_id

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[!-~]{1,256}")
"""Ids that a client may choose: without spaces, so that an id in the access log is one word."""

MAX_LOGGED_PATH_CHARS = 200

SERVER = "kvproxy"
"""The `Server` header of all answers, those of engines included."""

CLIENT_LEFT_STATUS = 499
"""The status in the log of a request whose client left; it is nginx's number for that."""

REQUEST_ID_KEY: web.RequestKey[str] = web.RequestKey("request_id", str)
STARTED_KEY: web.RequestKey[float] = web.RequestKey("started_at", float)
NOTES_KEY: web.RequestKey[dict[str, str]] = web.RequestKey("notes", dict)
"""Names and values that handlers add to the line of the access log."""


BODY_LEASE_KEY: web.RequestKey[BodyLease] = web.RequestKey("body_lease", BodyLease)
"""The memory that the request's body takes, from the moment it is read until the request ends."""


SPARE_KEY: web.RequestKey[bool] = web.RequestKey("spare", bool)
"""Set if the request came by a spare connection, one that is reserved for probes and operators."""


BODY_KEY: web.RequestKey[bytearray] = web.RequestKey("body", bytearray)
"""The body, as far as it has arrived."""


class InFlight:
    """The requests that are being answered, each in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._none = asyncio.Event()
        self._none.set()
        self.cutting = asyncio.Event()
        """Set once kvproxy cancels the requests that still run: their clients have not left, and are told
        why."""

    def __enter__(self) -> None:
        self._tasks.add(asyncio.current_task())
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._tasks.discard(asyncio.current_task())
        if not self._tasks:
            self._none.set()

    def cut(self) -> None:
        """Cancel every request; each still tells its client why."""
        self.cutting.set()
        for task in self._tasks:
            if task is not None:
                task.cancel()

    async def none_left(self) -> None:
        """Wait until no request is in flight."""
        await self._none.wait()


class Load:
    """How many generating requests are being answered, those in the queue included."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


LOAD_KEY: web.AppKey[Load] = web.AppKey("load", Load)

IN_FLIGHT_KEY: web.AppKey[InFlight] = web.AppKey("in_flight", InFlight)


@web.middleware
async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, turn its errors into answers, and tell `Answered` when it is over."""
    request[REQUEST_ID_KEY] = _request_id(request.headers.get(REQUEST_ID))
    request[STARTED_KEY] = time.monotonic()
    request[NOTES_KEY] = {}
    status = CLIENT_LEFT_STATUS
    try:
        with request.app[IN_FLIGHT_KEY]:
            response = await _answered(request, handler)
        status = response.status
        return response
    finally:
        notes = request[NOTES_KEY]
        if "outcome" not in notes and 400 <= status < CLIENT_LEFT_STATUS:
            request.app[SERVICE].tell(RequestUnrouted("unauthorized" if status == 401 else "client_error"))
        if (lease := request.get(BODY_LEASE_KEY)) is not None:
            lease.end()
        if (body := request.pop(BODY_KEY, None)) is not None:
            request.app[SERVICE].discarding.add(body)
        request.app[SERVICE].tell(
            Answered(
                request.method,
                _path(request),
                status,
                time.monotonic() - request[STARTED_KEY],
                safe_id(request[REQUEST_ID_KEY]),
                notes,
                request.method != "POST" or request.path.rstrip("/") == "/ping",
            )
        )


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.version < HttpVersion10 and request.transport is not None:
        request.transport.abort()  # aiohttp would answer in HTTP/0.9, which nobody speaks
        return web.Response(status=CLIENT_LEFT_STATUS)
    try:
        check_framing(request)
        return await handler(request)
    except RequestError as error:
        return error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        if error.status == 404:
            return error_response(
                NotFoundError(f"kvproxy does not serve {request.method} {_path(request)}; see /openapi.json")
            )
        if isinstance(error, web.HTTPMethodNotAllowed):
            only = " and ".join(sorted(error.allowed_methods))
            words = (
                f"kvproxy does not serve {request.method} {_path(request)}, only {only}; see /openapi.json"
            )
            return enveloped(error, words)
        return enveloped(error)
    except ConnectionError:
        return web.Response(status=CLIENT_LEFT_STATUS)  # the client has left; the status is for the log
    except asyncio.CancelledError:
        if not cut_by_us(request) or request.writer.output_size > 0:
            raise
        return error_response(UnavailableError("kvproxy is shutting down", headers={"Connection": "close"}))
    except Exception:
        request_id = safe_id(request[REQUEST_ID_KEY])
        log.exception("%s %s failed (id %s)", request.method, _path(request), request_id)
        if request.transport is not None and request.writer.output_size > 0:
            request.transport.close()  # an answer has begun already; a second one must not follow
        return web.json_response(
            envelope("kvproxy failed on this request; its log says why", RequestError.kind, 500), status=500
        )


def cut_by_us(request: web.Request) -> bool:
    """Whether kvproxy, which is shutting down, has cancelled the request; if not, its client left."""
    return request.app[IN_FLIGHT_KEY].cutting.is_set()


def enveloped(error: web.HTTPException, words: str | None = None) -> web.Response:
    """An error of aiohttp's in the one envelope; `words`: the message to give instead of its own."""
    reply = envelope(words or error.text or error.reason, _kind(error.status), error.status)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return web.json_response(reply, status=error.status, headers=headers)


def error_response(error: RequestError, body: Mapping[str, Any] | None = None) -> web.Response:
    """The answer to a request that ends in `error`; `body`: the error in its dialect's words, by default in
    the one envelope.
    """
    body = body or envelope(str(error), error.kind, error.status, error.param)
    response = web.json_response(body, status=error.status, headers=error.headers)
    if error.headers.get("Connection") == "close":
        response.force_close()
    return response


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the request's id and the `Server` header (an `on_response_prepare` signal).

    While kvproxy drains, the answer also ends its connection, so that clients that keep connections open find
    another replica for their next request.
    """
    if request.app[SERVICE].draining.is_set():
        response.force_close()
        response.headers["Connection"] = "close"
    if (request_id := request.get(REQUEST_ID_KEY)) is not None:
        response.headers[REQUEST_ID] = request_id
    response.headers["Server"] = SERVER


def _path(request: web.Request) -> str:
    """The path for the log, without its query; as it was sent, since a decoded one may hold line breaks."""
    return request.raw_path.partition("?")[0][:MAX_LOGGED_PATH_CHARS]


def _request_id(given: str | None) -> str:
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex


def _kind(status: int) -> str:
    kinds = {404: NotFoundError.kind, 503: UnavailableError.kind, 405: "MethodNotAllowedError"}
    return kinds.get(status, "BadRequestError" if status < 500 else RequestError.kind)
