"""A workload is the requests that reach a fleet: when each comes, how long it is, and which blocks it shares.

It holds no text. Ids stand for blocks of tokens, so that two prompts share a prefix exactly if their ids do.
"""

from collections.abc import Sequence

import msgspec


class TraceRequest(msgspec.Struct, frozen=True):
    """A request of a workload."""

    at_s: float
    """When it arrives, in seconds since the workload began. With `after`, when its session begins."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Ids of the prompt's blocks, from its first token on; the last block may be partial. Equal ids are equal
    tokens at an equal position, after equal blocks."""
    block_tokens: int
    """How many tokens a block has; 512 in the files of Mooncake."""
    session: str | None = None
    """The conversation or agent that it belongs to."""
    after: int | None = None
    """The index in the workload of an earlier request, whose end this one waits for (a closed loop)."""
    think_s: float = 0.0
    """Seconds from the end of `after` to this request's arrival."""
    model: str | None = None
    """None if all requests are for one model."""


class Workload(msgspec.Struct, frozen=True):
    """Requests in the order in which they are listed: those without `after` by the time of their arrival."""

    name: str
    requests: Sequence[TraceRequest]
    source: str
    """Where it is from, and what was done to it, for people."""
