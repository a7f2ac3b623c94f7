"""A block is named by what the workload says of it: two blocks have one name exactly if workload and length
say that they hold the same tokens after the same blocks.

The names are also the keys of the index: nothing is hashed, and no token is made. Blocks of an engine lie
anywhere in the blocks of a workload; the block of the workload in which the last token lies, and how far into
it, says what an engine's block holds.
"""

from collections.abc import Sequence
from itertools import count

import numpy as np

from kvevents import KEY_BITS, BlockHasher, BlockRemoved, BlockStored, Digests, Event, Keys, Prompt
from proxy.simulation.engine.block_pool import Name
from proxy.simulation.replay.job import Job
from proxy.traces.workload import TraceRequest

MEDIUM = "GPU"
_KIND = "full_attention"
_NO_TOKENS = [0]
"""Events must have tokens; these are not looked at."""
_GENERATED = 1 << 59
"""Numbers of generated blocks begin here: nobody else has their content."""
_MASK = (1 << KEY_BITS) - 1
_SPREAD = 0x9E3779B97F4A7C15 & _MASK
_HALF = KEY_BITS // 2


def _mixed(numbers: Keys) -> Keys:
    """Other numbers for different ones, without a pattern, as tables of keys expect. Each step can be undone:
    multiplying by an odd number modulo 2**60, and adding the upper half to the lower one bit by bit.
    """
    numbers = numbers * np.uint64(_SPREAD) & np.uint64(_MASK)
    numbers ^= numbers >> np.uint64(_HALF)
    return numbers * np.uint64(_SPREAD) & np.uint64(_MASK)


class Names:
    """Names of blocks for one run. Positive integers below 2**60, as keys of the index are."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._numbers: dict[tuple[str | None, int], int] = {}
        self._generated = count(_GENERATED)

    def of_prompt(self, request: TraceRequest, block_size: int | None = None) -> Keys:
        """The names of a prompt's whole blocks, in order; `block_size`: if it is not that of the engines."""
        size, model, numbers = block_size or self.block_size, request.model, self._numbers
        whole = min(request.input_tokens, len(request.blocks) * request.block_tokens) // size
        dense = np.fromiter(
            (numbers.setdefault((model, block), len(numbers)) for block in request.blocks),
            np.uint64,
            len(request.blocks),
        )
        last = np.arange(size - 1, whole * size, size, dtype=np.int64)
        within, behind = np.divmod(last, request.block_tokens)
        return _mixed(
            dense[within] * np.uint64(request.block_tokens) + behind.astype(np.uint64) + np.uint64(1)
        )

    def generated(self) -> int:
        """The name of a block that was not in the workload."""
        number = next(self._generated) * _SPREAD & _MASK
        number ^= number >> _HALF
        return number * _SPREAD & _MASK


class NamedContents:
    """`Contents` of jobs. Copies that are removed together are told in one event, which means the same."""

    def __init__(self, names: Names, *, told: bool = True) -> None:
        """`told`: whether somebody hears the events."""
        self._names = names
        self._told = told

    def name_blocks(self, work: Job) -> None:
        """As `Contents`: what the workload does not name is generated, or of a kind with it."""
        missing = work.length // self._names.block_size - len(work.hashes)
        if missing > 0:
            work.hashes.extend(self._names.generated() for _ in range(missing))

    def stored(self, work: Job, first: int, last: int, events: list[Event]) -> None:
        """As `Contents`."""
        if self._told:
            events.append(
                BlockStored(
                    block_hashes=work.hashes[first:last],
                    parent_block_hash=work.hashes[first - 1] if first else None,
                    token_ids=_NO_TOKENS,
                    block_size=self._names.block_size,
                    medium=MEDIUM,
                    group_idx=0,
                    kv_cache_spec_kind=_KIND,
                )
            )

    def removed(self, names: list[Name], events: list[Event]) -> None:
        """As `Contents`."""
        if self._told:
            events.append(BlockRemoved(block_hashes=names, medium=MEDIUM, group_idx=0))


class GivenKeys(BlockHasher):
    """Keys that are given: those of a prompt with it (`prompt`), those of a run as its engine's hashes."""

    def __init__(self, names: Names) -> None:
        super().__init__(b"")
        self._names = names

    def prompt(self, request: TraceRequest, keys: Keys) -> Prompt:
        """The prompt of a request; `keys`: the names of its blocks, as the engines have them."""
        made = Prompt(range(request.input_tokens))
        made.keys[self] = request
        made.keys[self, self._names.block_size] = keys
        return made

    def prompt_keys(self, prompt: Prompt, block_size: int, lookahead: int = 0) -> Keys:  # noqa: ARG002  # none
        """As `BlockHasher`, by what the workload says of the prompt."""
        keys: Keys | None = prompt.keys.get((self, block_size))
        if keys is None:
            keys = self._names.of_prompt(prompt.keys[self], block_size)
            prompt.keys[self, block_size] = keys
        return keys

    def digests(self, event: BlockStored) -> Digests:
        """As `BlockHasher`: the keys themselves."""
        return Digests(None, list(map(int, event.block_hashes)))

    def of_digests(self, parent_key: int | None, digests: Digests) -> Keys:  # noqa: ARG002  # given
        """As `BlockHasher`."""
        return np.array(digests.numbers(), np.uint64)

    def of_block(self, parent_key: int | None, digest: int) -> int:  # noqa: ARG002  # given
        """As `BlockHasher`."""
        return digest

    def words_of_singles(self, events: Sequence[BlockStored]) -> Keys:
        """As `BlockHasher`: the keys themselves."""
        return np.array([event.block_hashes[0] for event in events], np.uint64)

    def of_singles(self, parent_keys: Sequence[int | None], words: Keys) -> Keys:  # noqa: ARG002  # given
        """As `BlockHasher`."""
        return words
