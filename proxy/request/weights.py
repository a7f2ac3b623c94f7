"""A request weighs its prompt and the tokens that it surely or probably generates, never those that it merely
might.

Limits and turns count in this weight. A `max_tokens` that is set high and never used is common, so it alone
makes a request weigh no more than an answer of the expected length; many sequences, and answers that cannot
end early, make it heavy.
"""

import math

from proxy.request.generation import GenerationRequest

MAX_SEQUENCES = 16_384
"""The most sequences of a request: vLLM's own limit (`VLLM_MAX_N_SEQUENCES`), above which it refuses."""


def generated_tokens(
    request: GenerationRequest, limit: tuple[str, int] | None, room_tokens: float, expected_tokens: int
) -> int:
    """The tokens that count for the answers to a request, of all its sequences together.

    `limit`: the request's `answer_limit`. `room_tokens`: the tokens that the engines' context has left beside
    the prompt. `expected_tokens`: the expected length of an answer that may be longer.
    """
    dialect, body = request.dialect, request.body
    if limit is not None:
        most: float = limit[1]
    else:
        most = math.inf if dialect.default_answer_tokens is None else dialect.default_answer_tokens
    longest = max(1, min(most, room_tokens))
    if longest < math.inf and not dialect.may_end_early(body):
        least: float = longest
    else:
        least = min(longest, dialect.least_answer_tokens(body))
    each = int(max(least, min(longest, expected_tokens)))
    return each * sequences(request)


def sequences(request: GenerationRequest) -> int:
    """How many answers an engine generates for a request, those to all its prompts together."""
    computed = max(request.sequences, request.dialect.computed_sequences(request.body))
    return min(MAX_SEQUENCES, computed) * request.prompt_count
