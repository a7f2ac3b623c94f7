"""On the generating routes a client's bytes become a `Call`, and a `Reply` becomes bytes for the client."""

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web

from proxy import headers as names
from proxy.admission import BodyLease, Ticket, weigh
from proxy.edge.access.client_salts import ClientSalts
from proxy.edge.access.clients import client_of
from proxy.edge.app_keys import SALTS, SERVICE
from proxy.edge.ids import new_id
from proxy.edge.keep_alive import KeepAlive
from proxy.edge.middlewares import LOAD_KEY, Load, cut_by_us, error_response
from proxy.edge.read_body import hold, read_body
from proxy.edge.relay import cut_stream
from proxy.edge.routes.answer import answer
from proxy.edge.routes.forms import form_request
from proxy.edge.routes.salting import salted
from proxy.edge.routes.sockets import socket_request
from proxy.edge.routes.storing import remember, storing
from proxy.edge.routes.story import Story
from proxy.edge.visit import Visit, visit_of
from proxy.errors import (
    RETRY_SOON,
    GatewayTimeoutError,
    NotFoundError,
    RequestError,
    UnavailableError,
    cut,
)
from proxy.happenings import Refused
from proxy.logs import as_value
from proxy.request.deadlines import Goal, goal_of, time_limit
from proxy.request.dialects import Dialect
from proxy.request.generation import GenerationRequest, read_request
from proxy.request.outline import outline, signs_of
from proxy.request.priorities import bounded, claimed
from proxy.request.sessions import session_of
from proxy.request.uploads import Upload
from proxy.service import Service
from proxy.serving.exchange import Call, Handshake, Reply

T = TypeVar("T")

CLIENT_LEFT = "client_left"

MAX_LOGGED_FAILURES = 6
"""How many failed attempts the log line of one request names: a list of prompts may have hundreds."""

LONG_BODY_BYTES = 64 << 10
"""Of longer bodies one is read in a turn of the event loop: each takes milliseconds, and many may be there at
once."""


def route_of(dialect: Dialect, app: web.Application) -> web.RouteDef:
    """The route of a dialect."""
    bound = functools.partial(
        _generate, dialect=dialect, service=app[SERVICE], load=app[LOAD_KEY], salts=app.get(SALTS)
    )
    return (web.get if dialect.opens_socket else web.post)(dialect.path, bound)


async def _generate(
    request: web.Request, dialect: Dialect, service: Service, load: Load, salts: ClientSalts | None
) -> web.StreamResponse:
    visit = visit_of(request)
    notes = visit.notes
    outcome = CLIENT_LEFT
    story = Story()
    begun: web.StreamResponse | None = None
    load.count += 1
    try:
        limit = time_limit(
            request.headers.getall(names.REQUEST_TIMEOUT_MS, ()),
            service.rules.deadlines.request_s,
            visit.started_at,
        )
        reply: Reply | None = None
        try:
            with limit.enforced():
                call = story.call = await _call(request, service, visit, dialect, salts)
                if call.leg_id != visit.request_id:
                    notes["leg"] = call.leg_id
                waiting = (
                    KeepAlive(request, service.rules.now.stream_keepalive_s) if call.request.stream else None
                )
                try:
                    reply = await service.director.serve(call)
                finally:
                    if waiting is not None:
                        begun = waiting.response
                        await waiting.close()
                    _note_trace(notes, call)
            if call.stored_as is not None and reply.status == 200:
                remember(service, visit, call.stored_as, reply)
            response, cut_with = await answer(request, service, visit, reply, dialect, limit, begun, story)
        finally:
            if reply is not None:
                reply.close()
        outcome = _outcome(reply.status)
        if cut_with is not None:
            notes["cut"] = as_value(cut_with)
            if outcome == "ok":
                outcome = "timeout" if isinstance(cut_with, GatewayTimeoutError) else "cut"
        return response
    except RequestError as error:
        outcome = "timeout" if isinstance(error, GatewayTimeoutError) else _outcome(error.status)
        story.status = error.status if begun is None else begun.status
        if error.reason is not None:
            notes["reason"] = error.reason
        if begun is None:
            return error_response(error, dialect.error(error))
        notes["cut"] = as_value(error)
        await cut_stream(request, begun, dialect, error)
        return begun
    except (asyncio.CancelledError, ConnectionError):
        if cut_by_us(request):
            outcome = "cut" if request.writer.output_size > 0 else "unavailable"
            if begun is not None:
                await cut_stream(request, begun, dialect, UnavailableError("kvproxy is shutting down"))
                return begun
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        load.count -= 1
        notes["outcome"] = outcome
        service.tell(story.end(visit, dialect, outcome))


