"""A request about a response reaches the instance that stores it, or none: no other engine knows it."""

import asyncio
from collections.abc import Sequence
from contextlib import closing

from aiohttp import web
from multidict import CIMultiDict

from proxy import headers as names
from proxy.edge.app_keys import SERVICE
from proxy.edge.middlewares import cut_by_us
from proxy.edge.relay import cut_stream
from proxy.edge.routes.generate import engine_headers
from proxy.edge.routes.storing import UnknownResponseError, reachable
from proxy.edge.visit import Visit, visit_of
from proxy.errors import (
    EngineFailedError,
    GatewayTimeoutError,
    LegError,
    RequestError,
    UnavailableError,
)
from proxy.request.deadlines import TimeLimit, time_limit, within
from proxy.request.dialects import RESPONSES
from proxy.service import Service
from proxy.serving.ports import Answer


async def about(request: web.Request) -> web.StreamResponse:
    """What the instance that stores a response answers: its status, headers and body. Raises RequestError."""
    service, visit = request.app[SERVICE], visit_of(request)
    given = request.headers.getall(names.REQUEST_TIMEOUT_MS, ())
    limit = time_limit(given, service.rules.deadlines.request_s, visit.started_at)
    with limit.enforced():
        answer = await _asked(request, service, visit)
    with closing(answer):
        if answer.is_event_stream and answer.status == 200:
            return await _streamed(request, service, answer, limit)
        try:
            with limit.enforced():
                data = await answer.read()
        except LegError as error:
            raise _unanswered(error) from error
    if answer.status == 404 and RESPONSES.lacks_response(data):
        why = " The engine has restarted since it answered, or stores no responses."
        raise UnknownResponseError(request.match_info["response_id"], why)
    told = CIMultiDict(names.for_client(answer.headers))
    return web.Response(status=answer.status, body=data, headers=told)


async def _asked(request: web.Request, service: Service, visit: Visit) -> Answer:
    """The answer of the instance that stores a response, of which the head is there. Raises RequestError."""
    response_id = request.match_info["response_id"]
    if (place := service.responses.find(response_id)) is None:
        raise UnknownResponseError(response_id)
    instance = reachable(service, visit, response_id, place)
    path = request.rel_url.raw_path.rstrip("/")
    if query := request.rel_url.raw_query_string:
        path = f"{path}?{query}"
    headers = engine_headers(request, service)
    body = b"" if request.method == "POST" else None
    try:
        with within(service.rules.deadlines.first_byte_s, instance.address, "an answer about a response"):
            return await service.client.ask(request.method, instance.address, path, body, headers)
    except LegError as error:
        raise _unanswered(error) from error


def _unanswered(error: LegError) -> RequestError:
    return EngineFailedError(f"the engine that stores the response gave no answer: {error.words}")


async def _streamed(
    request: web.Request, service: Service, answer: Answer, limit: TimeLimit
) -> web.StreamResponse:
    """The events of a response that is computed in the background, as they come."""
    headers = CIMultiDict(names.for_streaming_client(answer.headers))
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    try:
        with limit.enforced():
            while chunk := await answer.next_chunk(service.rules.deadlines.chunk_s):
                await response.write(chunk)
            await response.write_eof()
        return response
    except LegError as error:
        why: RequestError = _unanswered(error)
    except GatewayTimeoutError as error:
        why = error
    except asyncio.CancelledError:
        if not cut_by_us(request):
            raise
        why = UnavailableError("kvproxy is shutting down")
    await cut_stream(request, response, RESPONSES, why)
    return response


PATHS: Sequence[tuple[str, str]] = (
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/{response_id}/cancel"),
    ("GET", "/v1/responses/{response_id}/input_items"),
)
"""Those of OpenAI. vLLM 0.32 has the first and the third; what it answers to the others is passed on."""
