"""The generating endpoints: bytes of a client become a `Call`, and a `Reply` becomes bytes for the client."""

import asyncio
import time
import uuid

from aiohttp import web
from multidict import CIMultiDict

from proxy import headers as names
from proxy.app_keys import CONFIG, DIRECTOR, FLEET, METRICS, STOPPING
from proxy.deadlines import TimeLimit, time_limit
from proxy.errors import (
    BadRequestError,
    GatewayTimeoutError,
    NotFoundError,
    RequestError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from proxy.exchange import Call, Reply
from proxy.generation import GenerationRequest, Route, read_request
from proxy.instances import Fleet
from proxy.middlewares import NOTES_KEY, STARTED_KEY, error_response
from proxy.reading import in_time
from proxy.relay import relay_stream

CLIENT_LEFT = "client_left"

LARGE_BODY_BYTES = 256 << 10
"""A larger body is read off the event loop; it would hold everybody else up for milliseconds."""


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    return await _generate(request, Route.COMPLETIONS)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    return await _generate(request, Route.CHAT)


async def _generate(request: web.Request, route: Route) -> web.StreamResponse:
    metrics = request.app[METRICS]
    outcome = CLIENT_LEFT
    try:
        limit = time_limit(
            request.headers.getall(names.REQUEST_TIMEOUT_MS, ()),
            request.app[CONFIG].deadlines.request_s,
            request[STARTED_KEY],
        )
        async with limit.enforced():
            call = Call(
                request=await generation_request(request, route),
                headers=engine_headers(request),
                leg_id=uuid.uuid4().hex,
                started_at=time.monotonic(),  # its client may have taken long to send it
            )
            reply = await request.app[DIRECTOR].serve(call)
        try:
            response, complete = await _answer(request, reply, route, limit)
        finally:
            reply.close()
        outcome = _outcome(reply.status) if complete else "cut"
        return response
    except RequestError as error:
        outcome = "timeout" if isinstance(error, GatewayTimeoutError) else _outcome(error.status)
        return error_response(error)
    except (asyncio.CancelledError, ConnectionError):
        if request.app[STOPPING].is_set():
            outcome = "cut"
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        request[NOTES_KEY]["outcome"] = outcome
        metrics.request_ended(route.value, outcome, time.monotonic() - request[STARTED_KEY])


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    if status < 500:
        return "client_error"
    return "unavailable" if status == 503 else "engine_error"


async def generation_request(request: web.Request, route: Route | None) -> GenerationRequest:
    """Read and check the body of a generating request; its members tell the route where None is given.

    Raises RequestError.
    """
    if request.app[STOPPING].is_set():
        raise UnavailableError("kvproxy is shutting down", headers={"Connection": "close"})
    data = await read_json_bytes(request)
    default_model = request.app[CONFIG].model
    if len(data) > LARGE_BODY_BYTES:
        read = await asyncio.to_thread(read_request, route, data, default_model)
    else:
        read = read_request(route, data, default_model)
    _check_model(request.app[FLEET], read.model, request.app[CONFIG].model)
    return read


def _check_model(fleet: Fleet, model: str, configured: str) -> None:
    starting = not any(instance.model_cards for instance in fleet)
    if model != configured and not starting and not fleet.serves(model):
        raise NotFoundError(f"The model `{model}` does not exist.", param="model")


async def read_json_bytes(request: web.Request) -> bytes:
    """The body of a request that says it is plain JSON, within the limit. Raises RequestError."""
    if request.content_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"Content-Type must be application/json, got {request.headers.get('Content-Type', 'none')!r}"
        )
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"Content-Encoding {encoding!r} is not taken: send plain JSON")
    limit_mb = request.app[CONFIG].max_body_mb
    too_large = TooLargeError(f"the request body is over {limit_mb} MiB (--max-body-mb)")
    if (request.content_length or 0) > limit_mb << 20:
        raise too_large
    try:
        async with in_time(request):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except web.RequestPayloadError:
        raise BadRequestError(
            "the request body is not framed as its headers say", headers={"Connection": "close"}
        ) from None


def engine_headers(request: web.Request) -> names.Headers:
    """The client's headers that a leg of its request carries."""
    config = request.app[CONFIG]
    keep = config.engine_api_key is None and config.security.api_key_file is None
    return names.for_engine(request.headers.items(), keep_authorization=keep)


async def _answer(
    request: web.Request, reply: Reply, route: Route, limit: TimeLimit
) -> tuple[web.StreamResponse, bool]:
    """Send the reply on; tell whether the client got all of it."""
    headers = CIMultiDict(names.for_client(reply.headers))
    notes = request[NOTES_KEY]
    if (decision := reply.decision) is not None:
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        if prefill is not None and decode is not None:
            notes |= {"prefill": prefill.instance, "decode": decode.instance}
            if prefill.cached_tokens is not None:
                notes["cached"] = str(prefill.cached_tokens)
            if request.app[CONFIG].decision_headers:
                headers[names.PREFILL] = prefill.instance
                headers[names.DECODE] = decode.instance
                if prefill.cached_tokens is not None:
                    headers[names.CACHED_TOKENS] = str(prefill.cached_tokens)
    if reply.status < 400:
        request.app[METRICS].first_byte(route.value, time.monotonic() - request[STARTED_KEY])
    if isinstance(reply.body, bytes):
        return web.Response(status=reply.status, headers=headers, body=reply.body), True
    response = web.StreamResponse(status=reply.status, headers=headers)
    engine = decision.decode.chosen.instance if decision and decision.decode.chosen else "the engine"
    complete = await relay_stream(request, response, reply.body, engine, request.app[STOPPING], limit)
    return response, complete
