"""Invariant: two prompts have equal tokens exactly where the workload says so: in blocks with one name."""

import functools

import msgspec
import numpy as np

from proxy.traces.workload import TraceRequest

FIRST_TOKEN, VOCABULARY = 3, 4096
"""Of the stand-in's tokenizer; those before the first have a meaning of their own."""
_NAMED, _ALONE = 0, 1
_REMEMBERED_BLOCKS = 1 << 14


def tokens_of(number: int, request: TraceRequest) -> list[int]:
    """The token ids of the `number`th prompt; blocks that the workload does not name have no equal."""
    size = request.block_tokens
    tokens: list[int] = []
    for place in range(-(-request.input_tokens // size)):
        if place < len(request.blocks):
            tokens += _block(_NAMED, request.blocks[place], 0, size)
        else:
            tokens += _block(_ALONE, number, place, size)
    return tokens[: request.input_tokens]


@functools.lru_cache(_REMEMBERED_BLOCKS)
def _block(kind: int, name: int, place: int, size: int) -> list[int]:
    dice = np.random.default_rng((kind, abs(name), int(name < 0), place))
    return [int(token) for token in dice.integers(FIRST_TOKEN, VOCABULARY, size)]


def body_of(number: int, request: TraceRequest, model: str) -> bytes:
    """The request as a client sends it: a stream of as many tokens as the workload says, with usage."""
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": tokens_of(number, request),
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
