"""A prompt has exactly as many block ids as it has begun blocks, and what a file does not tell of them is
content that nobody else has.
"""

import itertools
from collections.abc import Hashable, Sequence

MOONCAKE_BLOCK_TOKENS = 512
"""The blocks of Mooncake's files (kvcache-ai/Mooncake, FAST25-release), and ours where a file has none."""

MAX_TOKENS = 1 << 24
"""Longer prompts and answers are refused: a slip in a file would otherwise take all memory."""


def block_count(tokens: int, block_tokens: int) -> int:
    """How many blocks so many tokens begin."""
    return -(-tokens // block_tokens)


def merged(told: Sequence[int], tokens: int, block_tokens: int, factor: int) -> Sequence[int]:
    """The ids of blocks `factor` times as large. An id also stands for all that lies before it, so the last
    one of a large block names it. A large block of which not all tokens are told gets no id.
    """
    if factor == 1:
        return told
    large = list(told[factor - 1 :: factor])
    if len(told) % factor and len(told) == block_count(tokens, block_tokens):
        large.append(told[-1])
    return large


class BlockIds:
    """The ids of one workload. Ids that a file gives are kept; all others are negative."""

    def __init__(self) -> None:
        self._next = itertools.count(-1, -1)
        self._scopes: dict[Hashable, dict[int, int]] = {}

    def unshared(self, count: int) -> tuple[int, ...]:
        """Ids that no other block has."""
        return tuple(itertools.islice(self._next, count))

    def whole(self, told: Sequence[int], tokens: int, block_tokens: int) -> tuple[int, ...]:
        """The ids of a prompt of which the first ones are told."""
        missing = block_count(tokens, block_tokens) - len(told)
        return (*told, *self.unshared(missing)) if missing else tuple(told)

    def within(self, scope: Hashable, told: Sequence[int]) -> tuple[int, ...]:
        """Ids that mean something in `scope` alone, such as one session."""
        known = self._scopes.setdefault(scope, {})
        found = []
        for each in told:
            if (ours := known.get(each)) is None:
                ours = known[each] = next(self._next)
            found.append(ours)
        return tuple(found)
