"""A prompt counts as known only if every member of the request is known to shape it, or known not to."""

import msgspec

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


class Given(msgspec.Struct, frozen=True):
    """The client sent token ids: nothing to tokenize."""

    token_ids: list[int]
    kind: str


class Ask(msgspec.Struct, frozen=True):
    """An engine's /tokenize can tell."""

    body: bytes
    kind: str


class Unknowable(msgspec.Struct, frozen=True):
    """The prompt's tokens cannot be told for sure; `why` is one of a few words, fit for a metric label."""

    why: str
    kind: str = ""


class _Part(msgspec.Struct):
    type: str


class _Message(msgspec.Struct):
    content: str | list[str | _Part] | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode
_decode_token_lists = msgspec.json.Decoder(list[list[int]]).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode


def what_to_tokenize(request: GenerationRequest) -> Given | Ask | Unknowable:
    """How the token ids of a request's prompt can be had.

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
    if shaping - asked:
        return Unknowable("field", kind)
    if request.prompt_count != 1:
        return Unknowable("prompt list", kind)
    try:
        if not chat:
            return _completion(request, shaping, kind)
        for message in _decode_messages(body.raw("messages") or b"null"):
            if isinstance(message.content, list) and any(
                not isinstance(part, str) and part.type != "text" for part in message.content
            ):
                return Unknowable("content part", kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unknowable("malformed", kind)
    return Ask(_question(request, shaping), kind)


def _question(request: GenerationRequest, shaping: set[str], prompt: str | None = None) -> bytes:
    members = {
        name: msgspec.Raw(raw) for name in sorted(shaping) if (raw := request.body.raw(name)) is not None
    }
    put = {"model": request.model} | ({} if prompt is None else {"prompt": prompt})
    return msgspec.json.encode(members | put)


def _completion(request: GenerationRequest, shaping: set[str], kind: str) -> Given | Ask | Unknowable:
    raw = request.body.raw("prompt") or b"null"
    match request.prompt_shape:
        case PromptShape.TEXT:
            return Ask(_question(request, shaping), kind)
        case PromptShape.TEXTS:
            (text,) = _decode_texts(raw)
            return Ask(_question(request, shaping, text), kind)
        case PromptShape.IDS:
            token_ids = _decode_tokens(raw)
        case PromptShape.ID_LISTS:
            (token_ids,) = _decode_token_lists(raw)
        case _:
            return Unknowable("malformed", kind)
    if any(not 0 <= token <= _MAX_TOKEN_ID for token in token_ids):
        return Unknowable("malformed", kind)
    return Given(token_ids, f"{kind} as token ids")
