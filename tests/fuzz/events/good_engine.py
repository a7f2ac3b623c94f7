"""What a well-behaved engine publishes, and a plain model of what it holds: sets of whole prefixes, nothing
clever.

The judge of an index after noise: whatever came before, such an engine must be followed exactly.
"""

import random
from typing import Any

import msgspec

from kvevents import PrefixIndex, Prompt, Slot

_BLOCK = 4

Prefix = tuple[int, ...]


class GoodEngine:
    """An engine process; `batches` are the payloads it has published, from number 0 on."""

    def __init__(self, rng: random.Random) -> None:
        self.batches: list[bytes] = []
        self._rng = rng
        self._held: dict[int, Prefix] = {}
        self._asked: list[Prefix] = []

    def work(self, steps: int) -> None:
        """Publish so many batches."""
        for _ in range(steps):
            self.batches.append(msgspec.msgpack.encode([1.8e9, [self._step()], 0]))

    def reset(self) -> None:
        """Forget all, and say so."""
        self._held.clear()
        self.batches.append(msgspec.msgpack.encode([1.8e9, [{"type": "AllBlocksCleared"}], 0]))

    def _step(self) -> dict[str, Any]:
        rng = self._rng
        chance = rng.random()
        leaves = [name for name, prefix in self._held.items() if not self._has_child(prefix)]
        if chance < 0.25 and leaves:
            gone = rng.choice(leaves)
            del self._held[gone]
            return {"type": "BlockRemoved", "block_hashes": [gone], "medium": "GPU"}
        if chance > 0.97:
            self._held.clear()
            return {"type": "AllBlocksCleared"}
        parent = rng.choice([None, *self._held])
        prefix = self._held[parent] if parent is not None else ()
        names: list[int] = []
        tokens: list[int] = []
        for _ in range(rng.choice((1, 3, 20))):
            block = tuple(rng.getrandbits(17) for _ in range(_BLOCK))
            prefix += block
            tokens += block
            names.append(rng.getrandbits(64))
            self._held[names[-1]] = prefix
        self._asked.append(prefix)
        return {
            "type": "BlockStored",
            "block_hashes": names,
            "parent_block_hash": parent,
            "token_ids": tokens,
            "block_size": _BLOCK,
            "medium": "GPU",
        }

    def _has_child(self, prefix: Prefix) -> bool:
        return any(
            len(other) == len(prefix) + _BLOCK and other[: len(prefix)] == prefix
            for other in self._held.values()
        )

    def difference(self, index: PrefixIndex, slot: Slot) -> str | None:
        """What the index has otherwise than this engine, in words; None if nothing."""
        held = set(self._held.values())
        counted = index.blocks().get(slot, 0)
        if counted != len(held):
            return f"{slot} has {counted} blocks instead of {len(held)}"
        for prompt in self._asked:
            expected = 0
            while prompt[: expected + _BLOCK] in held and expected < len(prompt):
                expected += _BLOCK
            found = index.match(Prompt(prompt)).get(slot, 0)
            if found != expected:
                return f"{slot} has {found} tokens of a prompt instead of {expected}"
        return None
