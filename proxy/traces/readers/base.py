"""A reader turns the lines of one format into requests, in the order of the file, and keeps count of what it
left out.
"""

import collections
import pathlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

import msgspec

from proxy.traces.blocks import MOONCAKE_BLOCK_TOKENS, BlockIds, block_count, merged
from proxy.traces.loops import Loop
from proxy.traces.workload import TraceRequest


class ReadingOptions(msgspec.Struct, frozen=True):
    """How files are read."""

    closed: bool | None = None
    """Whether requests of a session wait for each other (think time) instead of coming when they came. None:
    as the format has it: sessions of agents and chats wait, everything else comes by its timestamps."""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    """Tokens of a block, where the file does not tell."""
    least_block_tokens: int = 1
    """Smaller blocks are merged to at least this size, for less memory: sessions of agents have 64 tokens a
    block, and contexts of thousands of blocks."""
    max_think_s: float | None = None
    """Longer think times are cut to this."""


class Reading:
    """The reading of a workload from one or several files."""

    def __init__(self, options: ReadingOptions) -> None:
        self.options = options
        self.ids = BlockIds()
        self.left_out: collections.Counter[str] = collections.Counter()
        """How many lines were left out, by the reason, in words for people."""
        self.assumed: set[str] = set()
        """What no line tells and was assumed, in words for people."""
        self.loops: collections.defaultdict[str, Loop] = collections.defaultdict(Loop)
        """What requests of a session can have waited for."""
        self.count = 0
        """How many requests were read so far: the index of the next."""

    def blocks(
        self, told: Sequence[int], tokens: int, block_tokens: int, scope: Hashable = None
    ) -> tuple[tuple[int, ...], int]:
        """The ids of a prompt whose first blocks are told, and the tokens of a block. Raises ValueError.

        `scope`: what the ids mean something in; None for all that is read.
        """
        if (least := block_count(tokens, block_tokens)) < len(told):
            raise ValueError(
                f"hash_ids: {len(told)} blocks of {block_tokens} tokens, but the prompt's {tokens} tokens"
                f" make {least}; is the size of a block another?"
            )
        factor = max(-(-self.options.least_block_tokens // block_tokens), 1)
        told = merged(told, tokens, block_tokens, factor)
        if scope is not None:
            told = self.ids.within(scope, told)
        return self.ids.whole(told, tokens, block_tokens * factor), block_tokens * factor

    def thought_s(self, think_s: float) -> float:
        """A think time, cut if it is to be."""
        return think_s if self.options.max_think_s is None else min(think_s, self.options.max_think_s)


class Reader(Protocol):
    """Reads one format."""

    def __call__(self, path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
        """Each request of a file, in its order; `at_s` on the file's own clock. Raises TraceError.

        `after` is an index in the whole reading; `reading.count` grows by one with each request taken.
        """
        ...
