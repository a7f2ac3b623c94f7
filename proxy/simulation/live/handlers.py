"""Invariant: a handler maps HTTP to one call of the engine and back; what it starts ends when it ends.

The front of the stand-in is that of vLLM's API server: routes, refusals, streams, and what happens when a
client leaves.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.bodies import parse_detokenize, parse_tokenize
from proxy.simulation.api.errors import (
    ApiError,
    BadRequestError,
    EngineFullError,
    EngineGoneError,
    GenerationFailedError,
    PermissionDeniedError,
)
from proxy.simulation.api.generation import Choice, Generation
from proxy.simulation.api.messages import parse_counted, refusal
from proxy.simulation.api.openapi import document
from proxy.simulation.api.responses import ResponseAnswers
from proxy.simulation.api.routes import ROUTES, WHOLE_ROUTES, GeneratingRoute
from proxy.simulation.api.validation import Asked
from proxy.simulation.engine.request import Request
from proxy.simulation.engine.text import OutputText
from proxy.simulation.live.http_edge import EventStream, cut, json_answer, read_json
from proxy.simulation.live.rank import Rank
from proxy.simulation.live.responses import stream_from_background

if TYPE_CHECKING:
    from proxy.simulation.live.stand_in import StandIn

_SCALE_OUT = (
    "/inference/v1/generate",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/messages/render",
    "/v1/responses/render",
)


class Handlers:
    """The routes of one stand-in."""

    def __init__(self, engine: "StandIn", generating: Sequence[GeneratingRoute]) -> None:
        self._engine = engine
        self._created = int(time.time())
        self.routes = [
            web.get("/health", self.health, allow_head=False),
            web.get("/ping", self.health, allow_head=False),
            web.post("/ping", self.health),
            web.get("/version", self.version, allow_head=False),
            web.get("/load", self.load, allow_head=False),
            web.get("/metrics", self.metrics, allow_head=False),
            web.get("/v1/models", self.models, allow_head=False),
            web.get("/kv_event_sources", self.event_sources, allow_head=False),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.post("/v1/messages/count_tokens", self.count_tokens),
        ]
        served = [route for route in generating if engine.config.scale_out or route.path not in _SCALE_OUT]
        self.routes += [web.post(route.path, self._generating(route)) for route in (*served, *WHOLE_ROUTES)]
        self.routes.append(web.post("/invocations", self.invocations))
        closed = set(_SCALE_OUT) - {route.path for route in served}
        self.routes += [web.post(path, self.scale_out) for path in sorted(closed)]
        stored = engine.responses
        for route in generating:
            if route.stored:
                self.routes += [
                    web.get(route.path + "/{response_id}", stored.retrieve, allow_head=False),
                    web.post(route.path + "/{response_id}/cancel", stored.cancel),
                ]
        if engine.config.lora_updates:
            self.routes += [
                web.post("/v1/load_lora_adapter", self.load_adapter),
                web.post("/v1/unload_lora_adapter", self.unload_adapter),
            ]
        if engine.config.docs:
            self.routes.append(web.get("/openapi.json", self.openapi, allow_head=False))
        if engine.config.dev_mode:
            self.routes += [
                web.post("/reset_prefix_cache", self.reset_prefix_cache),
                web.post("/sleep", self.sleep),
                web.post("/wake_up", self.wake_up),
                web.get("/is_sleeping", self.is_sleeping, allow_head=False),
            ]

    async def health(self, _: web.Request) -> web.Response:
        """Whether the process and its engine live."""
        return web.Response(status=503 if self._engine.dead else 200)

    async def version(self, _: web.Request) -> web.Response:
        """The release that the stand-in says it is."""
        return json_answer({"version": self._engine.config.version})

    async def openapi(self, _: web.Request) -> web.Response:
        """The schema of requests."""
        return json_answer(document(self._engine.config.more_members))

    async def load(self, _: web.Request) -> web.Response:
        """How many requests are being answered, if that is counted."""
        engine = self._engine
        return json_answer({"server_load": engine.in_flight.count if engine.config.load_tracking else 0})

    async def metrics(self, _: web.Request) -> web.Response:
        """The metrics, in the format of Prometheus."""
        return web.Response(body=self._engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def models(self, _: web.Request) -> web.Response:
        """The model and its adapters."""
        config = self._engine.config
        cards = [self._card(config.model, None, config.max_model_len)]
        cards += [self._card(lora, config.model, None) for lora in self._engine.adapters]
        return json_answer({"object": "list", "data": cards})

    async def event_sources(self, _: web.Request) -> web.Response:
        """Where the ranks' events are published."""
        return json_answer(self._engine.event_sources())

    async def reset_prefix_cache(self, _: web.Request) -> web.Response:
        """Reset the prefix caches; the answer is false while any rank has blocks in use."""
        done = [rank.model.reset_prefix_cache() for rank in self._engine.ranks]
        return json_answer({"success": all(done)})

    async def load_adapter(self, request: web.Request) -> web.Response:
        """Load an adapter. The words of success have no content type."""
        return web.Response(body=self._engine.adapters.load(await read_json(request)).encode())

    async def unload_adapter(self, request: web.Request) -> web.Response:
        """Unload an adapter; the requests that run with it end."""
        return web.Response(body=self._engine.adapters.unload(await read_json(request)).encode())

    async def sleep(self, request: web.Request) -> web.Response:
        """Put the engine to sleep. The answer comes once it sleeps; held blocks keep it awake until they are
        fetched or their time is up.
        """
        level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
        if level not in {"0", "1", "2"} or mode not in {"abort", "wait", "keep"}:
            raise BadRequestError("level is 0, 1 or 2, and mode abort, wait or keep")
        await asyncio.gather(*(rank.sleep(int(level), mode) for rank in self._engine.ranks))
        return json_answer({"status": "sleeping", "level": int(level)})

    async def wake_up(self, request: web.Request) -> web.Response:
        """Wake the engine, or the memories that `tags` name."""
        tags = request.query.getall("tags", [])
        awake = [rank.wake_up([tag for tag in tags if tag != "scheduling"]) for rank in self._engine.ranks]
        return json_answer({"status": "awake" if all(awake) else "sleeping", "tags": tags or None})

    async def is_sleeping(self, _: web.Request) -> web.Response:
        """Whether the engine sleeps; true as soon as new requests wait."""
        return json_answer({"is_sleeping": any(rank.model.paused for rank in self._engine.ranks)})

    async def scale_out(self, _: web.Request) -> web.Response:
        """The answer of routes that need a flag which the stand-in does not have."""
        raise PermissionDeniedError(
            "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
        )

    async def tokenize(self, request: web.Request) -> web.Response:
        """A prompt or a conversation as tokens."""
        engine = self._engine
        body = parse_tokenize(await read_json(request))
        engine.checker.served(body.get("model"))
        if body.get("messages") is not None:
            tokens = engine.checker.chat_tokens(body)
        else:
            tokens = engine.tokenizer.encode(body["prompt"])
        wants_strings = body.get("return_token_strs")
        return json_answer(
            {
                "count": len(tokens),
                "max_model_len": engine.config.max_model_len,
                "tokens": tokens,
                "token_strs": [engine.tokenizer.piece(t) for t in tokens] if wants_strings else None,
            }
        )

    async def count_tokens(self, request: web.Request) -> web.Response:
        """The length of a chat in Anthropic's words, rendered as it would be to be answered."""
        body = parse_counted(await read_json(request))
        try:
            self._engine.checker.served(body.get("model"))
            length = len(self._engine.checker.answerable_tokens(body))
        except ApiError as error:
            return json_answer(refusal(error), error.status)
        return json_answer({"input_tokens": length, "context_management": {"original_input_tokens": length}})

    async def detokenize(self, request: web.Request) -> web.Response:
        """Tokens as text."""
        body = parse_detokenize(await read_json(request))
        self._engine.checker.served(body.get("model"))
        return json_answer({"prompt": self._engine.tokenizer.decode(body["tokens"])})

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        """Whichever generating request the body is, for SageMaker: chats are tried first."""
        data = await read_json(request)
        completions, chats, *_ = ROUTES
        for route in (chats, completions):
            try:
                body = route.parse(data)
            except BadRequestError:
                continue
            with self._engine.in_flight.one():
                return await self._generate(request, route, body)
        raise BadRequestError(
            "Cannot find suitable handler for request. "
            "Expected one of: ['ChatCompletionRequest', 'CompletionRequest']"
        )

    def _generating(self, route: GeneratingRoute) -> Handler:
        async def generate(request: web.Request) -> web.StreamResponse:
            with self._engine.in_flight.one():
                body = route.parse(await read_json(request))
                try:
                    return await self._generate(request, route, body)
                except ApiError as error:
                    return json_answer(route.refused(error), error.status)

        return generate

    async def _generate(
        self, request: web.Request, route: GeneratingRoute, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        if self._engine.dead:
            raise EngineGoneError
        try:
            # vLLM's order: first the model's name, then whether there is room, then all else.
            self._engine.checker.served(body.get("model"))
            self._engine.check_admission(body.get("n") or 1)
            if route.stored:
                body = self._engine.responses.built_on(body)
            asked = route.check(self._engine.checker, body)
            rank = self._rank(request)
        except ApiError:
            if params := body.get("kv_transfer_params"):
                self._engine.ranks[0].reject(params)
            raise
        answer_id = route.id_of(route.id_prefix, body, request.headers.get("X-Request-Id"))
        session = _session_id(body, request.headers.get("X-Session-ID"))
        generation = Generation(rank.model, self._choices(asked, answer_id + route.request_mark, session))
        config = self._engine.config
        answers = route.answers(
            asked=asked,
            id=answer_id,
            created=int(time.time()),
            fingerprint=f"vllm-{self._engine.config.version}-standin",
            tokenizer=self._engine.tokenizer,
            voice=rank.model.voice,
            block_size=config.block_size,
            prompt_details=config.prompt_tokens_details,
            request_metrics=config.request_metrics,
            last_chunk_params=config.bidirectional,
        )
        try:
            generation.streamed = bool(body.get("stream"))
            try:  # once more: each prompt of a list needs room of its own, and it may be too late for a 503
                for number in range(len(asked.prompts)):
                    self._engine.check_admission(asked.n, asked.prompts[:number])
            except EngineFullError as error:
                generation.fail(error)
            else:
                rank.submit(generation)
            if isinstance(answers, ResponseAnswers) and body.get("background"):
                return await self._in_background(request, rank, generation, answers)
            if generation.streamed:
                return await self._stream(request, generation, answers)
            await generation.finished()
            return json_answer(self._whole(answers, generation))
        finally:
            if not body.get("background"):
                rank.forget(generation)

    def _whole(self, answers: Answers, generation: Generation) -> dict[str, Any]:
        whole = answers.whole(generation)
        if isinstance(answers, ResponseAnswers):
            self._engine.responses.keep(answers, generation, whole)
        return whole

    async def _in_background(
        self, request: web.Request, rank: Rank, generation: Generation, answers: ResponseAnswers
    ) -> web.StreamResponse:
        forget = functools.partial(rank.forget, generation)
        stored = self._engine.responses.in_background(answers, generation, forget)
        if generation.streamed:
            return await stream_from_background(request, stored, 0)
        return json_answer(stored.said)

    def _choices(self, asked: Asked, answer_id: str, session_id: str | None) -> list[Choice]:
        engine, body = self._engine, asked.body
        lora_id = engine.adapters.number(asked.lora) if asked.lora else None
        report = (body.get("vllm_xargs") or {}).get("kv_cache_report_mode") == "full"
        now_s = time.monotonic()
        choices: list[Choice] = []
        for p, prompt in enumerate(asked.prompts):
            name = (
                f"{answer_id}-{uuid.uuid4().hex[:8]}"
                if asked.chat
                else f"{answer_id}-{p}-{uuid.uuid4().hex[:8]}"
            )
            for n in range(asked.n):
                sampling = asked.sampling_of(p, n)
                request = Request(
                    id=f"{n}_{name}" if asked.n > 1 else name,
                    tokens=list(prompt),
                    sampling=sampling,
                    arrived_s=now_s,
                    lora=asked.lora,
                    lora_id=lora_id,
                    cache_salt=body.get("cache_salt"),
                    pull=asked.transfer if asked.transfer.get("do_remote_prefill") else None,
                    hold=bool(asked.transfer.get("do_remote_decode")),
                    full_report=report,
                    session_id=session_id,
                    images=engine.checker.images_in(prompt, body) if asked.chat else (),
                    reads_cache=asked.prompt_logprobs is None,
                )
                keep = bool(body.get("include_stop_str_in_output"))
                text = OutputText(engine.tokenizer, asked.stop, keep_stop=keep)
                choices.append(Choice(len(choices), prompt, request, text, sampling))
        return choices

    async def _stream(
        self, request: web.Request, generation: Generation, answers: Answers
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        out = EventStream(response, request, named=answers.named)
        opened = False
        try:
            for event in answers.greeting(generation):
                await out.send(event)
            while pieces := await generation.pieces():
                if not opened:
                    opened = True
                    for chunk in answers.opening(generation):
                        await out.send(chunk)
                for piece in pieces:
                    for event in answers.events(piece):
                        await out.send(event)
            for chunk in answers.closing(generation):
                if isinstance(answers, ResponseAnswers) and "response" in chunk:
                    self._engine.responses.keep(answers, generation, chunk["response"])
                await out.send(chunk)
        except ApiError as error:
            if isinstance(error, GenerationFailedError) and not opened:
                # For vLLM that is an output like any other, so a chat names its roles first.
                for chunk in answers.opening(generation):
                    await out.say(chunk)
            told = answers.failed(error)
            if told is None:
                await cut(request)
            await out.say(told)
        if answers.end is not None:
            await out.end(answers.end)
        await response.write_eof()
        return response

    def _rank(self, request: web.Request) -> Rank:
        ranks = self._engine.ranks
        given = request.headers.get("X-data-parallel-rank")
        try:
            number = int(given) if given is not None else None
        except ValueError:
            number = None
        if number is None:
            return self._engine.least_loaded()
        if not 0 <= number < len(ranks):
            raise BadRequestError(f"data_parallel_rank {number} is out of range [0, {len(ranks)}).")
        return ranks[number]

    def _card(self, name: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
            "object": "model_permission",
            "created": self._created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": self._engine.adapters.path(name)
            if parent is not None
            else self._engine.config.root or name,
            "parent": parent,
            "max_model_len": max_model_len,
            "permission": [permission],
        }


def _session_id(body: Mapping[str, Any], header: str | None) -> str | None:
    """The session a request names: the body's, else the header's, else that of the extra arguments."""
    extra = (body.get("vllm_xargs") or {}).get("session_id")
    return body.get("session_id") or header or (extra if isinstance(extra, str) and extra else None)
