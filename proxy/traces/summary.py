"""What a workload is like, in the figures that say whether it is worth a router: lengths, reuse, bursts."""

import collections
from collections.abc import Sequence

import msgspec
import numpy as np

from proxy.traces.workload import TraceRequest, Workload


class Lengths(msgspec.Struct, frozen=True):
    """How long prompts or answers are, in tokens."""

    mean: float
    p50: float
    p90: float
    p99: float
    greatest: int


class Summary(msgspec.Struct, frozen=True):
    """Figures of a workload."""

    requests: int
    duration_s: float
    """Until the last request that comes by the clock; a closed loop goes on for as long as it is served."""
    distinct_stamps: int
    """How many different times of arrival there are, of requests that come by the clock."""
    most_at_once: int
    """How many requests come at the same time, at most."""
    input_tokens: Lengths
    output_tokens: Lengths
    reused_tokens: float
    """The share of prompt tokens that an infinite cache would have, with requests in the order listed."""
    reused_blocks: float
    """The same as a share of blocks, in which a prompt's last, partial block counts as much as any."""
    distinct_blocks: int
    sessions: int
    waiting: int
    """How many requests wait for another one (closed loop)."""
    models: int


def summary(workload: Workload) -> Summary:
    """The figures of a workload with at least one request."""
    requests = workload.requests
    stamps = collections.Counter(request.at_s for request in requests if request.after is None)
    tokens, blocks, distinct = _reuse(requests)
    return Summary(
        requests=len(requests),
        duration_s=max(stamps, default=0.0) - min(stamps, default=0.0),
        distinct_stamps=len(stamps),
        most_at_once=max(stamps.values(), default=0),
        input_tokens=_lengths([request.input_tokens for request in requests]),
        output_tokens=_lengths([request.output_tokens for request in requests]),
        reused_tokens=tokens,
        reused_blocks=blocks,
        distinct_blocks=distinct,
        sessions=len({request.session for request in requests if request.session is not None}),
        waiting=sum(request.after is not None for request in requests),
        models=len({request.model for request in requests}),
    )


def _lengths(tokens: Sequence[int]) -> Lengths:
    values = np.asarray(tokens)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Lengths(float(values.mean()), float(p50), float(p90), float(p99), int(values.max()))


def _reuse(requests: Sequence[TraceRequest]) -> tuple[float, float, int]:
    """The shares of tokens and of blocks that were there before, and how many blocks there are."""
    seen: set[tuple[int, int]] = set()
    had = total = had_blocks = blocks = 0
    for request in requests:
        size, fresh = request.block_tokens, len(request.blocks)
        for place, block in enumerate(request.blocks):
            if (size, block) not in seen:
                fresh = place
                break
        had += min(fresh * size, request.input_tokens)
        total += request.input_tokens
        had_blocks += fresh
        blocks += len(request.blocks)
        seen.update((size, block) for block in request.blocks[fresh:])
    return had / total, had_blocks / blocks, len(seen)
