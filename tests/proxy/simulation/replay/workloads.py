"""Small workloads: conversations that share prefixes, at random by a seed."""

import random

from proxy.traces.workload import TraceRequest, Workload

BLOCK_TOKENS = 32


def conversations(
    requests: int, *, seed: int = 0, rate: float = 4.0, longest: int = 40, closed: bool = False
) -> Workload:
    """Prompts of up to `longest` blocks. Most continue an earlier one. `closed`: they come after it."""
    rng = random.Random(seed)
    made: list[TraceRequest] = []
    at_s, fresh = 0.0, 0
    for number in range(requests):
        at_s += rng.expovariate(rate)
        before = rng.randrange(number) if number and rng.random() < 0.7 else None
        shared = made[before].blocks[: rng.randrange(longest)] if before is not None else ()
        new = rng.randrange(1, 8)
        blocks = (*shared, *range(fresh, fresh + new))
        fresh += new
        made.append(
            TraceRequest(
                at_s=at_s,
                input_tokens=len(blocks) * BLOCK_TOKENS - rng.randrange(BLOCK_TOKENS),
                output_tokens=rng.randrange(1, 120),
                blocks=blocks,
                block_tokens=BLOCK_TOKENS,
                after=before if closed else None,
                think_s=0.25 if closed else 0.0,
            )
        )
    return Workload("conversations", made, "made at random")
