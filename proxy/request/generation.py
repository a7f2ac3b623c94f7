"""A `GenerationRequest` is a body that every leg made from it can carry: what we change obeys vLLM's rules first.

Fields that the prefill leg replaces (lengths, `n`, streaming) would otherwise be judged by the decode engine
alone, after prefilled blocks already wait for it.
"""

import enum
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from kvevents import REPORT_SESSION
from proxy.errors import BadRequestError, cut
from proxy.request.body import MAX_SCALAR_BYTES, Body
from proxy.request.json_pieces import lists_of_numbers
from proxy.request.outline import MAX_VALUES, Outline


class Route(enum.StrEnum):
    """The generating endpoints; the value is the metric label."""

    COMPLETIONS = "completions"
    CHAT = "chat_completions"

    @property
    def path(self) -> str:
        """The HTTP path, on kvproxy and on engines alike."""
        return "/v1/completions" if self is Route.COMPLETIONS else "/v1/chat/completions"


class PromptShape(enum.StrEnum):
    """What a request's prompt is given as."""

    CHAT = "messages"
    TEXT = "text"
    IDS = "token ids"
    TEXTS = "list of texts"
    ID_LISTS = "list of token id lists"
    ODD = "odd list"
    """Neither all texts nor all lists of token ids. An engine refuses nearly every one of these, but `["1", 2]` it
    reads as one prompt of two token ids, and `[[1], ["2"]]` as two prompts."""
    OTHER = "other"


NEVER_FROM_A_CLIENT = ("kv_transfer_params", "ec_transfer_params", "request_id")
"""Members that let a client crash a decode engine, read another prompt's KV, or pair with another's request."""

