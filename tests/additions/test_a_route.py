"""One file adds a generating route: `/v1/replies`, whose requests and answers look like no other route's.

The first half is all that it takes: a dialect, and the same route for the stand-in engine. The second half
drives it.
"""

import json
import pathlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aiohttp
import msgspec
import pytest

from proxy.config import Security
from proxy.errors import BadRequestError, RequestError, UnauthorizedError
from proxy.request.body import Body
from proxy.request.dialects import COMPLETIONS, DIALECTS, Dialect, Failure, Shape, Usage
from proxy.request.generation import read_request
from proxy.request.like_pydantic import truth, whole_number
from proxy.request.sse import EventReader
from proxy.simulation import ROUTES, GeneratingRoute, StandIn
from proxy.simulation.api.answers import Answers
from proxy.simulation.api.bodies import parse_completion
from proxy.simulation.api.errors import ApiError
from proxy.simulation.api.generation import Generation, Piece
from proxy.simulation.api.validation import Checker
from proxy.simulation.live.faults import Fault
from tests.helpers.service import ADMIN_KEY, UNHURRIED, InOrder, Pair, ask, fleet, prose

# -- the route ---------------------------------------------------------------------------------------------


class Replies(Dialect):
    """A text or token ids in, a reply of output items out; its streams end with one that is completed."""

    name = "replies"
    path = "/v1/replies"
    noun = "a reply"
    known_by: ClassVar[str | None] = "question"
    summary = "Reply to a question"
    request_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"max_output_tokens": {"type": ["integer", "null"], "minimum": 1}},
    }
    ending = "an event of type `reply.completed`"
    default_answer_tokens = None
    long_members = ("question",)

    def read(self, body: Body) -> Shape:
        tokens = whole_number(body, "max_output_tokens", nullable=True)
        if tokens is not None and tokens < 1:
            raise BadRequestError("max_output_tokens must be at least 1", param="max_output_tokens")
        return Shape(stream=truth(body.value("stream"), "stream"))

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        tokens = whole_number(body, "max_output_tokens", nullable=True)
        return None if tokens is None else ("max_output_tokens", tokens)

    def first_token_only(self, body: Body) -> Body:
        return body.changed({"stream": False, "max_output_tokens": 1})

    def usage(self, answer: bytes) -> Usage:
        try:
            told = json.loads(answer)["usage"]
            return Usage(told["input_tokens"], told["input_tokens_details"]["cached_tokens"])
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError("not a reply") from error

    def prompt(self, body: Body) -> tuple[Dialect, Body]:
        told = msgspec.Raw(body.view("question") or b"null")
        return COMPLETIONS, body.changed({"prompt": told}, drop=("question", "max_output_tokens"))

    def produces(self, data: bytes) -> bool:
        event = json.loads(data)
        return bool(event["type"] == "reply.output_text.delta" and event["delta"])

    def ends(self, data: bytes) -> bool:
        return b'"reply.completed"' in data and bool(json.loads(data)["type"] == "reply.completed")

    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        if b'"error"' not in data:
            return None
        error = json.loads(data).get("error")
        return None if error is None else Failure(error["code"], data, event)

    def wants_judging(self, run: bytes) -> bool:
        return b'"reply.completed"' in run or b'"error"' in run

    def error(self, error: RequestError) -> dict[str, Any]:
        return {"type": "error", "error": {"code": error.status, "message": str(error), "param": error.param}}


class RepliesOfEngines(Answers):
    """The stand-in's words for them."""

    end = None

    def whole(self, generation: Generation) -> dict[str, Any]:
        usage = self._counts(generation.choices)
        return {
            "id": self.id,
            "object": "reply",
            "output": [
                {"type": "message", "content": [{"type": "output_text", "text": choice.text.text}]}
                for choice in generation.choices
            ],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "input_tokens_details": {
                    "cached_tokens": self._details(generation.choices[-1])["cached_tokens"]
                },
            },
            "kv_transfer_params": generation.choices[0].params,
        }

    def opening(self, generation: Generation) -> list[dict[str, Any]]:
        return [{"type": "reply.created", "response": {"id": self.id}} for _ in generation.choices]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return {"type": "reply.output_text.delta", "delta": piece.text}

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        return [{"type": "reply.completed", "response": self.whole(generation)}]

    def failed(self, error: ApiError) -> dict[str, Any]:
        return {"type": "reply.failed", **error.body()}


