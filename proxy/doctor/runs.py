"""Finds the probe's runs among the stored runs that were heard, and compares their tokens with the probe's.
Pure.

A busy engine announces a thousand runs while its doctor waits for one, so each is looked at once, and a
prompt that has grown far longer than the probe is dropped.
"""

from array import array
from collections.abc import Sequence

import msgspec

from kvevents import BlockStored, EngineHash

MARK_TOKENS = 8
"""The length of a mark: so many tokens in a row of a probe of random words are in no other prompt."""

MAX_CHAINS = 10_000
"""The most prompts that are followed because they may be the probe; an engine stores a run or a few for each
request."""

_FAR = 4  # a prompt that has so many times the probe's length without the mark is another one


class Found(msgspec.Struct, frozen=True):
    """The probe's blocks as they were announced. Times are seconds since the epoch."""

    tokens: list[int]
    block_size: int
    engine_ts: float
    """When the first of them was announced, by the engine's clock."""
    heard_ts: float
    """When it was heard, by the clock here."""
    differs_at: int | None
    """The first token of the probe that differs there; None if none does."""
    offset: int = 0
    """The number of tokens before these blocks, in blocks that were there already."""
    lookahead: int = 0
    """The number of tokens that must follow a block before it is announced."""

    def token(self, at: int) -> int | None:
        """The announced token at a position of the prompt; None if it was not announced."""
        return self.tokens[at - self.offset] if 0 <= at - self.offset < len(self.tokens) else None


class Search:
    """Gets stored runs, one by one, and knows which of them are the probe's."""

    def __init__(self, ours: Sequence[int]) -> None:
        """`ours`: the probe's tokens."""
        self._ours = list(ours)
        # From the middle of the probe, where no template is, and little that an answer may repeat.
        middle = len(self._ours) // 2
        self._mark = _bytes_of(self._ours[max(0, middle - MARK_TOKENS // 2) :][:MARK_TOKENS])
        self._chains: dict[EngineHash, list[_Chain]] = {}  # by the hash of their last block
        self._count = 0
        self._marked: list[_Chain] = []
        self.block_size: int | None = None
        """The block size of the first run; None before it."""

    def add(self, event: BlockStored, engine_ts: float, heard_ts: float) -> None:
        """A run was heard. Times are seconds since 1970, by the engine's clock and by the clock here."""
        if not event.block_hashes or not event.token_ids or event.block_size <= 0:
            return  # a placeholder
        if self.block_size is None:
            self.block_size = event.block_size
        if not self._mark:
            return
        tokens = _array_of(event.token_ids)
        if tokens is None:
            return
        chain = self._followed(event.parent_block_hash)
        if chain is None:
            if self._count >= MAX_CHAINS:
                return
            begins = event.parent_block_hash is None
            chain = _Chain(event, begins=begins, engine_ts=engine_ts, heard_ts=heard_ts)
            self._count += 1
        if chain.take(tokens, self._mark):
            self._marked.append(chain)
        if not chain.marked and len(chain.tokens) > _FAR * len(self._ours):
            self._count -= 1
            return
        self._chains.setdefault(event.block_hashes[-1], []).append(chain)

    def _followed(self, parent: EngineHash | None) -> "_Chain | None":
        """The first prompt that ends with that block; its end is about to move on."""
        chains = self._chains.get(parent) if parent is not None else None
        if not chains:
            return None
        chain = chains.pop(0)
        if not chains and parent is not None:
            del self._chains[parent]
        return chain

    def found(self) -> Found | None:
        """The announced blocks that are the probe's; None if none seem to be."""
        if not self._marked:
            return None
        return _compared(self._ours, max(self._marked, key=lambda chain: len(chain.tokens)))

    def is_over(self) -> bool:
        """Whether all full blocks of the probe were announced, or at least some that are exactly its own."""
        found = self.found()
        return found is not None and (
            found.differs_at is None
            or len(found.tokens) >= (len(self._ours) - found.lookahead) // found.block_size * found.block_size
        )


class _Chain:
    """Runs that follow each other: a prompt."""

    __slots__ = ("begins", "block_size", "engine_ts", "heard_ts", "lookahead", "marked", "tokens")

    def __init__(self, first: BlockStored, *, begins: bool, engine_ts: float, heard_ts: float) -> None:
        self.begins = begins
        self.block_size = first.block_size
        self.lookahead = first.lookahead
        self.engine_ts = engine_ts
        self.heard_ts = heard_ts
        self.tokens = array("I")
        self.marked = False

    def take(self, tokens: "array[int]", mark: bytes) -> bool:
        """Append these tokens. Returns whether the mark came with them."""
        start = max(0, len(self.tokens) - MARK_TOKENS + 1)
        self.tokens += tokens
        if self.marked or not _is_in(mark, self.tokens[start:]):
            return False
        self.marked = True
        return True


def _bytes_of(tokens: Sequence[int]) -> bytes:
    """The tokens, four bytes each; empty if one of them cannot be an engine's."""
    read = _array_of(tokens)
    return b"" if read is None else read.tobytes()


def _array_of(tokens: Sequence[int]) -> "array[int] | None":
    """The tokens, 32 bits each; None if one of them cannot be an engine's."""
    try:
        return array("I", tokens)
    except (OverflowError, TypeError):
        return None


def _is_in(mark: bytes, tokens: "array[int]") -> bool:
    there = tokens.tobytes()
    at = there.find(mark)
    while at != -1 and at % tokens.itemsize:  # a match across the bounds of tokens is none
        at = there.find(mark, at + 1)
    return at != -1


def _compared(ours: list[int], chain: _Chain) -> Found:
    size, theirs = chain.block_size, chain.tokens.tolist()
    offset = 0
    if not chain.begins:
        fits = [
            n for n in range(size, len(ours), size) if ours[n : n + len(theirs)] == theirs[: len(ours) - n]
        ]
        offset = fits[0] if fits else 0
    reach = min(len(ours) - offset, len(theirs))
    differs = next((offset + n for n in range(reach) if ours[offset + n] != theirs[n]), None)
    if differs is None and chain.begins and reach < (len(ours) - chain.lookahead) // size * size:
        differs = reach  # the prompt ended before the probe's last full block
    return Found(theirs, size, chain.engine_ts, chain.heard_ts, differs, offset, chain.lookahead)
