"""Invariant: the schema has the members of requests that vLLM 0.32 reads, and no others.

It is as FastAPI writes it from vLLM's classes, as far as a reader of names needs it.
"""

from collections.abc import Iterable
from typing import Any

_BOTH = """
    add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo frequency_penalty
    ignore_eos
    include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs
    max_tokens min_p
    min_tokens mm_payload model n presence_penalty priority prompt_logprobs repetition_detection
    repetition_penalty
    request_id response_format return_mm_kwargs return_token_ids return_token_offsets
    return_tokens_as_token_ids
    routed_experts_prompt_start seed session_id skip_special_tokens spaces_between_special_tokens stop
    stop_token_ids
    stream stream_interval stream_options structured_outputs temperature thinking_token_budget top_k top_p
    truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
""".split()  # noqa: SIM905  # a list of these is a page long
CHAT = frozenset(
    [
        *_BOTH,
        *[
            "add_generation_prompt",
            "chat_template",
            "chat_template_kwargs",
            "continue_final_message",
            "documents",
        ],
        *["include_reasoning", "max_completion_tokens", "media_io_kwargs", "messages", "mm_processor_kwargs"],
        *[
            "parallel_tool_calls",
            "reasoning_effort",
            "return_prompt_text",
            "tool_choice",
            "tools",
            "top_logprobs",
        ],
    ]
)
COMPLETION = frozenset([*_BOTH, "prompt", "prompt_embeds", "suffix"])


def document(more: Iterable[str] = ()) -> dict[str, Any]:
    """The answer to /openapi.json of an engine that knows the members `more` besides those of vLLM 0.32."""
    classes = {"ChatCompletionRequest": CHAT, "CompletionRequest": COMPLETION}
    paths = {"/v1/chat/completions": "ChatCompletionRequest", "/v1/completions": "CompletionRequest"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": {path: {"post": _operation(name)} for path, name in paths.items()},
        "components": {
            "schemas": {name: _schema(name, {*members, *more}) for name, members in classes.items()}
        },
    }


def _operation(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _schema(name: str, members: Iterable[str]) -> dict[str, Any]:
    properties = {member: {"title": member} for member in sorted(members)}
    return {"properties": properties, "additionalProperties": True, "type": "object", "title": name}
