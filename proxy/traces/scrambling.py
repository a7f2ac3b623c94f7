"""What a recording has in the place of a block or a session is equal where that is equal, and tells nothing
else: whoever lacks its salt cannot find out what stands behind it, nor whether something known does.

SipHash-2-4 (Aumasson and Bernstein, 2012) is a keyed function made for short inputs; here it takes many keys
of blocks at once. A salt is of one recording, is never written, and goes with the process.
"""

import hashlib
import secrets

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

ID_BITS = 53
"""Ids below 2**53 are read alike by every reader of JSON. Among a million blocks two share one with a
probability below 2**-14."""

_SALT_BYTES = 16
_CONSTANTS = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_LENGTH = np.uint64(8 << 56)
_FINAL = np.uint64(0xFF)
_WORD_BITS = 64
_SHIFT = np.uint64(_WORD_BITS - ID_BITS)


class Scrambler:
    """Names blocks and sessions in one recording."""

    def __init__(self, salt: bytes | None = None) -> None:
        """`salt`: 16 bytes that nobody else knows; drawn if it is None."""
        self._salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt

    def ids(self, keys: Words) -> list[int]:
        """The ids of blocks, below 2**53."""
        found: list[int] = (siphash(self._salt, keys) >> _SHIFT).tolist()
        return found

    def session(self, client: str | None, name: str) -> str:
        """What stands for a session of a client."""
        whole = f"{client or ''}\0{name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(whole, key=self._salt, digest_size=8).hexdigest()


def siphash(key: bytes, words: Words) -> Words:
    """SipHash-2-4 of each word by itself, as the eight bytes that it is on a little-endian machine."""
    low, high = np.frombuffer(key, dtype="<u8", count=2)
    v0, v1, v2, v3 = (
        np.full(words.shape, half ^ np.uint64(constant), dtype=np.uint64)
        for half, constant in zip((low, high, low, high), _CONSTANTS, strict=True)
    )
    for block in (words, _LENGTH):
        v3 ^= block
        for _ in range(2):
            _round(v0, v1, v2, v3)
        v0 ^= block
    v2 ^= _FINAL
    for _ in range(4):
        _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _round(v0: Words, v1: Words, v2: Words, v3: Words) -> None:
    v0 += v1
    _rotate(v1, 13)
    v1 ^= v0
    _rotate(v0, 32)
    v2 += v3
    _rotate(v3, 16)
    v3 ^= v2
    v0 += v3
    _rotate(v3, 21)
    v3 ^= v0
    v2 += v1
    _rotate(v1, 17)
    v1 ^= v2
    _rotate(v2, 32)


def _rotate(words: Words, bits: int) -> None:
    over = words >> np.uint64(_WORD_BITS - bits)
    words <<= np.uint64(bits)
    words |= over
