"""Invariant: two blocks have one hash only if their tokens, their adapter, their salt and all blocks before
them agree.

That is what makes a prefix cache safe: a block's hash covers its parent's. The salt enters with the first
block only and reaches the others through their parents; the adapter's name enters every block.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_ROOT = b"kvproxy stand-in: the parent of first blocks"


def root_hash(seed: str) -> bytes:
    """The parent of first blocks; engines with other seeds have other hashes for everything."""
    return blake2b(_ROOT + seed.encode(), digest_size=32).digest()


ExtraKey = str | list[str | int]
"""A name; or, for an image that reaches into the block, its identifier and where it begins relative to the
block."""


def extra_keys(
    block: int,
    lora: str | None,
    salt: str | None,
    images: Sequence[tuple[str, int, int]] = (),
    block_size: int = 1,
) -> list[ExtraKey] | None:
    """What the hash of a prompt's block number `block` covers besides tokens, as KV events show it.

    `images`: the identifier of each, its first token and the one behind its last.
    """
    keys: list[ExtraKey] = [lora] if lora is not None else []
    first, behind = block * block_size, (block + 1) * block_size
    keys += [[name, start - first] for name, start, end in images if start < behind and end > first]
    if block == 0 and salt:
        keys.append(salt)
    return keys or None


def block_hash(parent: bytes, tokens: Sequence[int], extra: Sequence[ExtraKey] | None) -> bytes:
    """The 32-byte hash of a full block, of its `tokens` and those behind it that count.

    It is the same in every process, as with vLLM's default, sha256.
    """
    digest = blake2b(parent, digest_size=32)
    digest.update(array("I", tokens).tobytes())
    for key in extra or ():
        digest.update(b"\0" + (key if isinstance(key, str) else f"{key[0]}\1{key[1]}").encode())
    return digest.digest()


def int_hash(full: bytes) -> int:
    """The usual form of a hash in events: its low 64 bits, unsigned."""
    return int.from_bytes(full[-8:], "big")
