"""Two blocks have the same key exactly when they hold the same prefix: tokens, adapter, salt and multi-modal
content.

A key continues the key before it, and holds all that is needed to continue from it. It is made in two steps,
so that numpy makes thousands at once: the digest of a block is two secret multilinear hashes of its tokens
(and of the tokens behind it that its engine's hash covers), and the key adds up the digests of a band of 127
blocks. docs/adr/0001-block-keys.md has the construction, and the proof that two prefixes share a key with a
probability below 2**-51 a band, whoever chooses them.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvevents.contents import (
    UnkeyableRun,
    canonical_bytes,
    canonical_extra,
    plain_extra,
    readable_tokens,
    token_array,
    windows,
)
from kvevents.events import BlockStored, Reason

Keys = npt.NDArray[np.uint64]
"""Keys of consecutive blocks, in their order."""

KEY_BITS = 60
"""A key is a positive number below 2**60, which Python holds in 32 bytes; one more bit would cost 16."""

_SECRET_BYTES = 32
# Bits for a block's place in its band, which is never 0. The other 53 bits of a key are a sum modulo 2**53.
_PLACE_BITS = 7
_BAND = (1 << _PLACE_BITS) - 1
_SUM_BITS = KEY_BITS - _PLACE_BITS
_SUM_MASK = (1 << _SUM_BITS) - 1
_KEPT = np.uint64(_SUM_MASK)
_MASK_64 = 2**64 - 1
_MASK_32 = 2**32 - 1
_UPPER = np.uint64(32)
# Fewer tokens than this cost more in numpy's calls than in Python's arithmetic.
_PYTHON_TOKENS = 80
# The largest block, in tokens; hybrid models have some thousand.
_MAX_BLOCK_SIZE = 1 << 16
# The most tokens behind a block that count; draft models look one to some ten ahead.
_MAX_LOOKAHEAD = 64
# Multipliers that are kept, for all block sizes together; a fleet has one or two sizes.
_MAX_MULTIPLIERS = 1 << 17
# Offsets that are kept (one for each adapter, salt or image), and the longest content whose offset is kept.
# Each is quickly made again.
_MAX_OFFSETS = 4096
_MAX_OFFSET_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is looked up in an engine's prefix cache: tokens, and what else decides whether blocks may be
    shared.
    """

    token_ids: Sequence[int] | npt.NDArray[Any]
    """An `array("I")` or a numpy array of `uint32` is read where it lies; anything else is copied."""
    lora_name: str | None = None
    cache_salt: str | None = None
    keys: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The keys that a `BlockHasher` has made of the prompt so far."""

    def block_keys(self) -> "dict[int, Keys]":
        """The keys of the prompt's whole blocks that were made so far, by the tokens of a block. MUST NOT be
        changed.

        Where some were made with a lookahead and some without, those without. They take an eighth of the
        memory of the tokens.
        """
        found: dict[int, Keys] = {}
        for (_, size, lookahead), made in self.keys.items():
            if lookahead == 0 or size not in found:
                found[size] = made
        return found


class _Offset(NamedTuple):
    """What is added to both sums of a block before their lower halves are cut off: `e` in
    docs/adr/0001-block-keys.md.
    """

    e: int
    f: int
    row: Keys
    """Both numbers as an array, which MUST NOT be changed."""


class BlockHasher:
    """Makes block keys: positive integers below 2**60 that can be compared only if they were made with the
    same secret.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        """`secret`: any bytes. None: a random one for this process."""
        key = hashlib.blake2b(secret if secret is not None else secrets.token_bytes(_SECRET_BYTES)).digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=16)
        self._root = self._seed(b"root")
        self._place = self._numbers(b"places", 2 * _BAND).reshape(_BAND, 2)
        self._place_pairs: list[tuple[int, int]] = [(a, b) for a, b in self._place.tolist()]
        self._tiled = self._place
        self._multipliers: dict[int, tuple[Keys, list[int]]] = {}
        self._offsets: dict[tuple[int, int, bytes], _Offset] = {}

    # ---- of prompts ---------------------------------------------------------------------------------------

    def of_prompt(self, prompt: Prompt, block_size: int, lookahead: int = 0) -> list[int]:
        """`prompt_keys` as a list."""
        keys: list[int] = self.prompt_keys(prompt, block_size, lookahead).tolist()
        return keys

    def prompt_keys(self, prompt: Prompt, block_size: int, lookahead: int = 0) -> Keys:
        """The keys of the prompt's full blocks, up to a block with a token that no engine can have.

        `lookahead`: how many tokens behind a block count; a block that fewer tokens follow has no key. Made
        once for each prompt, block size and lookahead; MUST NOT be changed. Raises ValueError if `block_size`
        (tokens) is not positive.
        """
        if block_size <= 0:
            raise ValueError(f"block_size must be positive, not {block_size}")
        made: Keys | None = prompt.keys.get((self, block_size, lookahead))
        if made is None:
            made = prompt.keys[self, block_size, lookahead] = self._prompt_keys(prompt, block_size, lookahead)
        return made

    def _prompt_keys(self, prompt: Prompt, block_size: int, lookahead: int) -> Keys:
        tokens = readable_tokens(prompt.token_ids)
        blocks = (len(tokens) - lookahead) // block_size
        if blocks <= 0:
            return np.empty(0, np.uint64)
        later = plain_extra(prompt.lora_name, None)
        words = self._sums(tokens[: blocks * block_size], block_size)
        if lookahead:
            multipliers = self._multipliers_for(block_size + lookahead)[0]
            for place in range(block_size, block_size + lookahead):
                behind = tokens[place::block_size][:blocks].astype(np.uint64)
                words += behind[:, np.newaxis] * multipliers[place]
        salt, first = prompt.cache_salt, words[0].copy() if prompt.cache_salt else None
        words += self._offset(block_size, lookahead, later).row
        if salt and first is not None:
            salted = canonical_bytes(prompt.lora_name or None, [salt])
            words[0] = first + self._offset(block_size, lookahead, salted).row
        words >>= _UPPER
        return self._chain(None, words)

    # ---- of runs ------------------------------------------------------------------------------------------

    def of_run(self, parent_key: int | None, event: BlockStored) -> list[int]:
        """The keys of an event's blocks; `parent_key` is None for a run that begins a prompt.

        Raises UnkeyableRun for a run that is misaligned, or has impossible tokens or extra keys.
        """
        keys: list[int] = self.of_digests(parent_key, self.digests(event)).tolist()
        return keys

    def digests(self, event: BlockStored) -> "Digests":
        """The digests of a run's blocks, which do not depend on what came before the run. Raises UnkeyableRun
        as `of_run` does.
        """
        count, size = len(event.block_hashes), event.block_size
        extra_keys = event.extra_keys or None
        if size <= 0 or count * size != len(event.token_ids):
            raise UnkeyableRun(Reason.MISALIGNED)
        if size > _MAX_BLOCK_SIZE:
            raise UnkeyableRun(Reason.BLOCK_SIZE)
        if extra_keys is not None and len(extra_keys) != count:
            raise UnkeyableRun(Reason.MISALIGNED)
        token_ids, lookahead = event.token_ids, event.lookahead
        if lookahead > _MAX_LOOKAHEAD:
            raise UnkeyableRun(Reason.LOOKAHEAD)
        if event.lookahead_token_ids is not None:
            token_ids = windows(event)
        tokens = token_array(token_ids)
        plain = plain_extra(event.lora_name, event.lora_id)
        special = (
            {
                i: canonical_extra(event.lora_name, event.lora_id, entry)
                for i, entry in enumerate(extra_keys)
                if entry
            }
            if extra_keys is not None
            else {}
        )
        if len(tokens) < _PYTHON_TOKENS:
            return self._few_digests(token_ids, size, lookahead, plain, special)
        words = self._sums(np.frombuffer(tokens, np.uint32), size + lookahead)
        if not special:
            words += self._offset(size, lookahead, plain).row
        else:
            rows = [self._offset(size, lookahead, special.get(i, plain))[:2] for i in range(count)]
            words += np.array(rows, dtype=np.uint64)
        words >>= _UPPER
        return Digests(words, None)

    def words_of_singles(self, events: Sequence[BlockStored]) -> Keys:
        """`Digests.words` of several runs of one block each. The runs MUST have one block size, lookahead and
        adapter, and no extra keys.

        Raises UnkeyableRun if one has impossible tokens.
        """
        first = events[0]
        size, lookahead = first.block_size, first.lookahead
        each = (event.token_ids for event in events) if not lookahead else map(windows, events)
        tokens = token_array(list(chain.from_iterable(each)))
        words = self._sums(np.frombuffer(tokens, np.uint32), size + lookahead)
        words += self._offset(size, lookahead, plain_extra(first.lora_name, first.lora_id)).row
        words >>= _UPPER
        return words

    def of_digests(self, parent_key: int | None, digests: "Digests") -> Keys:
        """The keys of a run with these digests that follows the block `parent_key` (None: that begins a
        prompt).
        """
        if digests.words is not None:
            return self._chain(parent_key, digests.words)
        few = []
        for digest in digests.numbers():
            parent_key = self.of_block(parent_key, digest)
            few.append(parent_key)
        return np.array(few, np.uint64)

    def of_singles(self, parent_keys: Sequence[int | None], words: Keys) -> Keys:
        """The keys of single blocks, each behind a parent of its own; `words`: as in `Digests`."""
        befores = [self._after(key) for key in parent_keys]
        at = np.array([place for place, _ in befores], np.int64)
        terms = words * self._place[at]
        keys: Keys = terms[:, 0] + terms[:, 1]
        keys += np.array([total for _, total in befores], np.uint64)
        keys &= _KEPT
        keys |= _PLACES[at]
        return keys

    def of_block(self, parent_key: int | None, digest: int) -> int:
        """The key of one block behind `parent_key`; `digest`: one of `Digests.numbers`."""
        if parent_key is not None and (place := parent_key >> _SUM_BITS) < _BAND:
            total = parent_key  # the place in it is cut off below
        else:
            place, total = self._after(parent_key)
        upper, lower = self._place_pairs[place]
        return (place + 1) << _SUM_BITS | (
            (total + (digest >> 32) * upper + (digest & _MASK_32) * lower) & _SUM_MASK
        )

    def _few_digests(
        self, tokens: list[int], size: int, lookahead: int, plain: bytes, special: dict[int, bytes]
    ) -> "Digests":
        width = size + lookahead
        multipliers, count = self._multipliers_for(width)[1], len(tokens) // width
        few = []
        e, f, _ = self._offset(size, lookahead, plain)
        for i in range(count):
            if special:
                e, f, _ = self._offset(size, lookahead, special.get(i, plain))
            both = sum(map(mul, tokens[i * width : (i + 1) * width] if count > 1 else tokens, multipliers))
            few.append((both + e & _MASK_64) >> 32 << 32 | ((both >> 128) + f & _MASK_64) >> 32)
        return Digests(None, few)

    # ---- the arithmetic -----------------------------------------------------------------------------------

    def _sums(self, tokens: npt.NDArray[np.uint32], size: int) -> Keys:
        """Two sums for each block, a row each, before the offset is added."""
        sums: Keys = tokens.astype(np.uint64).reshape(-1, size) @ self._multipliers_for(size)[0]
        return sums

    def _chain(self, parent_key: int | None, words: Keys) -> Keys:
        """The keys of consecutive blocks behind `parent_key`; `words`: two for each block, a row each."""
        count = len(words)
        place, seed = self._after(parent_key)
        while len(self._tiled) < place + count:
            self._tiled = np.concatenate([self._tiled, self._tiled])
        terms = words * self._tiled[place : place + count]
        keys = terms[:, 0] + terms[:, 1]
        np.add.accumulate(keys, out=keys)  # as np.cumsum, at half of its cost for short runs
        # From the sum of every block, take what was summed before its band; then add the band's seed and the
        # place.
        start, before = 0, 0
        while start < count:
            end = min(count, start + _BAND - place)
            band = keys[start:end]
            last = band.item(-1)
            band += np.uint64((seed - before) & _MASK_64)
            band &= _KEPT
            band |= _PLACES[place : place + end - start]
            if end < count:
                seed = self._seed(band.item(-1).to_bytes(8, "little"))
            start, before, place = end, last, 0
        return keys

    def _after(self, parent_key: int | None) -> tuple[int, int]:
        """Of the block that follows a key: its place in its band, and the sum that it starts from."""
        if parent_key is None:
            return 0, self._root
        place = parent_key >> _SUM_BITS
        if place < _BAND:
            return place, parent_key & _SUM_MASK
        return 0, self._seed(parent_key.to_bytes(8, "little"))

    def _seed(self, of: bytes) -> int:
        made = self._keyed.copy()
        made.update(of)
        return int.from_bytes(made.digest()[:8], "little") & _SUM_MASK

    def _multipliers_for(self, size: int) -> tuple[Keys, list[int]]:
        found = self._multipliers.get(size)
        if found is None:
            if size + sum(self._multipliers) > _MAX_MULTIPLIERS:
                self._multipliers.clear()
            pairs = self._numbers(b"multipliers", 2 * size).reshape(size, 2)
            # For Python's integers both sums are made in one pass, the second 128 bits above the first.
            both = [a | b << 128 for a, b in pairs.tolist()] if size < _PYTHON_TOKENS else []
            found = self._multipliers[size] = (pairs, both)
        return found

    def _numbers(self, what: bytes, count: int) -> Keys:
        """`count` secret 64-bit numbers. A larger `count` begins with the same ones."""
        made = self._keyed.copy()
        made.update(what)
        return np.frombuffer(hashlib.shake_256(made.digest()).digest(8 * count), np.uint64)

    def _offset(self, size: int, lookahead: int, extra: bytes) -> "_Offset":
        found = self._offsets.get((size, lookahead, extra))
        if found is None:
            if len(self._offsets) >= _MAX_OFFSETS:
                self._offsets.clear()
            made = self._keyed.copy()
            made.update(b"extra" + size.to_bytes(8, "little"))
            if lookahead:
                made.update(b"lookahead" + lookahead.to_bytes(8, "little"))
            made.update(extra)
            digest = made.digest()
            e, f = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
            found = _Offset(e, f, np.array((e, f), np.uint64))
            if len(extra) <= _MAX_OFFSET_BYTES:
                self._offsets[size, lookahead, extra] = found
        return found


_PLACES = np.arange(1, _BAND + 1, dtype=np.uint64) << np.uint64(_SUM_BITS)


class Digests:
    """What the keys of a run's blocks are made of, besides the key before the run. One of the two forms is
    None.
    """

    __slots__ = ("few", "words")

    def __init__(self, words: Keys | None, few: list[int] | None) -> None:
        self.words = words
        self.few = few

    def after(self, blocks: int) -> "Digests":
        """The digests of the run without its first `blocks` blocks."""
        if self.words is None:
            return Digests(None, (self.few or [])[blocks:])
        return Digests(self.words[blocks:], None)

    def numbers(self) -> list[int]:
        """One 64-bit number a block, for `BlockHasher.of_block`."""
        if self.words is None:
            return self.few or []
        numbers: list[int] = (self.words[:, 0] << _UPPER | self.words[:, 1]).tolist()
        return numbers
