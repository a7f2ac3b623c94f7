"""Invariant: an error raised here is raised before the engine knows of the request: it tells nobody and frees nothing.

The first stage of vLLM's validation: checks on the raw body, then types, in its words. What passes has the
right types; whether the model can serve it is for `proxy.simulation.validation`.
"""

from collections.abc import Mapping
from typing import Any

from proxy.simulation.errors import BadRequestError
from proxy.simulation.schema import (
    Problems,
    any_of,
    boolean,
    check,
    integer,
    list_of,
    mapping,
    nullable,
    number,
    problem,
    record,
    seed,
    string,
    tagged,
    values_of,
)

_token_ids = list_of(integer(at_least=0))
_ARGUMENT = (string, integer(), number)
_JSON_SCHEMA = record({"name": string, "schema": nullable(mapping)}, required=("name",))
_RESPONSE_FORMAT = any_of(
    tagged(("text", "json_object", "json_schema"), record({"json_schema": nullable(_JSON_SCHEMA)})),
    tagged(("structural_tag",), record({}, required=("format",))),
    tagged(("structural_tag",), record({}, required=("structures", "triggers"))),
)
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
    "response_format": nullable(_RESPONSE_FORMAT),
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
_ROLES = ("Developer", "System", "User", "Assistant", "Tool", "Function")
_ALSO_NEEDED = {"Tool": ("role", "tool_call_id"), "Function": ("name", "role")}
_with_role = record({"role": string})


def _message(value: Any, loc: str, problems: Problems) -> Any:
    """A message of any role. One without a role is tried as every class of message there is, in vLLM's order."""
    if not isinstance(value, dict) or "role" in value:
        return _with_role(value, loc, problems)
    kinds = {f"ChatCompletion{role}MessageParam": _ALSO_NEEDED.get(role, ("role",)) for role in _ROLES}
    kinds |= {"CustomChatCompletionMessageParam": ("role",), "Message": ("author",)}
    for kind, needed in kinds.items():
        missing = [name for name in needed if name not in value]
        problems.extend(
            problem("missing", f"{loc}.{kind}.{name}", "Field required", value) for name in missing
        )
    return list_of(string)(value.get("content"), f"{loc}.Message.content", problems)


_CHAT = record(
    {
        **_COMMON,
        "messages": list_of(_message),
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
_TOKENIZE = record({"model": nullable(string), "prompt": string, "messages": list_of(_message)})
_DETOKENIZE = record({"model": nullable(string), "tokens": _token_ids}, required=("tokens",))


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
