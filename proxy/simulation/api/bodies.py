"""Invariant: an error here comes before the engine knows of the request, so it has no effect on any hold.

The first stage of vLLM's validation: checks on the raw body, then types, in vLLM's words. A body that passes
has the right types; whether the model can serve it is for `proxy.simulation.api.validation`.
"""

from collections.abc import Mapping
from typing import Any

from proxy.simulation.api.errors import BadRequestError
from proxy.simulation.api.message_schema import message, response_format, tokenize, tool
from proxy.simulation.api.schema import (
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
    values_of,
)

_token_ids = list_of(integer(at_least=0))
_ARGUMENT = (string, integer(), number)
_choices = record({"choice": nullable(list_of(string))})


def _structured_outputs(value: Any, loc: str, problems: Problems) -> Any:
    """What leaves the model little to say; vLLM's class of it is no pydantic model."""
    if not isinstance(value, dict):
        name = "StructuredOutputsParams"
        message = f"Input should be a dictionary or an instance of {name}"
        problems.append(problem("dataclass_type", loc, message, value, class_name=name))
        return None
    return _choices(value, loc, problems)


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
    "stop": nullable(any_of(string, list_of(string, at_most=4))),
    "stop_token_ids": nullable(list_of(integer())),
    "allowed_token_ids": nullable(list_of(integer())),
    "logit_bias": nullable(values_of(number)),
    "ignore_eos": boolean,
    "include_stop_str_in_output": boolean,
    "prompt_logprobs": nullable(integer()),
    "return_token_ids": nullable(boolean),
    "truncate_prompt_tokens": nullable(integer(at_least=-1)),
    "request_id": string,
    "user": nullable(string),
    "priority": integer(),
    "length_penalty": number,
    "bad_words": nullable(list_of(string)),
    "response_format": nullable(response_format),
    "structured_outputs": nullable(_structured_outputs),
    "cache_salt": nullable(string),
    "session_id": nullable(string),
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
_CHAT = record(
    {
        **_COMMON,
        "messages": list_of(message),
        "n": nullable(integer()),
        "max_completion_tokens": nullable(integer()),
        "logprobs": nullable(boolean),
        "top_logprobs": nullable(integer()),
        "echo": boolean,
        "tools": nullable(list_of(tool)),
        "chat_template_kwargs": nullable(mapping),
        "add_generation_prompt": boolean,
        "continue_final_message": boolean,
    },
    required=("messages",),
)
_DETOKENIZE = record({"model": nullable(string), "tokens": _token_ids}, required=("tokens",))


def parse_completion(body: Any) -> dict[str, Any]:
    """The body of /v1/completions. Raises BadRequestError, which has no effect on a hold."""
    if isinstance(body, dict):
        _before(body, top="logprobs")
        if body.get("prompt") is None or body["prompt"] == "":
            message = "Either prompt or prompt_embeds must be provided and non-empty."
            raise BadRequestError.of(message, "prompt")
    return check(body, _COMPLETION)


def parse_chat(body: Any) -> dict[str, Any]:
    """The body of /v1/chat/completions. Raises BadRequestError, which has no effect on a hold."""
    if isinstance(body, dict):
        _before(body, top="top_logprobs")
        _before_chat(body)
    return check(body, _CHAT)


def parse_tokenize(body: Any) -> dict[str, Any]:
    """The body of /tokenize: a prompt or messages."""
    if isinstance(body, dict):
        _check_ending(body)
    return check(body, tokenize)


def parse_detokenize(body: Any) -> dict[str, Any]:
    """The body of /detokenize."""
    return check(body, _DETOKENIZE)


_MAX_SALT_CHARS = 128
_NEVER_IN_A_SALT = frozenset("@/\\\0")


def check_salt(salt: object) -> None:
    """Apply vLLM's rule for salts. Raises BadRequestError."""
    if salt is None:
        return
    if not isinstance(salt, str) or not salt:
        message = "Parameter 'cache_salt' must be a non-empty string if provided."
        raise BadRequestError.of(message, "cache_salt")
    if len(salt) > _MAX_SALT_CHARS or _NEVER_IN_A_SALT & set(salt):
        message = (
            "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', "
            "or NUL."
        )
        raise BadRequestError.of(message, "cache_salt")


def _before(body: Mapping[str, Any], top: str) -> None:
    """The checks that vLLM makes on the raw body, before types."""
    if body.get("stream_options") and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`."
        raise BadRequestError.of(message, "stream_options")
    check_salt(body.get("cache_salt"))
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
    if "messages" in body and body["messages"] is None:
        raise BadRequestError("'NoneType' object is not iterable")
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
    if choice is not None and choice != "none":
        _check_choice(choice, body["tools"])
    _check_ending(body)


def _check_choice(choice: Any, tools: Any) -> None:
    if isinstance(choice, str):
        if choice not in {"auto", "required"}:
            message = (
                f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or '
                '"required" are supported.'
            )
            raise BadRequestError.of(message, "tool_choice")
        return
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict):
        message = (
            f"Invalid value for `function`: `{function}` in `tool_choice`! Correct usage: "
            '`{"type": "function", "function": {"name": "my_function"}}`'
        )
        raise BadRequestError.of(message, "tool_choice.function")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return  # the schema refuses them
    names = [tool["function"].get("name") for tool in tools if isinstance(tool.get("function"), dict)]
    if function.get("name") not in names:
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise BadRequestError.of(message, "tool_choice")


def _check_ending(body: Mapping[str, Any]) -> None:
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise BadRequestError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
