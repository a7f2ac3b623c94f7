"""`/v1/responses`: an input, answered by a response of output items; what a store keeps, one engine has.

As vLLM 0.32 serves it (`entrypoints/openai/responses`). A stream's events have names, and nothing follows the
one that has the whole response.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from proxy.errors import BadRequestError, RequestError, envelope
from proxy.request.body import Body
from proxy.request.dialects import choices
from proxy.request.dialects.base import Dialect, Failure, Shape, Usage
from proxy.request.dialects.chat import MAX_MESSAGES, MAX_TOOLS
from proxy.request.dialects.responses_as_chats import as_chat
from proxy.request.like_pydantic import truth, whole_number
from proxy.request.sse import event_of

_ONE_TOKEN = {
    "stream": msgspec.Raw(b"false"),
    "max_output_tokens": msgspec.Raw(b"1"),
    "store": msgspec.Raw(b"false"),  # the instance that answers has what is stored, and no other
}

_TURNS_OF_ITS_OWN = frozenset({"web_search_preview", "code_interpreter", "container", "mcp"})
"""Types of tools that an engine may call by itself (`extract_tool_types`): it then computes another prompt
with the params of the request, which name blocks that were fetched already."""

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_NOT_YET = frozenset({"response.created", "response.queued", "response.in_progress"})
"""Events that come before anything is generated."""

_FAILED = b"response.failed"
_END = re.compile(rb"response\.(?:completed|incomplete|failed)")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: Any = None  # nothing depends on it, so a wrong value makes no answer unreadable
    input_tokens_details: _Details | None = None


class _Response(msgspec.Struct):
    object: Literal["response"]
    usage: _Usage | None = None
    metrics: Any = None  # as output_tokens


class _Answer(msgspec.Struct):
    """A response, or an event that has one."""

    object: Any = None
    response: _Response | None = None


class _Error(msgspec.Struct):
    param: Any = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error | None = None


class _Event(msgspec.Struct):
    type: str = ""


class _Tool(msgspec.Struct):
    type: str = ""


_decode_response = msgspec.json.Decoder(_Response).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Responses(Dialect):
    """The dialect of responses."""

    name = "responses"
    path = "/v1/responses"
    noun = "a response"
    known_by = "input"
    summary = "Respond to an input"
    request_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "input": {"description": "A text or a list of items, as engines take it."},
            "model": {
                "type": ["string", "null"],
                "description": "The configured model or an adapter an engine lists; absent or null: the "
                "configured model.",
            },
            "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
            "stream": {"type": ["boolean", "null"]},
            "store": {"type": ["boolean", "null"]},
        },
        "required": ["input"],
        "additionalProperties": True,
    }
    answer_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "response"},
            "status": {"type": "string"},
            "output": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["id", "output"],
        "additionalProperties": True,
    }
    ending = "an event `response.completed`, `response.incomplete` or `response.failed`"
    default_answer_tokens = None
    stores = True
    max_items: ClassVar[Mapping[str, int]] = {"input": MAX_MESSAGES, "tools": MAX_TOOLS}

    def __init__(self, chat: Dialect) -> None:
        """`chat`: the dialect of chats, of which vLLM makes responses."""
        self._chat = chat

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        tokens = whole_number(body, "max_output_tokens", nullable=True)
        if tokens is not None and tokens < 1:
            raise BadRequestError(f"max_tokens must be at least 1, got {tokens}.", param="max_tokens")
        truth(body.value("store"), "store")
        stream = truth(body.value("stream"), "stream")
        return Shape(stream=stream, whole=_is_whole(body))

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        tokens = whole_number(body, "max_output_tokens", nullable=True)
        return None if tokens is None else ("max_output_tokens", tokens)

    def may_end_early(self, body: Body) -> bool:
        """As `Dialect`."""
        try:
            return not truth(body.value("ignore_eos"), "ignore_eos")
        except BadRequestError:
            return True

    def first_token_only(self, body: Body) -> Body:
        """As `Dialect`."""
        return body.changed(_ONE_TOKEN)

    def usage(self, answer: bytes) -> Usage:
        """As `Dialect`."""
        try:
            found = _decode_answer(answer)
            read = found.response or _decode_response(answer)
        except _UNREADABLE as error:
            raise ValueError(f"the response cannot be read: {error}") from None
        usage = read.usage or _Usage()
        details = usage.input_tokens_details or _Details()
        if min(usage.input_tokens or 0, details.cached_tokens or 0) < 0:
            raise ValueError("the response counts fewer than 0 tokens")
        generated = usage.output_tokens if isinstance(usage.output_tokens, int) else None
        first_ms = choices.first_token_ms(read.metrics)
        return Usage(usage.input_tokens, details.cached_tokens, generated, first_ms)

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        chat = as_chat(body, self._chat.prompt_members)
        return None if chat is None else (self._chat, chat)

    def may_store(self, body: Body) -> bool:
        """As `Dialect`; an engine stores unless it is told not to, if it was started with a store."""
        return body.raw("store") is None or truth(body.value("store"), "store")

    def builds_on(self, body: Body) -> str | None:
        """As `Dialect`."""
        previous = body.value("previous_response_id")
        return previous if isinstance(previous, str) else None

    def lacks_model(self, answer: bytes) -> bool:
        """As `Dialect`: an engine may lack the response that a request builds on instead."""
        return not self.lacks_response(answer)

    def lacks_response(self, answer: bytes) -> bool:
        """Whether an engine's 404 says that it does not store a response."""
        try:
            error = _decode_error(answer).error
        except _UNREADABLE:
            return False
        return error is not None and error.param == "response_id"

    def produces(self, data: bytes) -> bool:
        """As `Dialect`."""
        return _type_of(data) not in _NOT_YET

    def ends(self, data: bytes) -> bool:
        """As `Dialect`."""
        return _END.search(data) is not None and _type_of(data) in _ENDS

    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        """As `Dialect`."""
        status = choices.failure_status(data)
        if status is not None:
            return Failure(status, data, event)
        if _FAILED not in data or _type_of(data) != "response.failed":
            return None
        words = "the engine ended this response as failed"
        body = msgspec.json.encode(envelope(words, "InternalServerError", 500))
        return Failure(500, body, event)

    def wants_judging(self, run: bytes) -> bool:
        """As `Dialect`."""
        return _END.search(run) is not None or choices.ERROR in run

    def error_event(self, error: RequestError) -> bytes:
        """As `Dialect`; for clients that know events by their type, and for those that look for `error`."""
        return event_of(msgspec.json.encode({"type": "error"} | self.error(error)), "error")


def _is_whole(body: Body) -> bool:
    """Whether one instance has to serve a request: it has what the request builds on, answers before the
    prompt is computed, or may compute more than this prompt.
    """
    if body.gives("previous_response_id") or body.raw("background") not in {None, b"false", b"null"}:
        return True
    if not body.gives("tools"):
        return False
    try:
        tools = _decode_tools(body.view("tools") or b"null") or []
    except _UNREADABLE:
        return False
    return any(tool.type in _TURNS_OF_ITS_OWN for tool in tools)


def _type_of(data: bytes) -> str:
    """The type of an event; empty for what cannot be read."""
    try:
        return _decode_event(data).type
    except _UNREADABLE:
        return ""
