"""A prompt counts as known only if every member of the request is known to shape it, or known not to."""

import math
from typing import Annotated, Any, Literal

import msgspec

from proxy.body import Body
from proxy.errors import BadRequestError
from proxy.generation import GenerationRequest, PromptShape, Route

# Members that change the prompt's tokens and that an engine's /tokenize takes, word for word.
_ASKED_CHAT = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
    }
)
_ASKED_COMPLETION = frozenset({"prompt", "add_special_tokens"})

# Members of a chat that vLLM gives to the template as variables; in /tokenize's words they are that.
_VARIABLES = frozenset({"documents", "reasoning_effort"})

# Members that shorten the prompt after it was tokenized. /tokenize knows nothing of them.
_TRUNCATING = frozenset({"truncate_prompt_tokens", "truncation_side"})

# Members that shape what is generated, how it is reported or who asked, never the prompt. vLLM ignores the
# last rows altogether; OpenAI clients send them.
_NEUTRAL = frozenset(
    """
    model stream stream_options max_tokens max_completion_tokens min_tokens n best_of temperature top_p top_k min_p
    seed stop stop_token_ids include_stop_str_in_output ignore_eos presence_penalty frequency_penalty
    repetition_penalty length_penalty logit_bias logprobs top_logprobs prompt_logprobs logprob_token_ids
    allowed_token_ids bad_words response_format structured_outputs parallel_tool_calls skip_special_tokens
    spaces_between_special_tokens echo priority session_id return_tokens_as_token_ids return_token_ids
    return_token_offsets include_reasoning thinking_token_budget repetition_detection stream_interval watermarking
    vllm_xargs cache_salt use_beam_search
    user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention
    """.split()  # noqa: SIM905  # a list of these is a page long
)

_MAX_TOKEN_ID = 2**32 - 1


class Truncation(msgspec.Struct, frozen=True):
    """How a prompt that is too long is shortened."""

    tokens: int
    """How many stay."""
    side: str | None
    """Where others are cut off; None for the tokenizer's own choice, which counts special tokens apart."""


class Given(msgspec.Struct, frozen=True):
    """The client sent token ids: nothing to tokenize."""

    token_ids: list[int]
    kind: str
    truncation: Truncation | None = None


class Ask(msgspec.Struct, frozen=True):
    """An engine's /tokenize can tell, and so can its tokenizer in this process."""

    body: bytes
    kind: str
    needs: frozenset[str] = frozenset()
    """What the tokenizer in this process must agree with engines about: names of `parity.QUESTIONS`."""
    truncation: Truncation | None = None


class Unknowable(msgspec.Struct, frozen=True):
    """The prompt's tokens cannot be told for sure; `why` is one of a few words, fit for a metric label."""

    why: str
    kind: str = ""


class _Part(msgspec.Struct):
    type: str


class _Message(msgspec.Struct):
    content: str | list[str | _Part] | None = None


_decode_length = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1)]).decode
_decode_side = msgspec.json.Decoder(Literal["left", "right"] | None).decode
_decode_variables = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode
_decode_token_lists = msgspec.json.Decoder(list[list[int]]).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode


def what_to_tokenize(request: GenerationRequest, longest: float = math.inf) -> Given | Ask | Unknowable:
    """How the token ids of a request's prompt can be had.

    `longest`: in tokens; a longer list of token ids is not read, unless it is to be shortened.

    `kind` names the members that shape the prompt: requests of one kind are rendered the same way, so one that
    turns out to be counted wrongly speaks for all of its kind.
    """
    body = request.body
    chat = request.route is Route.CHAT
    asked = _ASKED_CHAT if chat else _ASKED_COMPLETION
    shaping = {name for name in body.names() if name not in _NEUTRAL and body.raw(name) != b"null"}
    if body.raw("tool_choice") == b'"auto"':  # what an absent one means
        shaping.discard("tool_choice")
    kind = f"{request.route}({','.join(sorted(shaping))})"
    if shaping - asked - _TRUNCATING - (_VARIABLES if chat else frozenset()):
        return Unknowable("field", kind)
    if request.prompt_count != 1:
        return Unknowable("prompt list", kind)
    try:
        truncation = _truncation(body, shaping)
        if not chat:
            return _completion(request, shaping, kind, truncation, longest)
        for message in _decode_messages(body.raw("messages") or b"null"):
            if isinstance(message.content, list) and any(
                not isinstance(part, str) and part.type != "text" for part in message.content
            ):
                return Unknowable("content part", kind)
        question = _question(request, shaping, _template_variables(body, shaping))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequestError):
        return Unknowable("malformed", kind)
    return Ask(question, kind, _needs(body, shaping), truncation)


