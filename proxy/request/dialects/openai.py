"""Completions and chats share vLLM's sampling members, their rules, and answers made of choices."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from proxy.errors import BadRequestError
from proxy.request.body import Body
from proxy.request.dialects import choices
from proxy.request.dialects.base import Dialect, Failure, Shape, Usage
from proxy.request.like_pydantic import as_whole_number, truth, whole_number


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: Any = None  # nothing depends on it, so a wrong value makes no answer unreadable
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    metrics: Any = None  # as completion_tokens


_decode_answer = msgspec.json.Decoder(_Answer).decode


_LENGTHS = frozenset({"max_tokens", "max_completion_tokens", "min_tokens"})
_STREAMED = frozenset({"stream", "stream_options"})
_WHOLE = frozenset({"prompt_embeds", "prompt_logprobs", "use_beam_search"})
_READ = _LENGTHS | _STREAMED | _WHOLE | {"n"}
"""The members that decide how a request is served; most requests have few of them."""

_PLAIN = Shape(stream=False)
"""That of a request with none of them."""

_ONE_TOKEN = {"stream": msgspec.Raw(b"false"), "max_tokens": msgspec.Raw(b"1"), "n": msgspec.Raw(b"1")}
_MORE_TOKENS = ("stream_options", "max_completion_tokens", "min_tokens")


class OpenAiDialect(Dialect):
    """What completions and chats have in common."""

    answer_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/Generated"}
    ending = "`data: [DONE]`"
    limits: ClassVar[tuple[str, ...]]
    """The members that limit the answer; the first one that is given counts."""
    null_n_is_one: ClassVar[bool]
    """Whether `n` may be null."""

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        given = body.names()
        if _READ.isdisjoint(given):
            return _PLAIN
        n = whole_number(body, "n", nullable=self.null_n_is_one) if "n" in given else None
        if n is not None and n < 1:
            raise BadRequestError(f"n must be at least 1, got {n}", param="n")
        if not _LENGTHS.isdisjoint(given):
            self._check_lengths(body)
        return Shape(
            stream=not _STREAMED.isdisjoint(given) and _is_streamed(body),
            sequences=1 if n is None else n,
            whole=not _WHOLE.isdisjoint(given) and _is_whole(body),
        )

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        return self, body

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        given = body.names()
        for name in self.limits:
            if name in given and (tokens := whole_number(body, name, nullable=True)) is not None:
                return name, tokens
        return None

    def may_be_empty(self, body: Body) -> bool:  # noqa: ARG002  # a chat may not
        """Whether the engine takes a request for 0 tokens."""
        return False

    def _check_lengths(self, body: Body) -> None:
        given = body.names()
        max_tokens = None
        for name in reversed(self.limits):  # of several the first counts
            if name in given and (tokens := whole_number(body, name, nullable=True)) is not None:
                max_tokens = tokens
        if max_tokens == 0 and self.may_be_empty(body):
            max_tokens = 1  # as the engine counts it
        if max_tokens is not None and max_tokens < 1:
            raise BadRequestError(f"max_tokens must be at least 1, got {max_tokens}", param="max_tokens")
        min_tokens = whole_number(body, "min_tokens", nullable=False) if "min_tokens" in given else None
        if min_tokens is None:
            return
        if min_tokens < 0:
            raise BadRequestError(
                f"min_tokens must be greater than or equal to 0, got {min_tokens}", param="min_tokens"
            )
        is_given = any(name in given for name in self.limits)
        limit = max_tokens if is_given else self.default_answer_tokens
        if limit is not None and min_tokens > limit:
            raise BadRequestError(
                f"min_tokens must be less than or equal to max_tokens={limit}, got {min_tokens}",
                param="min_tokens",
            )

    def least_answer_tokens(self, body: Body) -> int:
        """As `Dialect`."""
        return as_whole_number(_value(body, "min_tokens")) or 0 if "min_tokens" in body else 0

    def may_end_early(self, body: Body) -> bool:
        """As `Dialect`."""
        if "ignore_eos" not in body:
            return True
        try:
            return not truth(_value(body, "ignore_eos"), "ignore_eos")
        except BadRequestError:
            return True

    def computed_sequences(self, body: Body) -> int:
        """As `Dialect`."""
        return as_whole_number(_value(body, "best_of")) or 1 if "best_of" in body else 1

    def first_token_only(self, body: Body) -> Body:
        """As `Dialect`."""
        return body.changed(_ONE_TOKEN, drop=_MORE_TOKENS)

    def usage(self, answer: bytes) -> Usage:
        """As `Dialect`."""
        try:
            read = _decode_answer(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"the answer cannot be read: {error}") from None
        usage = read.usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
        if min(usage.prompt_tokens or 0, details.cached_tokens or 0) < 0:
            raise ValueError("the answer counts fewer than 0 tokens")
        generated = usage.completion_tokens if isinstance(usage.completion_tokens, int) else None
        return Usage(
            usage.prompt_tokens, details.cached_tokens, generated, choices.first_token_ms(read.metrics)
        )

    def produces(self, data: bytes) -> bool:
        """As `Dialect`."""
        return choices.has_produced(data)

    def ends(self, data: bytes) -> bool:
        """As `Dialect`."""
        return data == choices.DONE

    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        """As `Dialect`."""
        return choices.failure_in(data, event)

    def wants_judging(self, run: bytes) -> bool:
        """As `Dialect`."""
        return choices.ERROR in run or choices.DONE in run or choices.ABORT in run


def _value(body: Body, name: str) -> Any:
    """A member's value; None for a value that engines refuse or ignore."""
    try:
        return body.value(name)
    except BadRequestError:
        return None


def _is_whole(body: Body) -> bool:
    """Whether one instance has to serve a request.

    Beam search and prompt embeddings make several sequences, of which one would be handed over. Log
    probabilities of the prompt make the decode engine compute all of it again.
    """
    given = any(body.gives(name) for name in ("prompt_embeds", "prompt_logprobs"))
    return given or bool(body.value("use_beam_search"))


def _is_streamed(body: Body) -> bool:
    stream = truth(body.value("stream"), "stream")
    options = body.value("stream_options")
    if options is None:
        return stream
    if not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", param="stream_options")
    for name in ("include_usage", "continuous_usage_stats"):
        truth(options.get(name), f"stream_options.{name}")
    if not stream:
        raise BadRequestError("stream_options can only be given when stream is true", param="stream_options")
    return stream
