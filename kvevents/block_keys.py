"""Two blocks have one key exactly when they hold the same prefix: tokens, adapter, salt and multi-modal content.

The key of a block is a keyed hash of its parent's key, its tokens and its extra keys in one canonical form, so
that it can be computed from a prompt and from an engine's event alike. The secret never leaves the process:
nobody can search for prompts that collide.
"""

import hashlib
import secrets
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvevents.events import BlockStored, Reason

_SECRET_BYTES = 32
_KEY_BYTES = 8
_MAX_DEPTH = 8  # vLLM nests twice: the block's list, and a pair for a multi-modal item


class UnkeyableRun(ValueError):  # noqa: N818  # a stranger's data, not a failure of ours
    """A run whose blocks cannot have keys; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine's prefix cache is asked for: tokens, and what else decides whether blocks may be shared."""

    token_ids: Sequence[int]
    lora_name: str | None = None
    cache_salt: str | None = None


class BlockHasher:
    """Makes block keys: 64-bit integers, comparable only among keys made with the same secret."""

    def __init__(self, secret: bytes | None = None) -> None:
        """`secret`: any bytes; random for this process when None."""
        key = hashlib.blake2b(secret if secret is not None else secrets.token_bytes(_SECRET_BYTES)).digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=_KEY_BYTES)
        root = self._keyed.copy()
        root.update(b"root")
        self._root = root.digest()

    def of_prompt(self, prompt: Prompt, block_size: int) -> list[int]:
        """The keys of the prompt's full blocks, ending before a block with a token no engine can have.

        Raises ValueError if `block_size` (tokens) is not positive.
        """
        return list(self.iter_prompt(prompt, block_size))

    def iter_prompt(self, prompt: Prompt, block_size: int) -> Iterator[int]:
        """As `of_prompt`, one key at a time: a prompt nobody has cached costs one hash."""
        if block_size <= 0:
            raise ValueError(f"block_size must be positive, not {block_size}")
        salt = [prompt.cache_salt] if prompt.cache_salt else []
        first = _canonical_bytes(prompt.lora_name or None, salt)
        later = _canonical_bytes(prompt.lora_name or None, [])
        key: int | None = None
        for end in range(block_size, len(prompt.token_ids) + 1, block_size):
            try:
                tokens = token_bytes(prompt.token_ids[end - block_size : end])
            except UnkeyableRun:
                return
            key = self.of_block(key, tokens, first if key is None else later)
            yield key

    def of_run(self, parent_key: int | None, event: BlockStored) -> list[int]:
        """The keys of an event's blocks; `parent_key` is None for a run that begins a prompt.

        Raises UnkeyableRun for a run that is misaligned, or has impossible tokens or extra keys.
        """
        keys = []
        key = parent_key
        for tokens, extra in blocks_of_run(event):
            key = self.of_block(key, tokens, extra)
            keys.append(key)
        return keys

    def of_block(self, parent_key: int | None, tokens: bytes, extra: bytes) -> int:
        """The key of one block: `tokens` as `token_bytes` gives them, `extra` as `canonical_extra` does."""
        block = self._keyed.copy()
        block.update(self._root if parent_key is None else parent_key.to_bytes(_KEY_BYTES, "little"))
        block.update(extra)  # tells its own length
        block.update(tokens)
        return int.from_bytes(block.digest(), "little")


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """The tokens, 32 bits each. Raises UnkeyableRun for one that does not fit."""
    try:
        return array("I", token_ids).tobytes()
    except (OverflowError, TypeError, ValueError) as error:
        raise UnkeyableRun(Reason.TOKENS) from error


def blocks_of_run(event: BlockStored) -> list[tuple[bytes, bytes]]:
    """The tokens and extra keys of each block of a run, ready for `BlockHasher.of_block`. Raises UnkeyableRun."""
    count, size = len(event.block_hashes), event.block_size
    extra_keys = event.extra_keys or None
    if size <= 0 or count * size != len(event.token_ids):
        raise UnkeyableRun(Reason.MISALIGNED)
    if extra_keys is not None and len(extra_keys) != count:
        raise UnkeyableRun(Reason.MISALIGNED)
    tokens = token_bytes(event.token_ids)
    width = len(tokens) // count if count else 0
    plain = canonical_extra(event.lora_name, event.lora_id, None)
    blocks = []
    for i in range(count):
        entry = extra_keys[i] if extra_keys is not None else None
        extra = canonical_extra(event.lora_name, event.lora_id, entry) if entry else plain
        blocks.append((tokens[i * width : (i + 1) * width], extra))
    return blocks


def canonical_extra(lora_name: str | None, lora_id: int | None, entry: Any) -> bytes:
    """One byte string for all the ways to write a block's adapter and extra keys.

    The adapter is counted once, though engines also put its name in front of the extra keys. A number without
    a name identifies an adapter of that engine only, so no prompt has it. Raises UnkeyableRun.
    """
    parts = list(entry) if isinstance(entry, list | tuple) else [] if entry is None else [entry]
    if lora_name and parts and parts[0] == lora_name:
        del parts[0]
    return _canonical_bytes(lora_name or lora_id, parts)


def _canonical_bytes(adapter: str | int | None, parts: list[Any]) -> bytes:
    out: list[bytes] = []
    _canonical([adapter, parts], out, _MAX_DEPTH)
    return b"".join(out)


def _canonical(value: Any, out: list[bytes], depth: int) -> None:
    if depth == 0:
        raise UnkeyableRun(Reason.EXTRA_KEYS)
    if isinstance(value, list | tuple):
        out.append(b"l%d:" % len(value))
        for item in value:
            _canonical(item, out, depth - 1)
        return
    if isinstance(value, str):
        tag, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        tag, data = b"b", value
    elif value is None or isinstance(value, bool | int | float):
        tag, data = b"n", f"{type(value).__name__} {value!r}".encode()
    else:
        raise UnkeyableRun(Reason.EXTRA_KEYS)
    out.append(b"%c%d:" % (tag, len(data)))
    out.append(data)