def _truncation(body: Body, shaping: set[str]) -> Truncation | None:
    """Raises msgspec.DecodeError for what an engine refuses, or where the length depends on the leg."""
    if "truncate_prompt_tokens" not in shaping:
        return None  # a side alone does nothing
    tokens = _decode_length(body.raw("truncate_prompt_tokens") or b"")
    return Truncation(tokens, _decode_side(body.raw("truncation_side") or b"null"))


def _template_variables(body: Body, shaping: set[str]) -> dict[str, Any]:
    """`chat_template_kwargs` with the members that vLLM puts there."""
    if not shaping & _VARIABLES:
        return {}
    variables: dict[str, Any] = _decode_variables(body.raw("chat_template_kwargs") or b"null") or {}
    members = {name: msgspec.Raw(body.raw(name) or b"null") for name in shaping & _VARIABLES}
    if "reasoning_effort" in members and "enable_thinking" not in variables:
        members["enable_thinking"] = msgspec.Raw(
            b"true" if body.value("reasoning_effort") != "none" else b"false"
        )
    return {"chat_template_kwargs": variables | members}


def _needs(body: Body, shaping: set[str]) -> frozenset[str]:
    messages = body.raw("messages") or b""
    needs = {"chat"} | (shaping & {*_VARIABLES, "tools", "chat_template_kwargs", "continue_final_message"})
    if b'"tool' in messages:  # a tool's message, or calls of tools
        needs.add("tools")
    return frozenset(needs | {what for mark, what in _MARKS.items() if mark in messages})


_MARKS = {b'"developer"': "developer", b'"reasoning': "reasoning"}


def _question(request: GenerationRequest, shaping: set[str], put: dict[str, Any]) -> bytes:
    """What to ask an engine's /tokenize."""
    members: dict[str, Any] = {
        name: msgspec.Raw(raw)
        for name in sorted(shaping - _TRUNCATING - _VARIABLES)
        if (raw := request.body.raw(name)) is not None
    }
    if b'"reasoning_content"' in (request.body.raw("messages") or b""):
        members["messages"] = _renamed_reasoning(request.body.value("messages"))
    return msgspec.json.encode(members | put | {"model": request.model})


def _renamed_reasoning(messages: list[Any]) -> list[Any]:
    """As chats are read: /tokenize does not know the older name."""
    renamed = []
    for message in messages:
        if isinstance(message, dict) and (older := message.pop("reasoning_content", None)) is not None:
            message["reasoning"] = older if message.get("reasoning") is None else message["reasoning"]
        renamed.append(message)
    return renamed


def _completion(
    request: GenerationRequest, shaping: set[str], kind: str, truncation: Truncation | None, longest: float
) -> Given | Ask | Unknowable:
    raw = request.body.raw("prompt") or b"null"
    given = request.prompt_shape in {PromptShape.IDS, PromptShape.ID_LISTS}
    if given and truncation is None and raw.count(b",") >= longest:
        return Unknowable("too long", kind)  # a million numbers hold the loop for a tenth of a second
    needs = frozenset({"completion"})
    match request.prompt_shape:
        case PromptShape.TEXT:
            return Ask(_question(request, shaping, {}), kind, needs, truncation)
        case PromptShape.TEXTS:
            (text,) = _decode_texts(raw)
            return Ask(_question(request, shaping, {"prompt": text}), kind, needs, truncation)
        case PromptShape.IDS:
            token_ids = _decode_tokens(raw)
        case PromptShape.ID_LISTS:
            (token_ids,) = _decode_token_lists(raw)
        case _:
            return Unknowable("malformed", kind)
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) <= _MAX_TOKEN_ID):
        return Unknowable("malformed", kind)
    return Given(token_ids, f"{kind} as token ids", truncation)
