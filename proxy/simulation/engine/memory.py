"""Invariant: what a block holds is what was last written into it, whatever the block tables believe.

The stand-in computes no attention, but its output must depend on the same bytes a real engine's would:
on the KV found in the request's blocks, not on the prompt that was asked for. So each block remembers the
tokens written into it and the state of the context before them; a state is a running digest of every token
so far. Reading a block table back joins those states. If each block continues the one before it, the
result is the digest of the prompt; if a block was pulled from someone else's memory, or was overwritten,
it is something else, and so is the text - with status 200, as in vLLM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_MODULUS = (1 << 61) - 1
_BASE = 1_000_003_769
_FRACTURE = 0x9E3779B97F4A7C15


def initial_state(model: str, lora: str | None) -> int:
    """The state before the first token, which differs by model and adapter."""
    return int.from_bytes(f"{model}/{lora or ''}".encode(), "big") % _MODULUS


def advance(state: int, tokens: Iterable[int]) -> int:
    """The state after these tokens."""
    for token in tokens:
        state = (state * _BASE + token + 1) % _MODULUS
    return state


@dataclass(slots=True)
class Content:
    """What lies in one block: the state of the context before it, its tokens, the state after them."""

    before: int
    tokens: list[int] = field(default_factory=list)
    after: int = 0

    def to_wire(self) -> tuple[int, list[int]]:
        """What a transfer copies."""
        return (self.before, self.tokens)

    @classmethod
    def from_wire(cls, wire: tuple[int, Sequence[int]]) -> "Content":
        """A copy of what lay in the other engine's block."""
        before, tokens = wire
        return cls(before, list(tokens), advance(before, tokens))

    @classmethod
    def garbage(cls, block: int) -> "Content":
        """What a reader finds in memory that was given to another request meanwhile."""
        return cls.from_wire((_FRACTURE ^ block, [block]))


class Memory:
    """The bytes of every block of one rank. Freeing a block does not change them."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._contents: dict[int, Content] = {}

    def read(self, block: int) -> Content:
        """What lies in a block now; garbage if nothing was ever written there."""
        return self._contents.get(block) or Content.garbage(block)

    def replace(self, block: int, content: Content) -> None:
        """A transfer has written a whole block."""
        self._contents[block] = content

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int], state: int) -> int:
        """Compute the KV of `tokens` at positions `start` on, in the context `state`; the state after
        them.
        """
        done = 0
        while done < len(tokens):
            index, offset = divmod(start + done, self._block_size)
            block = table[index]
            part = tokens[done : done + self._block_size - offset]
            before, kept = state, []
            if offset:
                old = self.read(block)
                before, kept = old.before, old.tokens[:offset]
            state = advance(state, part)
            self._contents[block] = Content(before, [*kept, *part], state)
            done += len(part)
        return state

    def state(self, table: Sequence[int], length: int, initial: int) -> int:
        """What attention over the first `length` positions of a block table sees."""
        state = initial
        full, rest = divmod(length, self._block_size)
        for block in table[:full]:
            content = self.read(block)
            state = content.after if content.before == state else self._fracture(state, content)
        if rest:
            content = self.read(table[full])
            part = Content.from_wire((content.before, content.tokens[:rest]))
            state = part.after if part.before == state else self._fracture(state, part)
        return state

    @staticmethod
    def _fracture(state: int, content: Content) -> int:
        return (state * _FRACTURE + content.before * _BASE + content.after) % _MODULUS
