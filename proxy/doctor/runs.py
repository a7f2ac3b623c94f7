"""Pure: which of the stored runs that were heard are the probe's, and whether they hold exactly its tokens."""

from collections.abc import Sequence

import msgspec

from kvevents.events import BlockStored, EngineHash

MARK_TOKENS = 8
"""So many tokens in a row of a probe of random words are in no other prompt."""


class Found(msgspec.Struct, frozen=True):
    """The probe's blocks as they were announced."""

    tokens: list[int]
    block_size: int
    batches: tuple[int, ...]
    """Which of the runs are part of it."""
    differs_at: int | None
    """The first token of the probe that is another one there; None if all are the same."""
    offset: int = 0
    """Tokens before them, in blocks that were there already."""

    def token(self, at: int) -> int | None:
        """The token announced at a place of the prompt."""
        return self.tokens[at - self.offset] if 0 <= at - self.offset < len(self.tokens) else None


def find(ours: Sequence[int], heard: Sequence[BlockStored]) -> Found | None:
    """The announced blocks that are the probe's; None if none look like it."""
    chains = _chains(heard)
    mark = _Mark(ours)
    marked = [chain for chain in chains if mark.is_in(chain.tokens)]
    if not marked:
        return None
    chain = max(marked, key=lambda c: len(c.tokens))
    return _compared(ours, chain)


class _Chain:
    """Runs that follow each other."""

    def __init__(self, at: int, event: BlockStored) -> None:
        self.begins = event.parent_block_hash is None
        self.last: EngineHash = event.block_hashes[-1]
        self.tokens = list(event.token_ids)
        self.block_size = event.block_size
        self.batches = [at]

    def follow(self, at: int, event: BlockStored) -> None:
        self.last = event.block_hashes[-1]
        self.tokens += event.token_ids
        self.batches.append(at)


def _chains(heard: Sequence[BlockStored]) -> list[_Chain]:
    chains: list[_Chain] = []
    for at, event in enumerate(heard):
        if not event.block_hashes or event.block_size <= 0:
            continue
        before = next((c for c in chains if c.last == event.parent_block_hash), None)
        if before is not None:
            before.follow(at, event)
        else:
            chains.append(_Chain(at, event))
    return chains


class _Mark:
    """Some tokens from the middle of the probe: not the template's, and few of the answer's."""

    def __init__(self, ours: Sequence[int]) -> None:
        middle = len(ours) // 2
        self._tokens = list(ours[max(0, middle - MARK_TOKENS // 2) :][:MARK_TOKENS])

    def is_in(self, tokens: Sequence[int]) -> bool:
        size = len(self._tokens)
        return bool(size) and any(tokens[n : n + size] == self._tokens for n in range(len(tokens) - size + 1))


def _compared(ours: Sequence[int], chain: _Chain) -> Found:
    size, theirs = chain.block_size, chain.tokens
    offset = 0
    if not chain.begins:
        fits = [
            n
            for n in range(size, len(ours), size)
            if list(ours[n : n + len(theirs)]) == theirs[: len(ours) - n]
        ]
        offset = fits[0] if fits else 0
    reach = min(len(ours) - offset, len(theirs))
    differs = next((offset + n for n in range(reach) if ours[offset + n] != theirs[n]), None)
    if differs is None and chain.begins and reach < len(ours) // size * size:
        differs = reach  # it ended before our last full block
    return Found(theirs, size, tuple(chain.batches), differs, offset)