NEVER_AS_AN_XARG = frozenset({*NEVER_FROM_A_CLIENT, "kv_cache_report_mode"})
"""vLLM takes `vllm_xargs` as its own extra arguments, so the same names work from there; a full cache report
would tell of blocks a second time."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One client request, checked and cleaned."""

    route: Route
    body: Body
    """The client's own members, without those no client may set."""
    model: str
    stream: bool
    prompt_shape: "PromptShape"
    prompt_count: int
    """How many prompts it holds; more than one only as a list of a completion."""
    sequences: int
    """How many answers to the prompt are asked for (`n`)."""
    whole: bool
    """Splitting it into a prefill and a decode leg would gain nothing or lose KV; one instance serves it all."""

    def with_member(self, name: str, value: Any) -> "GenerationRequest":
        """The same request with another value of a member."""
        return msgspec.structs.replace(self, body=self.body.changed({name: value}))

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        """The member that limits the length of the answer, and how; None if none does."""
        chat = self.route is Route.CHAT
        for name in ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",):
            if (tokens := _whole_number(self.body, name, nullable=True)) is not None:
                return name, tokens
        return None

    @property
    def usual_answer_tokens(self) -> int:
        """How long an answer without a limit may become; a chat's has any room, however small."""
        return 1 if self.route is Route.CHAT else COMPLETION_MAX_TOKENS

    @property
    def estimated_tokens(self) -> int:
        """A length in tokens for load counting when no tokenizer was asked: four bytes a token."""
        return max(1, self.body.size_bytes // 4)


MAX_MESSAGES = 1 << 14
"""Of one chat. OpenAI takes 2048; a context of a million tokens holds some 100 000 of the shortest."""
MAX_TOOLS = 4096
"""Of one chat; OpenAI takes 128."""
MAX_XARGS_BYTES = 256 << 10
"""Of `vllm_xargs`, whose members are looked through."""

_SCALARS = (
    "model",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "priority",
    "session_id",
    "cache_salt",
    "echo",
    "use_beam_search",
    "reasoning_effort",
)
"""Members that kvproxy reads itself and that are numbers or short texts."""


def read_request(
    route: Route | None, data: bytes | bytearray, default_model: str, found: Outline | None = None
) -> GenerationRequest:
    """The request in `data`, the bytes of an HTTP body; its members tell the route where None is given.

    `found`: what a large one is made of. Raises BadRequestError.
    """
    body = Body.parse(bytes(data)) if found is None else Body.of_outline(data, found)
    _check_sizes(body)
    body = _clean(body)
    if route is None:
        if ("messages" in body) == ("prompt" in body):
            raise BadRequestError("either messages (a chat) or prompt (a completion) is needed")
        route = Route.CHAT if "messages" in body else Route.COMPLETIONS
    model = body.value("model")
    if model is None:
        model = default_model
    if not isinstance(model, str):
        raise BadRequestError("model must be a string", param="model")
    stream, sequences = _check_rules(route, body)
    shape, count = _prompt_shape(route, body)
    whole = _is_whole(route, body) or shape is PromptShape.ODD
    return GenerationRequest(route, body, model, stream, shape, count, sequences, whole)


def _check_sizes(body: Body) -> None:
    """Raises BadRequestError for what has more, or longer, parts than any request."""
    if body.size_bytes <= MAX_SCALAR_BYTES and not body.is_counted:
        return
    limits = dict.fromkeys(_SCALARS, MAX_SCALAR_BYTES) | {"vllm_xargs": MAX_XARGS_BYTES}
    for name, most_bytes in limits.items():
        view = body.view(name)
        if view is not None and len(view) > most_bytes:
            raise BadRequestError(f"{name} is longer than {most_bytes} bytes", param=name)
    for name, most in (("messages", MAX_MESSAGES), ("tools", MAX_TOOLS)):
        if (count := body.items_in(name)) > most:
            raise BadRequestError(f"{name} has {count} items: at most {most} are taken", param=name)
    for name in body.names():
        if name != "prompt" and (count := body.values_in(name)) > MAX_VALUES:
            raise BadRequestError(f"{cut(name)} has more than {MAX_VALUES} values", param=cut(name))


def _read_xargs(body: Body) -> dict[str, msgspec.Raw]:
    """The members of `vllm_xargs`; none if it is no object, which is for engines to judge."""
    if "vllm_xargs" not in body:
        return {}
    try:
        return _decode_xargs(body.view("vllm_xargs") or b"null") or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _is_text(raw: msgspec.Raw | None, text: str) -> bool:
    """Whether a value is a text, however it is written; escaped, one character takes six bytes."""
    view = memoryview(raw or b"")
    return (
        len(view) <= 8 * len(text) + 2 and bytes(view[:1]) == b'"' and bool(msgspec.json.decode(view) == text)
    )


_decode_xargs = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


def _clean(body: Body) -> Body:
    drop = [name for name in NEVER_FROM_A_CLIENT if name in body]
    if "session_id" in body and body.value("session_id") == REPORT_SESSION:
        drop.append("session_id")  # it marks reports that we asked for, and nothing else
    put = {}
    xargs = _read_xargs(body)
    if xargs:
        never = NEVER_AS_AN_XARG & xargs.keys()
        if _is_text(xargs.get("session_id"), REPORT_SESSION):
            never |= {"session_id"}
        if never:
            put["vllm_xargs"] = {name: value for name, value in xargs.items() if name not in never}
    return body.changed(put, drop) if drop or put else body


def _check_rules(route: Route, body: Body) -> tuple[bool, int]:
    """Apply vLLM's rules to the members the prefill leg replaces.

    Returns whether the answer is streamed, and how many sequences are asked for.
    """
    chat = route is Route.CHAT
    n = _whole_number(body, "n", nullable=chat)
    if n is not None and n < 1:
        raise BadRequestError(f"n must be at least 1, got {n}", param="n")
    max_tokens = _whole_number(body, "max_tokens", nullable=True)
    if chat:
        newer = _whole_number(body, "max_completion_tokens", nullable=True)
        max_tokens = newer if newer is not None else max_tokens
    if max_tokens is not None and max_tokens < 1:
        raise BadRequestError(f"max_tokens must be at least 1, got {max_tokens}", param="max_tokens")
    min_tokens = _whole_number(body, "min_tokens", nullable=False)
    if min_tokens is not None:
        if min_tokens < 0:
            raise BadRequestError(
                f"min_tokens must be greater than or equal to 0, got {min_tokens}", param="min_tokens"
            )
        limit = max_tokens if chat or "max_tokens" in body else COMPLETION_MAX_TOKENS
        if limit is not None and min_tokens > limit:
            raise BadRequestError(
                f"min_tokens must be less than or equal to max_tokens={limit}, got {min_tokens}",
                param="min_tokens",
            )
    stream = truth(body.value("stream"), "stream")
    options = body.value("stream_options")
    if options is not None:
        if not isinstance(options, dict):
            raise BadRequestError("stream_options must be an object", param="stream_options")
        for name in ("include_usage", "continuous_usage_stats"):
            truth(options.get(name), f"stream_options.{name}")
        if not stream:
            raise BadRequestError(
                "stream_options can only be given when stream is true", param="stream_options"
            )
    return stream, n if n is not None else 1


COMPLETION_MAX_TOKENS = 16
"""What an absent `max_tokens` of a completion means; of a chat it means as many as fit."""


_INTEGER = re.compile(r"\s*[+-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?\s*")
_MAX_DIGITS = 4300
_FLOATS_BELOW = 2.0**63
"""Pydantic takes no integer from a larger float, for it knows no digits of one."""


def _whole_number(body: Body, name: str, *, nullable: bool) -> int | None:
    """An integer member as pydantic reads one: numbers without a fraction, digits in a string, booleans."""
    if name not in body:
        return None
    value = body.value(name)
    if value is None and nullable:
        return None
    number = as_whole_number(value)
    if number is None:
        raise BadRequestError(f"{name} must be an integer", param=name)
    return number


def as_whole_number(value: Any) -> int | None:
    """What pydantic makes an integer of; None for what it refuses."""
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value):
        value = int(value.partition(".")[0])
    if isinstance(value, float) and abs(value) < _FLOATS_BELOW and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) else None


