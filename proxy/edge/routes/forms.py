"""A form goes through to its engine piece by piece: no more of it is held than its model is looked for in."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.edge.access.clients import holder_of
from proxy.edge.read_body import Pace, hold, too_large, too_slow
from proxy.edge.visit import Visit
from proxy.errors import BadRequestError, NotFoundError, UnavailableError, UnsupportedMediaTypeError, cut
from proxy.request.body import Body
from proxy.request.dialects import Dialect
from proxy.request.generation import GenerationRequest
from proxy.request.uploads import MAX_SEARCHED_BYTES, ModelField, Upload, boundary_of
from proxy.service import Service

_NO_MEMBERS = b"{}"


async def form_request(
    request: web.Request, service: Service, visit: Visit, dialect: Dialect
) -> tuple[GenerationRequest, Upload]:
    """The request in a form, and the form itself, of which only the beginning was read. Raises
    RequestError.
    """
    if service.stopping.is_set():
        raise UnavailableError("kvproxy is shutting down", headers={"Connection": "close"})
    content_type = request.headers.get("Content-Type", "")
    boundary = boundary_of(content_type)
    if boundary is None:
        raise UnsupportedMediaTypeError(
            f"Content-Type must be multipart/form-data with a boundary, got {cut(content_type or 'none')!r}"
        )
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"Content-Encoding {cut(encoding)!r} is not taken: send it plain")
    if (request.content_length or 0) > service.config.max_body_mb << 20:
        raise too_large(service)
    lease = visit.lease = service.bodies.lease(
        holder_of(request, visit, service.config.admission.client_header)
    )
    hold(service, lease, 2 * MAX_SEARCHED_BYTES)
    field = ModelField(boundary)
    held = bytearray()
    pieces = _pieces(request, service, visit)
    async for piece in pieces:
        held += piece
        field.look(held)
        if field.is_over or len(held) >= MAX_SEARCHED_BYTES:
            break
    model = field.value or service.config.model
    if not await service.adapters.known(model):
        raise NotFoundError(f"The model `{cut(model)}` does not exist.", param="model")
    generation = GenerationRequest(
        dialect, Body.parse(_NO_MEMBERS), model, False, 1, 1, whole=True, answer_limit=None
    )
    return generation, Upload(content_type, request.content_length, bytes(held), pieces)


async def _pieces(request: web.Request, service: Service, visit: Visit) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises RequestError if it is too long, too slow, or not framed as it says.

    Only the time counts in which the client is waited for, not that in which its engine reads.
    """
    clock, patience = asyncio.get_running_loop().time, visit.patience
    pace = Pace(0.0, patience)
    waited_s, size_bytes = 0.0, 0
    while True:
        since = clock()
        try:
            async with asyncio.timeout(pace.due(waited_s, size_bytes) - waited_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise too_slow(patience) from None
        except web.RequestPayloadError:
            raise BadRequestError(
                "the request body is not framed as its headers say", headers={"Connection": "close"}
            ) from None
        waited_s += clock() - since
        size_bytes += len(piece)
        if size_bytes > service.config.max_body_mb << 20:
            raise too_large(service)
        if not piece:
            return
        yield piece
