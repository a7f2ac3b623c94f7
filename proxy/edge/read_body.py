"""A body whose end could be read in two ways is refused, and so is one for which there is no memory; one that
arrives too slowly is given up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.admission import BodyLease
from proxy.edge.access.clients import holder_of
from proxy.edge.patience import PATIENCE, Patience
from proxy.edge.visit import Visit
from proxy.errors import (
    BadRequestError,
    RequestTimeoutError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    cut,
)
from proxy.happenings import Refused
from proxy.service import Service


class Pace:
    """How long a body may still take: a credit of seconds that runs down, and that arriving bytes raise up to
    a bound.
    """

    def __init__(self, now: float, patience: Patience = PATIENCE) -> None:
        """`now`: when the head had arrived, in seconds of any monotonic clock."""
        self._patience = patience
        self._grace_ends_at = self._due = now + patience.body_grace_s
        self._received_bytes = 0

    def due(self, now: float, received_bytes: int) -> float:
        """When the body is given up unless more of it arrives; `received_bytes`: how much has arrived."""
        new_bytes = received_bytes - self._received_bytes
        self._received_bytes = received_bytes
        self._due = min(self._due + new_bytes / self._patience.body_least_bytes_s, self._latest(now))
        return self._due

    def _latest(self, now: float) -> float:
        """The latest time that the credit may reach. A small body, which holds hardly any memory, keeps its
        whole grace.
        """
        stall_s = self._patience.body_stall_s
        small = self._received_bytes <= stall_s * self._patience.body_least_bytes_s
        return max(self._grace_ends_at, now + stall_s) if small else now + stall_s


_VERSIONS = (HttpVersion10, HttpVersion11)


def check_framing(request: web.Request) -> None:
    """Raise BadRequestError, which closes the connection, for framing that another server may read otherwise.

    aiohttp refuses most of it. But it takes any list of transfer codings that ends in `chunked`, takes one in
    HTTP/1.0, which has none, and answers requests of HTTP versions that it does not speak.
    """
    coding = request.headers.get("Transfer-Encoding")
    if request.version not in _VERSIONS:
        words = "HTTP/1.1 and HTTP/1.0 are spoken here"
    elif coding is not None and coding.strip().lower() != "chunked":
        words = "the only transfer coding taken is chunked"
    elif coding is not None and request.version == HttpVersion10:
        words = "HTTP/1.0 has no transfer codings"
    else:
        return
    raise BadRequestError(words, headers={"Connection": "close"})


async def read_json(
    request: web.Request, visit: Visit, service: Service
) -> tuple[bytes | bytearray, BodyLease]:
    """The body of a request, and the memory it takes. Raises RequestError as `read_body`."""
    data, lease = await read_body(request, visit, service)
    hold(service, lease, len(data))
    return data, lease


async def read_body(
    request: web.Request, visit: Visit, service: Service
) -> tuple[bytes | bytearray, BodyLease]:
    """The body of a request, and a lease for the memory it takes. One that had arrived already is not charged
    yet: that is for the caller, before it waits for anything.

    Raises RequestError if it is not declared as plain JSON, is larger than --max-body-mb, finds no memory, or
    arrives too slowly.
    """
    headers = request.headers
    if headers.get("Content-Type") != "application/json" and request.content_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"Content-Type must be application/json, got {cut(headers.get('Content-Type', 'none'))!r}"
        )
    encoding = headers.get("Content-Encoding")
    if encoding is not None and (encoding := encoding.strip().lower()) != "identity":
        raise UnsupportedMediaTypeError(f"Content-Encoding {cut(encoding)!r} is not taken: send plain JSON")
    holder = holder_of(request, visit, service.config.admission.client_header)
    try:
        if request.content.is_eof():  # most bodies have arrived with their heads
            data = request.content.read_nowait()
            if len(data) > service.config.max_body_mb << 20:
                raise too_large(service)
            lease = visit.lease = service.bodies.lease(holder)
            return data, lease
        return await _in_pieces(request, visit, service, holder)
    except web.RequestPayloadError:
        raise BadRequestError(
            "the request body is not framed as its headers say", headers={"Connection": "close"}
        ) from None


async def _in_pieces(
    request: web.Request, visit: Visit, service: Service, holder: str
) -> tuple[bytearray, BodyLease]:
    limit_bytes = service.config.max_body_mb << 20
    announced_bytes = request.content_length or 0
    if announced_bytes > limit_bytes:
        raise too_large(service)
    if not service.bodies.fits(holder, announced_bytes):
        raise _no_memory(service)
    lease = visit.lease = service.bodies.lease(holder)
    # A large bytearray grows in place; joining chunks at the end would stop the event loop.
    data = visit.body = bytearray()
    async with _in_time(request, visit.patience):
        while chunk := await request.content.readany():
            if len(data) + len(chunk) > limit_bytes:
                raise too_large(service)
            hold(service, lease, len(data) + len(chunk))
            data += chunk
    return data, lease


def hold(service: Service, lease: BodyLease, size_bytes: int) -> None:
    """Charge a request for the memory of its body. Raises UnavailableError if there is none left."""
    if not lease.hold(size_bytes):
        raise _no_memory(service)


def too_large(service: Service) -> TooLargeError:
    """The error for a body over --max-body-mb."""
    return TooLargeError(f"the request body is over {service.config.max_body_mb} MiB (--max-body-mb)")


def _no_memory(service: Service) -> UnavailableError:
    reason = "no_memory"
    service.tell(Refused(reason))
    return UnavailableError(
        "the request bodies kvproxy holds, of this client or of all, leave no room for this one "
        f"({service.config.admission.max_bodies_mb} MiB, --max-bodies-mb)",
        headers={"Retry-After": "1"},
        reason=reason,
    )


@contextlib.asynccontextmanager
async def _in_time(request: web.Request, patience: Patience) -> AsyncIterator[None]:
    """A context in which to read a body. Raises RequestTimeoutError once the body arrives too slowly."""
    loop = asyncio.get_running_loop()
    pace = Pace(loop.time(), patience)
    scope = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        now = loop.time()
        due = pace.due(now, request.content.total_bytes)
        if now < due:
            timer = loop.call_at(min(due, now + patience.body_look_every_s), look)
        else:
            scope.reschedule(now)

    timer = loop.call_later(min(patience.body_grace_s, patience.body_look_every_s), look)
    try:
        async with scope:
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if not scope.expired():
            raise
        raise too_slow(patience) from None


def too_slow(patience: Patience) -> RequestTimeoutError:
    """The error for a body that arrives more slowly than it may."""
    return RequestTimeoutError(
        f"the request body came too slowly: less than {patience.body_least_bytes_s:g} bytes a second"
        f" after {patience.body_grace_s:g} s, or nothing for {patience.body_stall_s:g} s",
        headers={"Connection": "close"},
    )
