"""What is refused, in the words a real vLLM 0.32 engine used for the same request (max_model_len 512)."""

from typing import Any

import pytest

from proxy.simulation.api import bodies
from proxy.simulation.api.errors import ApiError
from proxy.simulation.api.validation import Asked, Checker
from proxy.simulation.engine.tokenizer import load_tokenizer

CHECKER = Checker(load_tokenizer(), "tiny", ["alpha"], 512)
MESSAGES = [{"role": "user", "content": "Hello"}]


def completion(**fields: Any) -> Asked:
    body = {"model": "tiny", "prompt": "the import", "temperature": 0, "max_tokens": 4, **fields}
    return CHECKER.completion(bodies.parse_completion(body))


def chat(**fields: Any) -> Asked:
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 4, **fields}
    return CHECKER.chat(bodies.parse_chat(body))


def finding(kind: str, name: str, message: str, value: str, rest: str = "") -> str:
    return f"{{'type': '{kind}', 'loc': 'body.{name}', 'msg': '{message}', 'input': '{value}'{rest}}}"


SCHEMA = [
    (
        {"max_tokens": "x"},
        "max_tokens",
        [
            finding(
                "int_parsing",
                "max_tokens",
                "Input should be a valid integer, unable to parse string as an integer",
                "x",
            )
        ],
    ),
    (
        {"max_tokens": 1.5},
        "max_tokens",
        [
            finding(
                "int_from_float",
                "max_tokens",
                "Input should be a valid integer, got a number with a fractional part",
                "1.5",
            )
        ],
    ),
    ({"n": None}, "n", [finding("int_type", "n", "Input should be a valid integer", "None")]),
    (
        {"temperature": "hot"},
        "temperature",
        [
            finding(
                "float_parsing",
                "temperature",
                "Input should be a valid number, unable to parse string as a number",
                "hot",
            )
        ],
    ),
    (
        {"seed": 2**70},
        "seed",
        [
            finding(
                "less_than_equal",
                "seed",
                "Input should be less than or equal to 9223372036854775807",
                "1180591620717411303424",
                ", 'ctx': {'le': 9223372036854775807}",
            )
        ],
    ),
    (
        {"stop": 5},
        "stop",
        [
            finding("string_type", "stop", "Input should be a valid string", "5"),
            finding("list_type", "stop", "Input should be a valid list", "5"),
        ],
    ),
    (
        {"prompt": [-1]},
        "prompt.0",
        [
            finding(
                "greater_than_equal",
                "prompt.0",
                "Input should be greater than or equal to 0",
                "-1",
                ", 'ctx': {'ge': 0}",
            ),
            finding("list_type", "prompt.0", "Input should be a valid list", "-1"),
            finding("string_type", "prompt", "Input should be a valid string", "<list of 1 items>"),
            finding("string_type", "prompt.0", "Input should be a valid string", "-1"),
        ],
    ),
    (
        {"kv_transfer_params": "x"},
        "kv_transfer_params",
        [finding("dict_type", "kv_transfer_params", "Input should be a valid dictionary", "x")],
    ),
    (
        {"stream": True, "stream_options": {"include_usage": "zzz"}},
        "stream_options.include_usage",
        [
            finding(
                "bool_parsing",
                "stream_options.include_usage",
                "Input should be a valid boolean, unable to interpret input",
                "zzz",
            )
        ],
    ),
    (
        {"request_id": 5},
        "request_id",
        [finding("string_type", "request_id", "Input should be a valid string", "5")],
    ),
]


@pytest.mark.parametrize(("fields", "param", "findings"), SCHEMA)
def test_a_wrong_type_is_described(fields: dict[str, Any], param: str, findings: list[str]) -> None:
    with pytest.raises(ApiError) as refused:
        completion(**fields)
    label = "error" if len(findings) == 1 else "errors"
    assert refused.value.body() == {
        "error": {
            "message": f"{len(findings)} validation {label}:\n  " + "\n  ".join(findings),
            "type": "Bad Request",
            "param": f"body.{param}",
            "code": 400,
        }
    }


