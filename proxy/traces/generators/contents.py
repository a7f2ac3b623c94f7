"""A prompt grows and forks: what two have in common is the whole blocks of the prompt that both continue."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from proxy.errors import TraceError
from proxy.traces.blocks import block_count

MOST_MIB = 2048
"""So much memory the prompts of a workload may take; more is a mistake in the figures."""
PROMPT_BYTES, BLOCK_BYTES, ID_BYTES = 256, 8, 32
"""What a prompt takes, each of its blocks, and each block that no other prompt has: in CPython 3.11 and later
a request with its tuple, a pointer, and an integer.
"""


class Content(NamedTuple):
    """The tokens of a prompt, as ids of blocks; the last may be partial."""

    tokens: int
    blocks: tuple[int, ...]


EMPTY = Content(0, ())


class Contents:
    """Makes the contents of one workload."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._ids: Iterator[int] = itertools.count()
        self._left_bytes = MOST_MIB << 20

    def grown(self, content: Content, tokens: int) -> Content:
        """The content with so many tokens more, which nobody else has. Raises TraceError if all contents
        together take more than `MOST_MIB`.
        """
        kept = content.blocks[: content.tokens // self._block_tokens]
        total = content.tokens + tokens
        blocks = block_count(total, self._block_tokens)
        new = blocks - len(kept)
        self._left_bytes -= PROMPT_BYTES + BLOCK_BYTES * blocks + ID_BYTES * new
        if self._left_bytes < 0:
            raise TraceError(f"these figures make prompts that take more than {MOST_MIB} MiB of memory")
        fresh = itertools.islice(self._ids, new)
        return Content(total, (*kept, *fresh))
