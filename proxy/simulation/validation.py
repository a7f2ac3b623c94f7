"""Invariant: what passes here runs to its end in the engine; what does not is refused as vLLM refuses it.

Two stages. `parse_*` looks at the body alone: its errors come before the engine knows of the request. A
`Checker` knows the model: its errors come after, so a decode engine releases the hold a request named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.simulation.chat import render
from proxy.simulation.errors import BadRequestError, NotFoundError
from proxy.simulation.request import Sampling
from proxy.simulation.schema import (
    any_of,
    boolean,
    check,
    integer,
    list_of,
    mapping,
    nullable,
    number,
    record,
    seed,
    string,
    values_of,
)
from proxy.simulation.text import mix
from proxy.simulation.tokenizer import Tokenizer

MAX_LOGPROBS = 20
MAX_N = 16384
_CERTAIN_BIAS = 50.0

_token_ids = list_of(integer(at_least=0))
_ARGUMENT = (string, integer(), number)
_COMMON = {
    "model": nullable(string),
    "n": integer(),
    "max_tokens": nullable(integer()),
    "min_tokens": integer(),
    "stream": nullable(boolean),
    "stream_options": nullable(
        record({"include_usage": nullable(boolean), "continuous_usage_stats": nullable(boolean)})
    ),
    "temperature": nullable(number),
    "top_p": nullable(number),
    "top_k": nullable(integer()),
    "min_p": nullable(number),
    "frequency_penalty": nullable(number),
    "presence_penalty": nullable(number),
    "repetition_penalty": nullable(number),
    "seed": nullable(seed),
    "stop": nullable(any_of(string, list_of(string))),
    "stop_token_ids": nullable(list_of(integer())),
    "allowed_token_ids": nullable(list_of(integer())),
    "logit_bias": nullable(mapping),
    "ignore_eos": boolean,
    "include_stop_str_in_output": boolean,
    "prompt_logprobs": nullable(integer()),
    "return_token_ids": nullable(boolean),
    "truncate_prompt_tokens": nullable(integer(at_least=-1)),
    "request_id": string,
    "cache_salt": nullable(string),
    "kv_transfer_params": nullable(mapping),
    "vllm_xargs": nullable(values_of(any_of(*_ARGUMENT, list_of(any_of(*_ARGUMENT))))),
}
_COMPLETION = record(
    {
        **_COMMON,
        "prompt": nullable(any_of(_token_ids, list_of(_token_ids), string, list_of(string))),
        "logprobs": nullable(integer()),
        "echo": nullable(boolean),
    }
)
_MESSAGE = record({"role": string}, required=("role",))
_CHAT = record(
    {
        **_COMMON,
        "messages": list_of(_MESSAGE),
        "n": nullable(integer()),
        "max_completion_tokens": nullable(integer()),
        "logprobs": nullable(boolean),
        "top_logprobs": nullable(integer()),
        "echo": boolean,
        "add_generation_prompt": boolean,
        "continue_final_message": boolean,
    },
    required=("messages",),
)
_TOKENIZE = record({"model": nullable(string), "prompt": string, "messages": list_of(_MESSAGE)})
_DETOKENIZE = record({"model": nullable(string), "tokens": _token_ids}, required=("tokens",))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be served: its prompts as tokens, and how to answer."""

    chat: bool
    body: Mapping[str, Any]
    model: str
    lora: str | None
    prompts: Sequence[Sequence[int]]
    sampling: Sequence[Sampling]
    """One for each prompt: the room left for output may differ."""
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    transfer: Mapping[str, Any] = field(default_factory=dict)

    def sampling_of(self, prompt: int, choice: int) -> Sampling:
        """Every further choice of a prompt says something else."""
        sampling = self.sampling[prompt]
        return replace(sampling, salt=mix(sampling.salt + choice)) if choice else sampling


def parse_completion(body: Any) -> dict[str, Any]:
    """The body of /v1/completions. BadRequestError without any effect on a hold."""
    if isinstance(body, dict):
        _before(body, top="logprobs")
        if body.get("prompt") is None or body["prompt"] == "":
            message = "Either prompt or prompt_embeds must be provided and non-empty."
            raise BadRequestError.of(message, "prompt")
    return check(body, _COMPLETION)


def parse_chat(body: Any) -> dict[str, Any]:
    """The body of /v1/chat/completions. BadRequestError without any effect on a hold."""
    if isinstance(body, dict):
        _before(body, top="top_logprobs")
        _before_chat(body)
    return check(body, _CHAT)


def parse_tokenize(body: Any) -> dict[str, Any]:
    """The body of /tokenize: a prompt or messages."""
    if isinstance(body, dict) and "prompt" not in body and "messages" not in body:
        return check(body, record({}, required=("prompt", "messages")))
    return check(body, _TOKENIZE)