REFUSED = [
    (
        {"max_tokens": 0},
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        "max_tokens",
    ),
    (
        {"max_tokens": -1},
        "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
        "max_tokens",
    ),
    (
        {"max_tokens": 600},
        (
            "max_tokens=600 cannot be greater than max_model_len=512. Please request fewer output tokens. "
            "(parameter=max_tokens, value=600)"
        ),
        "max_tokens",
    ),
    ({"min_tokens": 5}, "min_tokens must be less than or equal to max_tokens=4, got 5.", None),
    ({"min_tokens": -1}, "min_tokens must be greater than or equal to 0, got -1.", None),
    ({"n": 0}, "n must be at least 1, got 0.", None),
    ({"n": 2}, "n must be 1 when using greedy sampling, got 2.", None),
    (
        {"n": 20000},
        (
            "n must be at most 16384, got 20000. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable."
        ),
        None,
    ),
    (
        {"stream_options": {"include_usage": True}},
        "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
        "stream_options",
    ),
    (
        {"prompt": [300] * 600},
        (
            "This model's maximum context length is 512 tokens. However, your prompt contains 600 input "
            "tokens, which exceeds this limit even without any output tokens. Please reduce the length of "
            "the input prompt. (parameter=input_tokens, value=600)"
        ),
        "input_tokens",
    ),
    (
        {"prompt": "word " * 700},
        (
            "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            "length of the input prompt. (parameter=input_tokens, value=513)"
        ),
        "input_tokens",
    ),
    (
        {"prompt": [300] * 512},
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        "max_tokens",
    ),
    (
        {"prompt": ""},
        "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        "prompt",
    ),
    ({"prompt": []}, "You must pass at least one prompt", None),
    ({"prompt": [[]]}, "The decoder prompt cannot be empty", None),
    ({"prompt": [999999]}, "Token id 999999 is out of vocabulary", None),
    (
        {"temperature": -1},
        "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
        "temperature",
    ),
    ({"top_p": 0}, "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)", "top_p"),
    ({"top_k": -2}, "top_k must be 0 (disable), or at least 1, got -2.", None),
    ({"min_p": 2}, "min_p must be in [0, 1], got 2.0.", None),
    ({"frequency_penalty": 3}, "frequency_penalty must be in [-2, 2], got 3.0.", None),
    ({"repetition_penalty": 0}, "repetition_penalty must be greater than zero, got 0.0.", None),
    ({"stop": [""]}, "stop cannot contain an empty string.", None),
    (
        {"logprobs": 30},
        (
            "Requested sample logprobs of 30, which is greater than max allowed: 20 (parameter=logprobs, "
            "value=30)"
        ),
        "logprobs",
    ),
    (
        {"logprobs": -2},
        "`logprobs` must be a positive value or -1. (parameter=logprobs, value=-2)",
        "logprobs",
    ),
    ({"logprobs": "x"}, "`logprobs` must be an integer. (parameter=logprobs, value=x)", "logprobs"),
    (
        {"prompt_logprobs": 1, "stream": True},
        "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)",
        "prompt_logprobs",
    ),
    (
        {"cache_salt": ""},
        "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)",
        "cache_salt",
    ),
    ({"suffix": "x"}, "suffix is only supported for models with FIM completion rendering", "suffix"),
    (
        {"use_beam_search": True, "stream": True},
        "Streaming is not currently supported with beam search",
        None,
    ),
    (
        {"response_format": {"type": "json_schema"}},
        (
            "When response_format type is 'json_schema', the 'json_schema' field must be provided. "
            "(parameter=response_format)"
        ),
        "response_format",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED)
def test_what_cannot_be_served_is_refused(fields: dict[str, Any], message: str, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        completion(**fields)
    assert refused.value.body() == {
        "error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    }


REFUSED_CHATS = [
    ({"max_completion_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
    (
        {"top_logprobs": 2},
        "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)",
    ),
    (
        {"tools": []},
        (
            "`tools` must not be an empty array. Either provide at least one tool or omit the field "
            "entirely. (parameter=tools)"
        ),
    ),
    ({"tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)"),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ),
    ({"messages": []}, "Cannot apply chat template to an empty conversation. Provide at least one message."),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "tiny is not a multimodal model",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED_CHATS)
def test_chats_that_cannot_be_served_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.message, refused.value.status) == (message, 400)


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ApiError) as refused:
        completion(model="nope")
    assert refused.value.body() == {
        "error": {
            "message": "The model `nope` does not exist. Valid aliases: tiny.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": "3"}, 3),
        ({"max_tokens": None}, 16),
        ({"max_tokens": 3.0}, 3),
        ({"prompt": [300] * 510}, 2),
        ({"max_tokens": 0, "echo": True}, 1),
    ],
)
def test_limits_are_read_leniently(fields: dict[str, Any], max_tokens: int) -> None:
    assert completion(**fields).sampling[0].max_tokens == max_tokens


def test_a_chat_without_a_limit_may_fill_the_context() -> None:
    asked = chat(max_tokens=None)
    assert asked.sampling[0].max_tokens == 512 - len(asked.prompts[0])


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=1, max_completion_tokens=7).sampling[0].max_tokens == 7