def parse_reply(body: Any) -> dict[str, Any]:
    """A request as the completion that the engine makes of it."""
    rest = {name: value for name, value in body.items() if name not in {"question", "max_output_tokens"}}
    return parse_completion(rest | {"prompt": body["question"], "max_tokens": body.get("max_output_tokens")})


REPLIES = Replies()
OF_ENGINES = GeneratingRoute(REPLIES.path, parse_reply, Checker.completion, "reply", RepliesOfEngines)

# -- what it does ------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(prefill: int = 1, decode: int = 1, **settings: Any) -> AsyncIterator[Pair]:
    stand_in = settings.pop("stand_in", {}) | {"routes": (*ROUTES, OF_ENGINES)}
    dialects = (*DIALECTS, REPLIES)
    async with fleet(prefill, decode, stand_in=stand_in, dialects=dialects, **settings) as pair:
        yield pair


def body_of(text: Any, **members: Any) -> dict[str, Any]:
    return {"model": "tiny", "question": text, "max_output_tokens": 8, "temperature": 0} | members


def said_in(data: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    return map(json.loads, EventReader().feed(data))


def text_in(data: bytes) -> str:
    """What a whole answer or a stream says."""
    if data.startswith(b"data: "):
        return "".join(event.get("delta", "") for event in said_in(data))
    return str(json.loads(data)["output"][0]["content"][0]["text"])


async def alone(pair: Pair, body: dict[str, Any]) -> str:
    """What an engine alone says."""
    async with StandIn(routes=(OF_ENGINES,)) as engine:
        return text_in((await ask(pair.service.session, engine.url, REPLIES.path, body)).body)


@pytest.mark.parametrize("stream", [False, True])
async def test_two_legs_serve_the_route_as_one_engine_would(stream: bool) -> None:
    async with serving() as pair:
        body = body_of(prose(60), stream=stream)
        answer = await pair.service.ask(REPLIES.path, body)
        assert answer.status == 200
        assert text_in(answer.body) == await alone(pair, body) != ""
        [first], [second] = ([s.json() for s in e.seen if s.path == REPLIES.path] for e in pair.engines.all)
        ask_for_a_hold = {"do_remote_decode": True, "do_remote_prefill": False}
        one_token = {"stream": False, "max_output_tokens": 1, "kv_transfer_params": ask_for_a_hold}
        assert first == body | one_token
        assert second["kv_transfer_params"]["do_remote_prefill"]
        if stream:
            assert [event["type"] for event in said_in(answer.body)][-1] == "reply.completed"
        await pair.service.settled()
        assert not pair.engines.holds
        assert await pair.service.metric("kvproxy_requests_total", route="replies", outcome="ok") == 1
        assert await pair.service.metric("kvproxy_holds_total", end="pulled") == 1


@pytest.mark.parametrize("text", [prose(80), list(range(200, 300))], ids=["a text", "token ids"])
async def test_the_routes_prompts_are_known_and_found_again(text: Any) -> None:
    async with serving(prefill=2, stand_in=UNHURRIED, decision_headers=True) as pair:
        first = await pair.service.ask(REPLIES.path, body_of(text))
        second = await pair.service.ask(REPLIES.path, body_of(text))
        assert second.headers["X-Kvproxy-Prefill"] == first.headers["X-Kvproxy-Prefill"]
        assert int(second.headers["X-Kvproxy-Cached-Tokens"]) > 0
        told = await pair.service.explain(body_of(text))
        assert (told["why_unknown"], told["known_tokens"]) == (None, told["prompt_tokens"])
        assert await pair.service.metric("kvproxy_unknown_prompts_total") == 0


async def test_a_malformed_request_is_refused_in_the_routes_own_words() -> None:
    async with serving() as pair:
        answer = await pair.service.ask(REPLIES.path, body_of("hi", max_output_tokens=0))
        message = "max_output_tokens must be at least 1"
        assert answer.status == 400
        assert answer.json == {
            "type": "error",
            "error": {"code": 400, "message": message, "param": "max_output_tokens"},
        }
        assert not pair.engines.prefill[0].seen


async def test_a_failure_before_anything_was_generated_is_tried_again() -> None:
    async with serving(decode=2) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="error", path=REPLIES.path, status=500, after_chunks=1, times=1))
        body = body_of(prose(60), stream=True)
        answer = await pair.service.ask(REPLIES.path, body)
        assert text_in(answer.body) == await alone(pair, body)
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason="status") == 2


