"""A bad request is refused with vLLM's status and error: its message, type, parameter and code."""

from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine
from tests.contract.prompts import GREEDY

LIMIT = 2048  # --max-model-len
PROMPT = "the import statement loads"
MESSAGES = [{"role": "user", "content": "Hello there, what is an import?"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
Fields = dict[str, Any]


def refusal(message: str, param: str | None = None, value: Any = None) -> dict[str, Any]:
    """The error of a request that was understood. vLLM puts most parameters and values into the message,
    too."""
    told = f" (parameter={param}{'' if value is None else f', value={value}'})" if param else ""
    return {"message": message + told, "type": "BadRequestError", "param": param, "code": 400}


def untold(message: str, param: str) -> dict[str, Any]:
    """As refusal, where the message leaves the parameter out."""
    return refusal(message) | {"param": param}


ROOM = "Please request fewer output tokens."
TOO_LONG = (
    f"This model's maximum context length is {LIMIT} tokens. However, your prompt contains {{}} input "
    "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
    "input prompt."
)
NO_PROMPT = refusal("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
NO_OPTIONS = refusal("Stream options can only be defined when `stream=True`.", "stream_options")
BAD_SALT = refusal(
    "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL.",
    "cache_salt",
)
EMPTY_SALT = refusal("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
NO_N_GREEDY = "n must be 1 when using greedy sampling, got {}."
VOCABULARY = 4096


def too_many(kind: str, count: int) -> dict[str, Any]:
    """The refusal of more log probabilities than are given; -1 asks for all there are."""
    message = f"Requested {kind} logprobs of {count}, which is greater than max allowed: 20"
    return refusal(message, "logprobs" if kind == "sample" else "prompt_logprobs", count)


def outside(name: str) -> dict[str, Any]:
    """The refusal of token 99999."""
    message = f"token_id(s) [99999] in {name} contain out-of-vocab token ids. Vocabulary size: {VOCABULARY}"
    return refusal(message, name, [99_999])


COMPLETION_REFUSALS: list[tuple[Fields, dict[str, Any]]] = [
    ({"max_tokens": 0}, refusal("max_tokens must be at least 1, got 0.", "max_tokens", 0)),
    ({"max_tokens": -1}, refusal("max_tokens must be at least 1, got -1.", "max_tokens", -1)),
    (
        {"max_tokens": 3000},
        refusal(f"max_tokens=3000 cannot be greater than max_model_len={LIMIT}. {ROOM}", "max_tokens", 3000),
    ),
    ({"min_tokens": 5}, refusal("min_tokens must be less than or equal to max_tokens=4, got 5.")),
    ({"min_tokens": -1}, refusal("min_tokens must be greater than or equal to 0, got -1.")),
    ({"n": 0}, refusal("n must be at least 1, got 0.")),
    ({"n": 2}, refusal(NO_N_GREEDY.format(2))),
    (
        {"n": 20_000},
        refusal(
            "n must be at most 16384, got 20000. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable."
        ),
    ),
    ({"stream_options": {"include_usage": True}}, NO_OPTIONS),
    ({"prompt": [300] * (LIMIT + 9)}, refusal(TOO_LONG.format(LIMIT + 9), "input_tokens", LIMIT + 9)),
    ({"prompt": [300] * LIMIT}, refusal("max_tokens must be at least 1, got 0.", "max_tokens", 0)),
    (
        {"prompt": "word " * 26_215},  # the longest token has 64 characters
        refusal(
            f"This model's maximum context length is {LIMIT} tokens. However, your prompt contains 131075 "
            f"characters (more than {64 * LIMIT} characters, which is the upper bound for {LIMIT} input "
            "tokens). Please reduce the length of the input prompt.",
            "input_text",
            131_075,
        ),
    ),
    ({"prompt": ""}, NO_PROMPT),
    ({"prompt": None}, NO_PROMPT),
    ({"prompt": []}, refusal("You must pass at least one prompt")),
    ({"prompt": [[]]}, refusal("The decoder prompt cannot be empty")),
    ({"prompt": [999_999]}, refusal("Token id 999999 is out of vocabulary")),
    ({"temperature": -1}, refusal("temperature must be non-negative, got -1.0.", "temperature", "-1.0")),
    ({"temperature": 100}, refusal("temperature must be in [0, 2], got 100.0.", "temperature", "100.0")),
    ({"temperature": "nan"}, refusal("temperature must be a finite number, got nan.", "temperature", "nan")),
    ({"top_p": 0}, refusal("top_p must be in (0, 1], got 0.0.", "top_p", "0.0")),
    ({"top_p": 1.5}, refusal("top_p must be in (0, 1], got 1.5.", "top_p", "1.5")),
    ({"top_k": -2}, refusal("top_k must be 0 (disable), or at least 1, got -2.")),
    ({"min_p": 2}, refusal("min_p must be in [0, 1], got 2.0.")),
    ({"frequency_penalty": 3}, refusal("frequency_penalty must be in [-2, 2], got 3.0.")),
    ({"presence_penalty": -3}, refusal("presence_penalty must be in [-2, 2], got -3.0.")),
    ({"repetition_penalty": 0}, refusal("repetition_penalty must be greater than zero, got 0.0.")),
    ({"stop": [""]}, refusal("stop cannot contain an empty string.")),
    ({"stop_token_ids": [99_999]}, outside("stop_token_ids")),
    ({"logit_bias": {"99999": 100}}, outside("logit_bias")),
    (
        {"logit_bias": {"x": 100}},
        refusal(
            "logit_bias contains key(s) that cannot be converted to integer token IDs: ['x']",
            "logit_bias",
            ["x"],
        ),
    ),
    (
        {"allowed_token_ids": [99_999]},
        refusal("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids", [99_999]),
    ),
    (
        {"allowed_token_ids": []},
        refusal("allowed_token_ids is not None and empty!", "allowed_token_ids", []),
    ),
    ({"bad_words": [""]}, refusal("bad_words cannot contain an empty string. Got bad_words=['']")),
    (
        {"truncate_prompt_tokens": 5000},
        refusal(
            f"truncate_prompt_tokens=5000 cannot be greater than max_model_len = {LIMIT}. Please request a "
            "smaller truncation size.",
            "truncate_prompt_tokens",
            5000,
        ),
    ),
    ({"prompt_logprobs": 30}, too_many("prompt", 30)),
    ({"prompt_logprobs": -1}, too_many("prompt", VOCABULARY)),
    ({"logprobs": -1}, too_many("sample", VOCABULARY)),
    ({"logprobs": 30}, too_many("sample", 30)),
    ({"logprobs": -2}, refusal("`logprobs` must be a positive value or -1.", "logprobs", -2)),
    ({"logprobs": "x"}, refusal("`logprobs` must be an integer.", "logprobs", "x")),
    (
        {"prompt_logprobs": 1, "stream": True},
        refusal("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"),
    ),
    ({"cache_salt": ""}, EMPTY_SALT),
    ({"cache_salt": 5}, EMPTY_SALT),
    ({"cache_salt": "s" * 129}, BAD_SALT),
    *[({"cache_salt": f"a{char}b"}, BAD_SALT) for char in "@/\\\0"],
    (
        {"use_beam_search": True, "stream": True},
        refusal("Streaming is not currently supported with beam search"),
    ),
    (
        {"suffix": "x"},
        untold("suffix is only supported for models with FIM completion rendering", "suffix"),
    ),
    (
        {"response_format": {"type": "json_schema"}},
        refusal(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            "response_format",
        ),
    ),
]


@pytest.mark.parametrize(("fields", "error"), COMPLETION_REFUSALS)
async def test_a_bad_completion_is_refused(engine: Engine, fields: Fields, error: dict[str, Any]) -> None:
    answer = await engine.ask(GREEDY | {"prompt": PROMPT, "max_tokens": 4} | fields)
    assert (answer.status, answer.json) == (400, {"error": error})


CHAT_REFUSALS: list[tuple[Fields, dict[str, Any]]] = [
    ({"max_tokens": 0}, refusal("max_tokens must be at least 1, got 0.", "max_tokens", 0)),
    ({"max_completion_tokens": 0}, refusal("max_tokens must be at least 1, got 0.", "max_tokens", 0)),
    ({"n": 0}, refusal("n must be at least 1, got 0.")),
    ({"n": 2}, refusal(NO_N_GREEDY.format(2))),
    ({"stream_options": {"include_usage": True}}, NO_OPTIONS),
    (
        {"messages": []},
        refusal("Cannot apply chat template to an empty conversation. Provide at least one message."),
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
            ]
        },
        refusal("tiny is not a multimodal model"),
    ),
    (
        {"messages": [{"role": "user", "content": "word " * 2500}]},
        refusal(TOO_LONG.format(f"at least {LIMIT + 1}"), "input_tokens", LIMIT + 1),
    ),
    (
        {"top_logprobs": 2},
        refusal("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"),
    ),
    ({"logprobs": True, "top_logprobs": 30}, too_many("sample", 30)),
    (
        {"tools": []},
        refusal(
            (
                "`tools` must not be an empty array. Either provide at least one tool or omit the field "
                "entirely."
            ),
            "tools",
        ),
    ),
    ({"tool_choice": "auto"}, refusal("When using `tool_choice`, `tools` must be set.", "tool_choice")),
    (
        {"tools": TOOLS},
        refusal('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    ),
    (
        {"tools": TOOLS, "tool_choice": "required"},
        refusal('tool_choice="required" requires --tool-call-parser to be set'),
    ),
    (
        {"tools": TOOLS, "tool_choice": "some"},
        refusal(
            (
                'Invalid value for `tool_choice`: some! Only named tools, "none", "auto" or "required" are '
                "supported."
            ),
            "tool_choice",
        ),
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
        refusal(
            "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
        ),
    ),
    (
        {"tools": TOOLS, "tool_choice": {"a": 1}},
        refusal(
            "Invalid value for `function`: `None` in `tool_choice`! Correct usage: "
            '`{"type": "function", "function": {"name": "my_function"}}`',
            "tool_choice.function",
        ),
    ),
    (
        {"chat_template": "{{ messages }}"},
        refusal(
            "Chat template is passed with request, but --trust-request-chat-template is not set. Refused "
            "request with untrusted chat template."
        ),
    ),
    ({"messages": None}, refusal("'NoneType' object is not iterable")),
    (
        {"continue_final_message": True},
        refusal(
            "continue_final_message and add_generation_prompt are not compatible. Use "
            "continue_final_message when you want the model to continue the final message, and "
            "add_generation_prompt when you want to add a header that will prompt it to start a new "
            "assistant message instead."
        ),
    ),
]


@pytest.mark.parametrize(("fields", "error"), CHAT_REFUSALS)
async def test_a_bad_chat_is_refused(engine: Engine, fields: Fields, error: dict[str, Any]) -> None:
    answer = await engine.ask(GREEDY | {"messages": MESSAGES, "max_tokens": 4} | fields, CHAT)
    assert (answer.status, answer.json) == (400, {"error": error})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": PROMPT}),
        (COMPLETIONS, {"prompt": PROMPT, "stream": True}),
        (CHAT, {"messages": MESSAGES}),
        (CHAT, {"messages": MESSAGES, "stream": True}),
        ("/tokenize", {"prompt": PROMPT}),
        ("/detokenize", {"tokens": [300]}),
    ],
)
async def test_another_model_is_not_there(engine: Engine, path: str, body: Fields) -> None:
    answer = await engine.ask(body | {"model": "nope"}, path)
    message = "The model `nope` does not exist. Valid aliases: tiny."
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
    assert (answer.status, answer.json) == (404, {"error": error})


@pytest.mark.parametrize(
    ("rank", "refused"), [("0", False), ("x", False), ("1", True), ("-1", True), ("7", True)]
)
async def test_a_rank_that_is_not_there_is_refused(engine: Engine, rank: str, refused: bool) -> None:
    answer = await engine.ask({"prompt": PROMPT, "max_tokens": 1}, X_data_parallel_rank=rank)
    if refused:
        error = refusal(f"data_parallel_rank {rank} is out of range [0, 1).")
        assert (answer.status, answer.json) == (400, {"error": error})
    else:
        assert answer.status == 200