@pytest.mark.parametrize("value", ["yes", 1, True, "on"])
def test_truth_has_many_names(value: Any) -> None:
    assert bodies.parse_completion({"prompt": "x", "stream": value})["stream"] is True


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("the import", [2]),
        ([300, 301], [2]),
        (["the import", "x"], [2, 1]),
        ([[300], [301, 302]], [1, 2]),
        (["300", "301"], [2, 2]),  # texts, though they could be read as token ids
        (["300", 301], [2]),
        ([["300"], [301, "302"]], [1, 2]),
    ],
)
def test_prompts_of_every_kind(prompt: Any, lengths: list[int]) -> None:
    assert [len(p) for p in completion(prompt=prompt).prompts] == lengths


def test_tools_are_rendered_with_what_was_left_out() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    [tokens] = chat(tools=tools, tool_choice="none").prompts
    text = load_tokenizer().decode(tokens)
    filled = '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {}}}]'
    assert text.startswith(f"<|turn|>tools\n{filled}<|end|>\n<|turn|>user\nHello<|end|>\n")


@pytest.mark.parametrize(("keep", "tokens"), [(2, [302, 303]), (-1, [300, 301, 302, 303])])
def test_prompts_are_truncated_from_their_beginning(keep: int, tokens: list[int]) -> None:
    assert completion(prompt=[300, 301, 302, 303], truncate_prompt_tokens=keep).prompts == [tokens]


@pytest.mark.parametrize(
    ("side", "tokens"), [("left", [302, 303]), ("right", [300, 301]), (None, [302, 303])]
)
def test_prompts_are_truncated_on_the_side_that_is_told(side: str | None, tokens: list[int]) -> None:
    body = {"prompt": [300, 301, 302, 303], "truncate_prompt_tokens": 2, "truncation_side": side}
    assert completion(**body).prompts == [tokens]


def test_given_token_ids_replace_rendering() -> None:
    params = {"do_remote_decode": True, "prompt_token_ids": [7, 8, 9]}
    assert chat(kv_transfer_params=params).prompts == [[7, 8, 9]]


def test_seeds_and_choices_say_different_things() -> None:
    asked = completion(temperature=1, n=2, seed=5)
    salts = {asked.sampling_of(0, choice).salt for choice in range(2)}
    assert len(salts | {completion(temperature=1, seed=6).sampling[0].salt, 0}) == 4
    assert completion(seed=5).sampling[0].salt == 0  # greedy