async def test_a_later_failure_is_an_event_in_the_routes_own_words_and_a_cut() -> None:
    async with serving(stand_in=UNHURRIED, policy=InOrder()) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="cut", path=REPLIES.path, after_bytes=400, times=1))
        body = body_of(prose(60), stream=True, max_output_tokens=40)
        received = bytearray()

        async def listen() -> None:
            url = pair.service.url + REPLIES.path
            async with pair.service.session.post(url, json=body) as response:
                async for chunk in response.content.iter_any():
                    received.extend(chunk)

        with pytest.raises(aiohttp.ClientPayloadError):
            await listen()
        *before, last = said_in(bytes(received))
        assert "reply.completed" not in {event["type"] for event in before}
        assert (last["type"], last["error"]["code"]) == ("error", 502)


async def test_the_route_is_described() -> None:
    async with serving() as pair:
        described = (await pair.service.ask("/openapi.json")).json
        operation = described["paths"][REPLIES.path]["post"]
        assert (operation["operationId"], operation["summary"]) == ("replies", "Reply to a question")
        asked = operation["requestBody"]["content"]["application/json"]["schema"]
        assert "max_output_tokens" in asked["properties"]
        assert REPLIES.ending in operation["responses"]["200"]["description"]


def test_a_body_is_known_by_the_member_that_no_other_dialect_has() -> None:
    dialects = (*DIALECTS, REPLIES)
    assert read_request(dialects, b'{"question": "hi"}', "tiny").dialect is REPLIES
    needed = r"either messages \(a chat\) or prompt \(a completion\) or .* or question \(a reply\) is needed"
    with pytest.raises(BadRequestError, match=needed):
        read_request(dialects, b'{"question": "hi", "prompt": "hi"}', "tiny")


class Elsewhere(Replies):
    """The same on a path of its own, with members that other routes have as well."""

    name = "elsewhere"
    path = "/elsewhere/replies"
    known_by = None

    def unauthorized(self) -> dict[str, Any]:
        return self.error(UnauthorizedError("a key is needed"))


ELSEWHERE = Elsewhere()


async def test_a_route_may_be_anywhere_and_is_explained_by_its_path(tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice sk-alice")
    keys.chmod(0o600)
    elsewhere = GeneratingRoute(ELSEWHERE.path, parse_reply, Checker.completion, "reply", RepliesOfEngines)
    async with fleet(
        1,
        1,
        stand_in={"routes": (*ROUTES, elsewhere)},
        dialects=(*DIALECTS, ELSEWHERE),
        security=Security(api_key_file=keys),
    ) as pair:
        key = {"Authorization": "Bearer sk-alice"}
        assert text_in((await pair.service.ask(ELSEWHERE.path, body_of(prose(60)), **key)).body)
        operator = {"X_API_Key": ADMIN_KEY}
        explain = f"/explain?route={ELSEWHERE.path}"
        told = await pair.service.ask(explain, body_of(prose(60)), **operator)
        assert (told.status, told.json["why_unknown"]) == (200, None)
        for path in ("/explain", "/explain?route=/nowhere"):
            assert (await pair.service.ask(path, body_of("hi"), **operator)).status == 400
        described = (await pair.service.ask("/openapi.json")).json["paths"]["/explain"]["post"]["parameters"]
        assert [ELSEWHERE.path in each["schema"]["enum"] for each in described if each.get("name")] == [True]


@pytest.mark.parametrize("below", ["", "/", "/below"])
async def test_errors_on_its_path_and_below_are_in_the_routes_words(
    tmp_path: pathlib.Path, below: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice sk-alice")
    keys.chmod(0o600)
    security = Security(api_key_file=keys)
    async with fleet(1, 1, dialects=(*DIALECTS, ELSEWHERE), max_body_mb=1, security=security) as pair:
        path = ELSEWHERE.path + below
        key = {"Authorization": "Bearer sk-alice"}
        answers = [
            await pair.service.ask(path, **key),  # GET
            await pair.service.ask(path, b" " * (1 << 20) + b"{}", **key),
            await pair.service.ask(path, b"nonsense", **key),
        ]
        unserved = below == "/below"
        assert [answer.status for answer in answers] == ([404] * 3 if unserved else [405, 413, 400])
        if not unserved:
            answers.append(await pair.service.ask(path, body_of("hi")))
            assert answers[-1].status == 401
        for answer in answers:
            assert answer.json["type"] == "error"
            assert answer.json["error"]["code"] == answer.status
            assert answer.json["error"]["message"]
