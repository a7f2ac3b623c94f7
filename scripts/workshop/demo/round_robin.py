"""Counts how many tokens the demo's turns would have reused if instances took them in turn. Pure.

Every instance keeps all it computed, as the engines of the demo do: their caches are larger than its chats.
"""

from collections.abc import Sequence


class RoundRobin:
    """Instances that only remember which blocks they have computed."""

    def __init__(self, instances: int, block_tokens: int) -> None:
        self._block = block_tokens
        self._caches: list[set[tuple[int, ...]]] = [set() for _ in range(instances)]
        self._next = 0

    def serve(self, prompt: Sequence[int]) -> int:
        """Give the prompt's token ids to the next instance; return how many of them it reuses.

        As in vLLM the last token is always computed and reuse is by whole blocks.
        """
        cache = self._caches[self._next]
        self._next = (self._next + 1) % len(self._caches)
        ends = range(self._block, len(prompt) + 1, self._block)
        prefixes = [tuple(prompt[:end]) for end in ends]
        reused = 0
        for prefix in prefixes:
            if prefix not in cache or len(prefix) >= len(prompt):
                break
            reused = len(prefix)
        cache.update(prefixes)
        return reused
