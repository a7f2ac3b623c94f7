"""A prompt grows and forks: what two have in common is the whole blocks of the prompt that both continue."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from proxy.traces.blocks import block_count


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

    def grown(self, content: Content, tokens: int) -> Content:
        """The content with so many tokens more, which nobody else has."""
        kept = content.blocks[: content.tokens // self._block_tokens]
        total = content.tokens + tokens
        fresh = itertools.islice(self._ids, block_count(total, self._block_tokens) - len(kept))
        return Content(total, (*kept, *fresh))
