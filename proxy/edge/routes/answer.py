"""A reply becomes the answer of a generating request: whole, or as a stream."""

import time

from aiohttp import web
from multidict import CIMultiDict

from proxy import headers as names
from proxy.edge.middlewares import IN_FLIGHT_KEY
from proxy.edge.relay import cut_stream, relay_stream
from proxy.edge.routes.sockets import join
from proxy.edge.routes.story import Story, answer_tokens, streamed_tokens
from proxy.edge.stall import StallWatch
from proxy.edge.visit import Visit
from proxy.edge.whole import MAX_BYTES, whole_answer
from proxy.errors import EngineFailedError, RequestError
from proxy.happenings import AnswerBegan, ClientStalled, FirstTokenForeseen, GoalEnded
from proxy.request.deadlines import TimeLimit
from proxy.request.dialects import Dialect
from proxy.service import Service
from proxy.serving.exchange import Reply


async def answer(
    request: web.Request,
    service: Service,
    visit: Visit,
    reply: Reply,
    dialect: Dialect,
    limit: TimeLimit,
    begun: web.StreamResponse | None,
    story: Story,
) -> tuple[web.StreamResponse, RequestError | None]:
    """Send the reply to the client. Returns the answer, and the error it was cut with (None if the client got
    all of it).

    `begun`: the answer whose head went out before there was a reply. `story` is filled with what is known.
    """
    status, body = reply.status, reply.body
    story.status, story.decision = status, reply.decision
    told = _note_decision(service, visit, reply)
    if status < 400:
        first_byte_s = story.first_byte_s = time.monotonic() - visit.started_at
        service.tell(AnswerBegan(dialect.name, first_byte_s))
    if reply.socket is not None:
        return await join(request, reply.socket, limit)
    if isinstance(body, bytes):
        if begun is not None:
            error = EngineFailedError(f"the engine answered with status {status} when the stream had begun")
            return begun, await cut_stream(request, begun, dialect, error, dialect.late_answer(status, body))
        if status < 400:
            story.answer_tokens = answer_tokens(dialect, body)
        headers = _with_decision(names.for_client(reply.headers), told)
        whole = whole_answer(request, service, visit, status, headers, body)
        if len(body) > MAX_BYTES:
            reply.close()
            with _watch(request, service):
                await whole.prepare(request)
                await whole.write_eof()
        return whole, None
    if story.first_byte_s is not None:
        visit.notes["ttfb"] = f"{story.first_byte_s * 1000:.0f}ms"
        if story.call is not None and (goal := story.call.goal) is not None:
            service.tell(GoalEnded("met" if 1000 * story.first_byte_s <= goal.ms else "missed"))
        if (predicted_s := story.began(visit.started_at + story.first_byte_s)) is not None:
            visit.notes["predicted"] = f"{predicted_s * 1000:.0f}ms"
            service.tell(FirstTokenForeseen(predicted_s, story.ttft_s or 0.0))
    headers = _with_decision(names.for_streaming_client(reply.headers), told)
    response = begun or web.StreamResponse(status=status, headers=CIMultiDict(headers))
    with _watch(request, service):
        cutting = request.app[IN_FLIGHT_KEY].cutting
        counting = service.recorder is not None
        relayed = await relay_stream(request, response, body, dialect, cutting, limit, counting=counting)
    story.answer_tokens = streamed_tokens(dialect, relayed.before, relayed.last)
    story.answer_events = relayed.events
    return response, relayed.cut


def _note_decision(service: Service, visit: Visit, reply: Reply) -> names.Headers:
    """Note for the log where the legs went. Returns what the client is told of that."""
    if (decision := reply.decision) is None:
        return []
    prefill, decode = decision.prefill.chosen, decision.decode.chosen
    if prefill is None or decode is None:
        return []
    notes = visit.notes
    notes["prefill"], notes["decode"] = prefill.instance, decode.instance
    if decision.bypass is not None:
        notes["bypass"] = decision.bypass
    if prefill.cached_tokens is not None:
        notes["cached"] = str(prefill.cached_tokens)
    if not service.rules.now.decision_headers:
        return []
    told = [(names.PREFILL, prefill.instance), (names.DECODE, decode.instance)]
    if prefill.cached_tokens is not None and reply.status < 400:  # errors carry no usage either
        told.append((names.CACHED_TOKENS, str(prefill.cached_tokens)))
    return told


def _with_decision(headers: names.Headers, told: names.Headers) -> names.Headers:
    """An engine's headers and ours, which stand in the place of those that it sent of that name."""
    if not told:
        return headers
    ours = {name.lower() for name, _ in told}
    return [(name, value) for name, value in headers if name.lower() not in ours] + told


def _watch(request: web.Request, service: Service) -> StallWatch:
    def stalled() -> None:
        service.tell(ClientStalled())

    return StallWatch(request, service.rules.deadlines.client_stall_s, stalled)
