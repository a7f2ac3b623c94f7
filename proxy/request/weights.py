"""A request weighs its prompt, what it surely generates and what it is expected to, never what it merely
might.

Limits and turns count in this weight. A `max_tokens` that is set high and never used is common, so it alone
makes a request weigh no more than an answer of the expected length; many sequences, and answers that cannot
end early, make it heavy.
"""

import math

from proxy.request.generation import GenerationRequest

MAX_SEQUENCES = 16_384
"""vLLM's own limit (`VLLM_MAX_N_SEQUENCES`); it refuses what asks for more."""


def generated_tokens(request: GenerationRequest, room_tokens: float, expected_tokens: int) -> int:
    """What the answers to a request count for, in tokens of all its sequences together.

    `room_tokens`: what the engines' context leaves beside the prompt. `expected_tokens`: how long an answer
    is expected to become that may be longer.
    """
    dialect, body = request.dialect, request.body
    usual = dialect.default_answer_tokens
    _, limit = request.answer_limit or (None, math.inf if usual is None else usual)
    longest = max(1, min(limit, room_tokens))
    if longest < math.inf and not dialect.may_end_early(body):
        least: float = longest
    else:
        least = min(longest, dialect.least_answer_tokens(body))
    each = int(max(least, min(longest, expected_tokens)))
    computed = max(request.sequences, dialect.computed_sequences(body))
    return each * min(MAX_SEQUENCES, computed) * request.prompt_count
