"""A request weighs its prompt, what it surely generates and what it is expected to, never what it merely might.

Limits and turns count in this weight. A `max_tokens` that is set high and never used is common, so it alone makes a request
weigh no more than an answer of the expected length; many sequences, and answers that cannot end early, make it heavy.
"""

import math
from typing import Any

from proxy.errors import BadRequestError
from proxy.request.generation import GenerationRequest
from proxy.request.like_pydantic import as_whole_number, truth

MOST_SEQUENCES = 16_384
"""vLLM's own limit (`VLLM_MAX_N_SEQUENCES`); it refuses what asks for more."""


def generated_tokens(request: GenerationRequest, room_tokens: float, expected_tokens: int) -> int:
    """What the answers to a request count for, in tokens of all its sequences together.

    `room_tokens`: what the engines' context leaves beside the prompt. `expected_tokens`: how long an answer is expected
    to become that may be longer.
    """
    usual = request.dialect.default_answer_tokens
    _, limit = request.answer_limit or (None, math.inf if usual is None else usual)
    longest = max(1, min(limit, room_tokens))
    if longest < math.inf and _is_true(request, "ignore_eos"):
        least: float = longest
    else:
        least = min(longest, as_whole_number(_value(request, "min_tokens")) or 0)
    each = int(max(least, min(longest, expected_tokens)))
    best_of = as_whole_number(_value(request, "best_of")) or 1
    sequences = min(MOST_SEQUENCES, max(request.sequences, best_of)) * request.prompt_count
    return each * sequences


def _is_true(request: GenerationRequest, name: str) -> bool:
    try:
        return truth(_value(request, name), name)
    except BadRequestError:
        return False


def _value(request: GenerationRequest, name: str) -> Any:
    """A member's value; None for what engines refuse, or ignore, anyway."""
    try:
        return request.body.value(name)
    except BadRequestError:
        return None