_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


def truth(value: Any, name: str) -> bool:
    """A boolean as pydantic reads one; null is false. Raises BadRequestError naming the member."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, float) and value in {0.0, 1.0}:
        return bool(value)
    text = str(value).lower() if isinstance(value, (str, int)) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise BadRequestError(f"{name} must be a boolean", param=name)


def _prompt_shape(route: Route, body: Body) -> tuple[PromptShape, int]:
    """What the prompt is given as and how many it holds; whether its values are right is for the engine to say."""
    if route is Route.CHAT:
        return PromptShape.CHAT, 1
    view = body.view("prompt") or memoryview(b"")
    first = bytes(view[:1])
    if first != b"[":
        return PromptShape.TEXT if first == b'"' else PromptShape.OTHER, 1
    shape = _SHAPES_OF_LISTS.get(bytes(view[1 : 1 + _BLANK_BYTES]).lstrip()[:1])
    if shape is None:
        return PromptShape.IDS, 1
    prompts = body.raw_items("prompt")
    if len(prompts) > 1 and not _all_are(shape, prompts):
        return PromptShape.ODD, 1
    return shape, len(prompts)


_BLANK_BYTES = 1024
"""So much white space may stand before the first prompt of a list; behind more they are taken for token ids, and refused."""

_SHAPES_OF_LISTS = {b'"': PromptShape.TEXTS, b"[": PromptShape.ID_LISTS}
_decode_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0)]]).decode


def _all_are(shape: PromptShape, prompts: Sequence[msgspec.Raw]) -> bool:
    if shape is PromptShape.TEXTS:
        return all(memoryview(prompt)[0] == ord('"') for prompt in prompts)
    try:
        for prompt in prompts:
            for ids in lists_of_numbers(memoryview(prompt)):
                _decode_ids(ids)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _is_whole(route: Route, body: Body) -> bool:
    """Whether one instance had better serve it all.

    Beam search and prompt embeddings make several sequences of which one would be handed over. Log
    probabilities of the prompt make the decode engine compute all of it again.
    """
    given = any(body.gives(name) for name in ("prompt_embeds", "prompt_logprobs"))
    echoed = route is Route.COMPLETIONS and bool(body.value("echo")) and body.gives("logprobs")
    return given or echoed or bool(body.value("use_beam_search"))