def parse_detokenize(body: Any) -> dict[str, Any]:
    """The body of /detokenize."""
    return check(body, _DETOKENIZE)


def _before(body: Mapping[str, Any], top: str) -> None:
    """Checks vLLM makes on the raw body, before types are looked at."""
    if body.get("stream_options") and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`."
        raise BadRequestError.of(message, "stream_options")
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        message = "Parameter 'cache_salt' must be a non-empty string if provided."
        raise BadRequestError.of(message, "cache_salt")
    for name in ("prompt_logprobs", top):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise BadRequestError.of(f"`{name}` must be an integer.", name, value)
        if name == "prompt_logprobs" and body.get("stream") and (value > 0 or value == -1):
            raise BadRequestError.of("`prompt_logprobs` are not available when `stream=True`.", name)
        if value < 0 and value != -1:
            raise BadRequestError.of(f"`{name}` must be a positive value or -1.", name, value)
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema" and form.get("json_schema") is None:
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise BadRequestError.of(message, "response_format")


def _before_chat(body: Mapping[str, Any]) -> None:
    top = body.get("top_logprobs")
    if top and not body.get("logprobs"):
        message = "when using `top_logprobs`, `logprobs` must be set to true."
        raise BadRequestError.of(message, "top_logprobs")
    if body.get("tools") == []:
        message = (
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        )
        raise BadRequestError.of(message, "tools")
    choice = body.get("tool_choice")
    if choice is not None and choice != "none" and body.get("tools") is None:
        raise BadRequestError.of("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise BadRequestError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


class Checker:
    """Knows the model: names, lengths, the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, model: str, loras: Sequence[str], max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._loras = loras
        self._max_model_len = max_model_len

    def served(self, name: str | None) -> tuple[str, str | None]:
        """A model's name to answer with and the adapter it means. NotFoundError for any other name."""
        if not name or name == self._model:
            return self._model, None
        if name in self._loras:
            return name, name
        raise NotFoundError(f"The model `{name}` does not exist. Valid aliases: {self._model}.", "model")

    def chat_tokens(self, body: Mapping[str, Any]) -> list[int]:
        """The prompt of a conversation as tokens."""
        continued = bool(body.get("continue_final_message"))
        generation_prompt = body.get("add_generation_prompt", True)
        if continued and generation_prompt:
            raise BadRequestError(
                "continue_final_message and add_generation_prompt are not compatible. Use "
                "continue_final_message when you want the model to continue the final message, and "
                "add_generation_prompt when you want to add a header that will prompt it to start a new "
                "assistant message instead."
            )
        try:
            text = render(
                body["messages"],
                _tools(body.get("tools")),
                generation_prompt=generation_prompt,
                continue_final=continued,
            )
        except BadRequestError as error:
            raise BadRequestError(error.message.replace("{model}", self._model)) from None
        return self._tokenizer.encode(text)

    def completion(self, body: Mapping[str, Any]) -> Asked:
        """A completion request that can be served. BadRequestError or NotFoundError if it cannot."""
        if body.get("stream") and body.get("use_beam_search"):
            raise BadRequestError("Streaming is not currently supported with beam search")
        model, lora = self.served(body.get("model"))
        if body.get("suffix"):
            raise BadRequestError(
                "suffix is only supported for models with FIM completion rendering", "suffix"
            )
        asked = body.get("max_tokens")
        self._check_room(asked, "max_tokens")
        prompts = [self._fitted(p, body) for p in self._prompts(body["prompt"])]
        limit = 16 if asked is None else asked
        if body.get("echo") and limit == 0:
            limit = 1
        logprobs = body.get("logprobs")
        prompt_logprobs = body.get("prompt_logprobs")
        if prompt_logprobs is None and body.get("echo"):
            prompt_logprobs = logprobs
        return self._asked(body, model, lora, prompts, limit, logprobs, prompt_logprobs, chat=False)

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """A chat request that can be served. BadRequestError or NotFoundError if it cannot."""
        if body.get("stream") and body.get("use_beam_search"):
            raise BadRequestError("Streaming is not currently supported with beam search")
        model, lora = self.served(body.get("model"))
        if body.get("tools") and body.get("tool_choice", "auto") == "auto":
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise BadRequestError(message)
        name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
        limit = body.get(name)
        self._check_room(limit, name)
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        prompt = self._fitted(self.chat_tokens(body) if given is None else list(given), body)
        logprobs = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        return self._asked(
            body, model, lora, [prompt], limit, logprobs, body.get("prompt_logprobs"), chat=True
        )

    def _prompts(self, prompt: Any) -> list[list[int]]:
        if isinstance(prompt, str):
            return [self._tokenizer.encode(prompt)]
        if not prompt:
            raise BadRequestError("You must pass at least one prompt")
        if isinstance(prompt[0], int):
            return [prompt]
        return [self._tokenizer.encode(p) if isinstance(p, str) else p for p in prompt]

    def _fitted(self, tokens: list[int], body: Mapping[str, Any]) -> list[int]:
        keep = body.get("truncate_prompt_tokens")
        if keep is not None:
            keep = self._max_model_len if keep == -1 else keep
            tokens = tokens[-keep:] if keep else []
        if not tokens:
            raise BadRequestError("The decoder prompt cannot be empty")
        if len(tokens) > self._max_model_len:
            raise BadRequestError.of(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
                f"contains {len(tokens)} input tokens, which exceeds this limit even without any output "
                "tokens. Please reduce the length of the input prompt.",
                "input_tokens",
                len(tokens),
            )
        if (largest := max(tokens)) >= len(self._tokenizer):
            raise BadRequestError(f"Token id {largest} is out of vocabulary")
        return tokens

    def _check_room(self, limit: int | None, name: str) -> None:
        if limit is not None and limit > self._max_model_len:
            raise BadRequestError.of(
                f"{name}={limit} cannot be greater than max_model_len={self._max_model_len}. "
                "Please request fewer output tokens.",
                name,
                limit,
            )

    def _asked(
        self,
        body: Mapping[str, Any],
        model: str,
        lora: str | None,
        prompts: Sequence[list[int]],
        limit: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        *,
        chat: bool,
    ) -> Asked:
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        n = 1 if body.get("n") is None else body["n"]
        sampling = [self._sampling(body, self._max_model_len - len(p), limit) for p in prompts]
        _check_sampling(body, stop, n, logprobs)
        return Asked(
            chat=chat,
            body=body,
            model=model,
            lora=lora,
            prompts=prompts,
            sampling=sampling,
            n=n,
            stop=stop,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            transfer=body.get("kv_transfer_params") or {},
        )

    def _sampling(self, body: Mapping[str, Any], room: int, limit: int | None) -> Sampling:
        max_tokens = room if limit is None else min(room, limit)
        if max_tokens < 1:
            raise BadRequestError.of(
                f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens
            )
        min_tokens = body.get("min_tokens") or 0
        if min_tokens < 0:
            raise BadRequestError(f"min_tokens must be greater than or equal to 0, got {min_tokens}.")
        if min_tokens > max_tokens:
            raise BadRequestError(
                f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
            )
        seed_value = body.get("seed")
        warm = body.get("temperature") != 0
        certain = [int(t) for t, bias in (body.get("logit_bias") or {}).items() if bias >= _CERTAIN_BIAS]
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=bool(body.get("ignore_eos")),
            stop_token_ids=tuple(body.get("stop_token_ids") or ()),
            allowed_token_ids=tuple(body.get("allowed_token_ids") or ()),
            favourite=certain[0] if certain else None,
            salt=mix(seed_value + 1) if warm and seed_value is not None else 0,
        )


def _check_sampling(body: Mapping[str, Any], stop: Sequence[str], n: int, logprobs: int | None) -> None:
    """The rules of vLLM for sampling parameters, in its order and words."""
    if n < 1:
        raise BadRequestError(f"n must be at least 1, got {n}.")
    if n > MAX_N:
        raise BadRequestError(
            f"n must be at most {MAX_N}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable."
        )
    for name in ("presence_penalty", "frequency_penalty"):
        value = body.get(name)
        if value is not None and not -2.0 <= value <= 2.0:
            raise BadRequestError(f"{name} must be in [-2, 2], got {value}.")
    repetition = body.get("repetition_penalty")
    if repetition is not None and repetition <= 0:
        raise BadRequestError(f"repetition_penalty must be greater than zero, got {repetition}.")
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        message = f"temperature must be non-negative, got {temperature}."
        raise BadRequestError.of(message, "temperature", temperature)
    top_p = body.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise BadRequestError.of(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    top_k = body.get("top_k")
    if top_k is not None and top_k < -1:
        raise BadRequestError(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    min_p = body.get("min_p")
    if min_p is not None and not 0 <= min_p <= 1:
        raise BadRequestError(f"min_p must be in [0, 1], got {min_p}.")
    if any(not s for s in stop):
        raise BadRequestError("stop cannot contain an empty string.")
    if temperature == 0 and n > 1:
        raise BadRequestError(f"n must be 1 when using greedy sampling, got {n}.")
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        message = (
            f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {MAX_LOGPROBS}"
        )
        raise BadRequestError.of(message, "logprobs", logprobs)


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as the template sees them: vLLM fills in what was left out."""
    if not tools:
        return None
    filled = []
    for tool in tools:
        function = tool.get("function") or {}
        known = {"name": function.get("name"), "description": None, "parameters": None}
        filled.append({"type": tool.get("type", "function"), "function": known | dict(function)})
    return filled