async def _call(
    request: web.Request, service: Service, visit: Visit, dialect: Dialect, salts: ClientSalts | None
) -> Call:
    """Read and check a request. Raises RequestError."""
    if visit.is_spare:
        reason = "no_descriptors"
        service.tell(Refused(reason))
        raise UnavailableError(
            "kvproxy has as many connections as its file descriptors allow",
            headers=RETRY_SOON | {"Connection": "close"},
            reason=reason,
        )
    upload: Upload | None = None
    handshake: Handshake | None = None
    if dialect.opens_socket:
        generation, handshake = await socket_request(request, service, dialect)
    elif dialect.takes_form:
        generation, upload = await form_request(request, service, visit, dialect)
    else:
        generation = await generation_request(request, service, visit, dialect)
        if salts is not None:
            generation = salted(salts, visit, generation)
    stored_as = only = None
    if dialect.stores:
        generation, stored_as, only = storing(service, visit, generation)
    headers, priority = (
        engine_headers(request, service),
        claimed(generation, request.headers.get(names.PRIORITY)),
    )
    if (least := service.rules.admission.max_client_priority) is not None:
        generation, headers = bounded(generation, headers, least)
        priority = max(priority, least)
    return Call(
        request=generation,
        headers=headers,
        leg_id=visit.request_id if visit.is_named_here else names.leg_id(visit.request_id, new_id()[:12]),
        started_at=time.monotonic(),  # only now: the client may have taken long to send the body
        ticket=Ticket(client_of(request, visit, service.config.admission.client_header), priority),
        session=session_asked(request, service, generation),
        goal=goal_asked(request, visit),
        upload=upload,
        handshake=handshake,
        only=only,
        stored_as=stored_as,
    )


def goal_asked(request: web.Request, visit: Visit) -> Goal | None:
    """When the client wants the first token; None if it does not say. Raises BadRequestError."""
    return goal_of(request.headers.getall(names.TTFT_MS, ()), visit.started_at)


def session_asked(request: web.Request, service: Service, generation: GenerationRequest) -> str | None:
    """The session that a request names; None if it names none, or if nobody asks for it."""
    if not service.placement.reads_session and service.recorder is None:
        return None
    return session_named(request, service, generation)


def session_named(request: web.Request, service: Service, generation: GenerationRequest) -> str | None:
    """The session that a request names; None if it names none."""
    return session_of(request.headers.get(service.config.session_header), generation.body)


def _note_trace(notes: dict[str, str], call: Call) -> None:
    if call.request.prompt_count > 1:
        notes["prompts"] = str(call.request.prompt_count)
    if call.ticket.waited_s:
        notes["queued"] = f"{call.ticket.waited_s * 1000:.0f}ms"
    if failed := call.trace.failed:
        more = len(failed) - MAX_LOGGED_FAILURES
        notes["attempts"] = str(call.trace.attempts)
        notes["failed"] = ",".join(failed[:MAX_LOGGED_FAILURES]) + (f",+{more}" if more > 0 else "")


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    if status in {429, 503}:
        return "unavailable"
    return "client_error" if status < 500 else "engine_error"


async def generation_request(
    request: web.Request, service: Service, visit: Visit, dialect: Dialect | tuple[Dialect, ...]
) -> GenerationRequest:
    """Read and check the body of a generating request. Raises RequestError.

    If there are several dialects, the members of the body tell which one it is of.
    """
    if service.stopping.is_set():
        raise UnavailableError("kvproxy is shutting down", headers={"Connection": "close"})
    data, lease = await read_body(request, visit, service)
    if len(data) <= LONG_BODY_BYTES:
        read = _read_at_once(service, lease, dialect, data)
    else:
        hold(service, lease, len(data))
        async with service.long_bodies:
            try:
                read = _read_at_once(service, lease, dialect, data)
            finally:
                await asyncio.sleep(0)
    if read is None:
        hold(service, lease, len(data))
        found = await _off_the_loop(service, lease, outline, data)
        hold(service, lease, weigh(data, found))
        model = service.config.model
        read = await _off_the_loop(service, lease, read_request, dialect, data, model, found)
    if not await service.adapters.known(read.model):
        raise NotFoundError(f"The model `{cut(read.model)}` does not exist.", param="model")
    return read


def _read_at_once(
    service: Service, lease: BodyLease, dialect: Dialect | tuple[Dialect, ...], data: bytes | bytearray
) -> GenerationRequest | None:
    """The request in a body; None for a large one, which is to be read off the event loop."""
    signs = signs_of(data)
    if signs is None:
        return None
    hold(service, lease, weigh(data, signs))
    read = read_request(dialect, data, service.config.model, signs)
    if isinstance(data, bytearray):
        data.clear()  # the request has its own copy
    return read


async def _off_the_loop(service: Service, lease: BodyLease, function: Callable[..., T], *arguments: Any) -> T:
    work = service.reader.submit(function, *arguments)
    lease.lasts(work)
    try:
        return await asyncio.wrap_future(work)
    except RequestError as error:
        # The traceback would keep what the thread made of the body, up to twelve times its size.
        raise error.with_traceback(None) from None


def engine_headers(request: web.Request, service: Service) -> names.Headers:
    """The client's headers that a leg of its request carries."""
    config = service.config
    keep = config.engine_api_key is None and config.security.api_key_file is None
    return names.for_engine(request.headers.items(), keep_authorization=keep)
