"""`/v1/messages`: a conversation in Anthropic's words, which vLLM turns into a chat and answers as one."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from proxy.errors import BadRequestError, EngineFailedError, RequestError, UnauthorizedError
from proxy.request.body import Body
from proxy.request.dialects.base import Dialect, Failure, Shape, Usage
from proxy.request.dialects.chat import MAX_MESSAGES, MAX_TOOLS, Chat
from proxy.request.dialects.messages_as_chats import as_chat
from proxy.request.like_pydantic import truth, whole_number
from proxy.request.sse import event_of, events, with_data

MAX_JUDGED_BYTES = 4 << 20
"""The most bytes of an answer that are read for a failure."""

MIN_BUDGET_TOKENS = 1024
"""The least budget of thinking that vLLM takes."""

_DELTA = b'"message_delta"'
_MARKS = re.compile(rb'"(?:message_(?:stop|delta)|error)"')
"""The types of events that end a stream, or may say that it failed. No text has them: its quotes are
escaped."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's types of errors (https://docs.anthropic.com/en/api/errors) by the status of ours; others are an
`invalid_request_error` below 500 and an `api_error` from there on."""

_STATUSES = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "NotImplementedError": 501,
    "overloaded_error": 503,
    "Service Unavailable": 503,
    "timeout_error": 504,
}
"""The statuses that types of errors mean in a stream; some are vLLM's own. Others, as its `internal_error`,
are a 500."""


class _Told(msgspec.Struct):
    type: Any = None
    message: Any = None


class _Counted(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: Any = None  # nothing depends on it, so a wrong value makes no answer unreadable
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Delta(msgspec.Struct):
    stop_reason: Any = None


class _Event(msgspec.Struct):
    """An event, or a whole answer."""

    type: Any = None
    error: Any = None
    delta: Any = None
    stop_reason: Any = None


class _Answer(msgspec.Struct):
    usage: _Counted | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_FIRST_TOKEN = {"stream": msgspec.Raw(b"false"), "max_tokens": msgspec.Raw(b"1")}


class Messages(Dialect):
    """The dialect of Anthropic's clients.

    A request that an engine would refuse for what a prefill leg replaces is served whole: the engine refuses
    it in its own words then.
    """

    name = "messages"
    path = "/v1/messages"
    noun = "messages"
    summary = "Answer a conversation in Anthropic's words"
    request_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/MessagesRequest"}
    answer_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/Message"}
    error_schema: ClassVar[Mapping[str, Any] | None] = {"$ref": "#/components/schemas/MessagesError"}
    ending = "an event `message_stop`"
    default_answer_tokens = None
    recounts = True
    max_items: ClassVar[Mapping[str, int]] = {"messages": MAX_MESSAGES, "tools": MAX_TOOLS}

    def __init__(self, chat: Chat) -> None:
        """`chat`: the dialect of the chats that engines make of its requests."""
        self._chat = chat

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        try:
            stream = truth(body.value("stream"), "stream")
            limit = whole_number(body, "max_tokens", nullable=False)
            budget = _thinking_budget(body)
        except BadRequestError:
            return Shape(stream=False, whole=True)
        refused = limit is None or limit < 1 or (budget is not None and budget >= limit)
        return Shape(stream=stream and not refused, whole=refused)

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        try:
            limit = whole_number(body, "max_tokens", nullable=False)
        except BadRequestError:
            return None
        return None if limit is None or limit < 1 else ("max_tokens", limit)

    def first_token_only(self, body: Body) -> Body:
        """As `Dialect`. A budget of thinking says nothing of the first token and must be below the limit;
        one that engines refuse stays.
        """
        changed = dict(_FIRST_TOKEN)
        if (_thinking_budget(body) or 0) >= MIN_BUDGET_TOKENS:
            thinking = {
                name: value for name, value in body.value("thinking").items() if name != "budget_tokens"
            }
            changed["thinking"] = msgspec.Raw(msgspec.json.encode(thinking | {"type": "adaptive"}))
        return body.changed(changed)

    def usage(self, answer: bytes) -> Usage:
        """As `Dialect`. vLLM's `input_tokens` are those of the prompt that were not cached."""
        try:
            usage = _decode_answer(answer).usage or _Counted()
        except _UNREADABLE as error:
            raise ValueError(f"the answer cannot be read: {error}") from None
        cached, created = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        if min(usage.input_tokens or 0, cached or 0, created or 0) < 0:
            raise ValueError("the answer counts fewer than 0 tokens")
        prompt = usage.input_tokens
        if prompt is not None:
            prompt += (cached or 0) + (created or 0)
        generated = usage.output_tokens if isinstance(usage.output_tokens, int) else None
        return Usage(prompt, cached, generated, created_tokens=created)

    def recounted(self, told: bytes, prefill: Usage) -> bytes:
        """As `Dialect`."""
        if prefill.created_tokens is None:
            return told
        if told.startswith(b"{"):
            return _recounted(told, prefill.created_tokens)
        return b"".join(
            with_data(event, _recounted(data, prefill.created_tokens)) if _DELTA in data else event
            for event, data in events(told)
        )

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        chat = as_chat(body)
        return None if chat is None else (self._chat, chat)

    def produces(self, data: bytes) -> bool:
        """As `Dialect`. A stream begins with `message_start`, whether anything follows or not."""
        try:
            return _decode_event(data).type not in ("message_start", "ping")
        except _UNREADABLE:
            return True

    def ends(self, data: bytes) -> bool:
        """As `Dialect`."""
        if b'"message_stop"' not in data:
            return False
        try:
            return bool(_decode_event(data).type == "message_stop")
        except _UNREADABLE:
            return False

    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        """As `Dialect`. What an engine drops while its client is there ends without a reason to stop."""
        if len(data) > MAX_JUDGED_BYTES:
            return None
        try:
            told = _decode_event(data)
            if told.type == "error":
                error = msgspec.convert(told.error, _Told)
                return Failure(_STATUSES.get(str(error.type), 500), data, event)
            if told.type == "message_delta":
                told = msgspec.convert(told.delta, _Event)
            elif told.type != "message":
                return None
        except (*_UNREADABLE, msgspec.ValidationError):
            return None
        if told.stop_reason is not None:
            return None
        dropped = EngineFailedError("the engine gave this request up")
        dropped.status = 500
        body = msgspec.json.encode(self.error(dropped))
        return Failure(dropped.status, body, event and event + _named(body))

    def wants_judging(self, run: bytes) -> bool:
        """As `Dialect`."""
        return _MARKS.search(run) is not None

    def error(self, error: RequestError) -> dict[str, Any]:
        """As `Dialect`."""
        usual = "invalid_request_error" if error.status < 500 else "api_error"
        return {"type": "error", "error": {"type": _TYPES.get(error.status, usual), "message": str(error)}}

    def unauthorized(self) -> dict[str, Any]:
        """As `Dialect`."""
        return self.error(UnauthorizedError("Unauthorized"))

    def error_event(self, error: RequestError) -> bytes:
        """As `Dialect`."""
        return _named(msgspec.json.encode(self.error(error)))

    def late_answer(self, status: int, body: bytes) -> bytes:
        """As `Dialect`. Engines answer a body that they cannot read in the words of other routes."""
        error = EngineFailedError(f"the engine answered with status {status}")
        if status >= 400:
            error.status = status
        try:
            told = msgspec.json.decode(body)
            said = msgspec.convert(told["error"], _Told).message
            if told.get("type") == "error":
                return _named(msgspec.json.encode(told))
        except (*_UNREADABLE, msgspec.ValidationError, AttributeError, LookupError, TypeError):
            return self.error_event(error)
        answer = self.error(error)
        if isinstance(said, str):
            answer["error"]["message"] = said
        return _named(msgspec.json.encode(answer))


def _recounted(told: bytes, created: int) -> bytes:
    """An answer, or the data of an event, of whose prompt so many tokens are cached from now on."""
    try:
        members = _decode_members(told)
        usage = _decode_counts(members.get("usage", b"null"))
    except _UNREADABLE:
        return told
    before = usage.get("cache_creation_input_tokens")
    if before is None or (moved := created - before) == 0 or (uncached := usage.get("input_tokens")) is None:
        return told
    usage |= {"input_tokens": max(0, uncached - moved), "cache_creation_input_tokens": created}
    return msgspec.json.encode(members | {"usage": usage})


def _named(data: bytes) -> bytes:
    """The event of an error."""
    return event_of(data, "error")


def _thinking_budget(body: Body) -> int | None:
    """The tokens that the model may think for; None if nothing says so. Raises BadRequestError."""
    thinking = body.value("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") != "enabled":
        return None
    budget = {"budget_tokens": thinking.get("budget_tokens")}
    return whole_number(body.changed(budget), "budget_tokens", nullable=False)
