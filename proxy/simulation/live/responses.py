"""Invariant: what is stored of a response is what its last answer or event said, and dies with the process.

The store of vLLM 0.32 (`VLLM_ENABLE_RESPONSES_API_STORE=1`), which forgets nothing: responses to be fetched,
to be built upon, or computed while nobody waits.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from proxy.simulation.api.errors import ApiError, BadRequestError, SchemaError
from proxy.simulation.api.generation import Generation
from proxy.simulation.api.responses import ResponseAnswers
from proxy.simulation.api.schema import Problems, integer
from proxy.simulation.live.http_edge import EventStream, cut, json_answer
from proxy.tasks import TaskOwner


class NoSuchResponseError(ApiError):
    """No response of that id is stored."""

    status = 404
    type = "invalid_request_error"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{response_id}' not found.", "response_id")


class SynchronousError(BadRequestError):
    """The response is not computed in the background, or is complete."""

    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("Cannot cancel a synchronous response.", "response_id")


class NoStoreError(BadRequestError):
    """The engine was started without a store."""

    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__(
            "This vLLM engine does not support `store=True` and therefore does not support the background "
            "mode. To enable these features, set the environment variable "
            "`VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server.",
            "background",
        )


@dataclass(slots=True)
class Stored:
    """One response."""

    said: dict[str, Any]
    messages: list[dict[str, Any]]
    """The conversation up to its answer."""
    events: list[dict[str, Any]] | None = None
    """Those so far of one that is streamed from the background."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class ResponseStore:
    """The responses of one engine."""

    def __init__(self, *, keeps: bool) -> None:
        """`keeps`: whether anything is stored."""
        self._keeps = keeps
        self._stored: dict[str, Stored] = {}
        self._tasks = TaskOwner("responses")

    @property
    def computing(self) -> int:
        """How many responses are computed in the background."""
        return len(self._tasks)

    async def close(self) -> None:
        """The process ends, and with it all that is stored."""
        await self._tasks.close()
        self._stored.clear()

    def built_on(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request with the messages of the response that it builds on. Raises ApiError."""
        if body.get("background") and not self._keeps:
            raise NoStoreError
        previous = body.get("previous_response_id")
        if previous is None:
            return dict(body)
        return {**body, "previous_messages": self._find(previous).messages}

    def keep(self, answers: ResponseAnswers, generation: Generation, said: dict[str, Any]) -> None:
        """A response is complete."""
        if self._keeps and answers.asked.body.get("store", True):
            self._stored[answers.id] = Stored(said, answers.messages(generation))

    def in_background(
        self,
        answers: ResponseAnswers,
        generation: Generation,
        forget: Callable[[], None],
    ) -> Stored:
        """Have a response computed while nobody waits for it; `forget`: its engine need do so no more."""
        stored = Stored(answers.queued(), list(answers.asked.body["messages"]))
        if generation.streamed:
            stored.events = []
        self._stored[answers.id] = stored
        stored.task = self._tasks.create(_compute(stored, answers, generation, forget), name=answers.id)
        return stored

    def _find(self, response_id: str) -> Stored:
        stored = self._stored.get(response_id)
        if stored is None:
            raise NoSuchResponseError(response_id)
        return stored

    # -- its routes -----------------------------------------------------------------------------------------

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        """What a response says by now, or the events of one that is streamed from the background."""
        after = _whole(request, "starting_after")
        stored = self._find(request.match_info["response_id"])
        if request.query.get("stream", "false").lower() in {"true", "1", "yes", "on"}:
            return await stream_from_background(request, stored, 0 if after is None else after + 1)
        return json_answer(stored.said)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End the work on a response that is computed in the background."""
        stored = self._find(request.match_info["response_id"])
        if stored.said["status"] not in {"queued", "in_progress"}:
            raise SynchronousError
        stored.said = {**stored.said, "status": "cancelled"}
        if stored.task is not None:
            stored.task.cancel()
        return json_answer(stored.said)


def _whole(request: web.Request, name: str) -> int | None:
    """An integer of the query. Raises SchemaError."""
    if name not in request.query:
        return None
    problems: Problems = []
    value: int | None = integer()(request.query[name], f"query.{name}", problems)
    if problems:
        raise SchemaError(problems)
    return value


async def _compute(
    stored: Stored, answers: ResponseAnswers, generation: Generation, forget: Callable[[], None]
) -> None:
    try:
        if stored.events is None:
            await generation.finished()
            stored.said = answers.whole(generation)
        else:
            async for event in _events(answers, generation):
                stored.events.append(event)
                stored.news.set()
            stored.said = stored.events[-1]["response"]
        stored.messages = answers.messages(generation)
    except ApiError:
        stored.said = {**stored.said, "status": "failed"}
    finally:
        forget()
        stored.news.set()


async def _events(answers: ResponseAnswers, generation: Generation) -> AsyncIterator[dict[str, Any]]:
    for event in answers.greeting(generation):
        yield event
    while pieces := await generation.pieces():
        for piece in pieces:
            for event in answers.events(piece):
                yield event
    for event in answers.closing(generation):
        yield event


async def stream_from_background(request: web.Request, stored: Stored, first: int) -> web.StreamResponse:
    """The events from a number on, as they come."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    events, at = stored.events, first
    if events is None:
        await cut(request)
    out = EventStream(response, request, named=True)
    while True:
        stored.news.clear()
        while at < len(events):
            await out.send(events[at])
            if events[at]["type"] == "response.completed":
                await response.write_eof()
                return response
            at += 1
        await stored.news.wait()
