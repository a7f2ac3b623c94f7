"""A snapshot that is read is, bit for bit, one that was written: anything else is refused, with the reason.

It is one rank of one instance as bytes; all here is pure. In order: eight bytes of magic, the version (32
bits, little-endian), a fingerprint of how its keys were made, the body, and a BLAKE2b digest of all before
it. The body is MessagePack with its long columns as raw bytes, which are copied and never looked at one by
one.
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kvevents.block_keys import KEY_BITS, BlockHasher, Keys, Prompt
from kvevents.events import BlockStored, EngineHash, Reason
from kvevents.exported import ExportedOrphan, ExportedRank, ExportedTier
from kvevents.sequence import Position
from kvevents.source_events import Checkpoint

__all__ = ["Snapshot", "SnapshotError", "decode", "encode", "fingerprint"]

VERSION = 2
"""The version of the format. How keys are made is no part of it: the fingerprint tells that."""

OLDEST_VERSION = 1
"""The oldest version that can be read: version 2 added `lookahead`, which is 0 for every rank of version
1."""

FINGERPRINT_BYTES = 16

# Not text, so that an editor leaves the file alone.
_MAGIC = b"kvproxy\x93"
_HEAD = struct.Struct(f"<8sI{FINGERPRINT_BYTES}s")
_DIGEST_BYTES = 32
_UINT64 = np.dtype("<u8")
# Hashes that one call packs or reads: `encode` runs in a thread, and a long call would stop all other
# threads.
_PIECE = 4096


class SnapshotError(ValueError):
    """The bytes are not a usable snapshot; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of one rank when its source was at a checkpoint."""

    instance: str
    rank: int
    checkpoint: Checkpoint
    blocks: ExportedRank


class _Column(msgspec.Struct, array_like=True):
    """Engine hashes: all of 64 bits, all bytes of one length, or mixed."""

    count: int
    width: int = 0
    """The bytes of each hash; 0 if they are mixed."""
    numbers: bool = False
    packed: bytes = b""
    plain: list[int | bytes] = []


class _Tier(msgspec.Struct, array_like=True):
    name: str
    hashes: _Column
    keys: bytes
    copied: _Column
    copies: list[int]


class _Orphan(msgspec.Struct, array_like=True):
    engine_hash: int | bytes
    parent: int | bytes
    digest: int
    copies: dict[str, int]


class _Body(msgspec.Struct, array_like=True):
    instance: str
    rank: int
    number: int
    digest: bytes
    since_start: bool
    incomplete: bool
    block_size: int
    group_idx: int | None
    tiers: list[_Tier]
    orphans: list[_Orphan]
    uncounted: dict[str, Reason]
    lookahead: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


def fingerprint(hasher: BlockHasher) -> bytes:
    """The same for two hashers exactly when they make the same keys: from one secret, and in the same way.

    The secret cannot be found from it: the secret is random, and this is a hash of some hundred keys that
    were made with it.
    """
    prompt = Prompt(range(1000), lora_name="adapter", cache_salt="salt")
    run = BlockStored([1, 2], None, [1, 2, 3, 4], 2, extra_keys=[["adapter", ["image", 7]], None])
    keys = np.concatenate([hasher.prompt_keys(prompt, 3), np.array(hasher.of_run(None, run), np.uint64)])
    return hashlib.blake2b(keys.astype(_UINT64).tobytes(), digest_size=FINGERPRINT_BYTES).digest()


def encode(snapshot: Snapshot, made_with: bytes) -> bytes:
    """The snapshot as bytes; `made_with`: the `fingerprint` of the hasher whose keys it has."""
    blocks, checkpoint = snapshot.blocks, snapshot.checkpoint
    body = _encode(
        _Body(
            snapshot.instance,
            snapshot.rank,
            checkpoint.position.number,
            checkpoint.position.digest,
            checkpoint.since_start,
            checkpoint.incomplete,
            blocks.block_size,
            blocks.group_idx,
            [
                _Tier(
                    tier.name,
                    _column(tier.hashes),
                    tier.keys.astype(_UINT64).tobytes(),
                    _column(list(tier.copies)),
                    list(tier.copies.values()),
                )
                for tier in blocks.tiers
            ],
            [_Orphan(one.engine_hash, one.parent, one.digest, one.copies) for one in blocks.orphans],
            blocks.uncounted,
            blocks.lookahead,
        )
    )
    head = _HEAD.pack(_MAGIC, VERSION, made_with)
    digest = hashlib.blake2b(head, digest_size=_DIGEST_BYTES)
    digest.update(body)
    return b"".join((head, body, digest.digest()))


def decode(data: bytes, made_with: bytes) -> Snapshot:
    """The snapshot in `data`; `made_with`: as of `encode`. Raises SnapshotError, and nothing else, if it
    cannot be used.
    """
    if len(data) < _HEAD.size + _DIGEST_BYTES or not data.startswith(_MAGIC):
        raise SnapshotError("it is not a snapshot, or not a whole one")
    _, version, made = _HEAD.unpack_from(data)
    whole = memoryview(data)
    if hashlib.blake2b(whole[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES).digest() != data[-_DIGEST_BYTES:]:
        if (
            not OLDEST_VERSION <= version <= VERSION
        ):  # of a later version not even the place of the digest is known
            raise SnapshotError(f"it is broken, or of version {version}; this kvproxy writes {VERSION}")
        raise SnapshotError("it is broken: its checksum is wrong")
    if not OLDEST_VERSION <= version <= VERSION:
        raise SnapshotError(f"it is of version {version}; this kvproxy reads {OLDEST_VERSION} to {VERSION}")
    if made != made_with:
        raise SnapshotError("its keys were made with another secret, or in another way")
    try:
        body = _decode(whole[_HEAD.size : -_DIGEST_BYTES])
        return Snapshot(
            body.instance,
            body.rank,
            Checkpoint(Position(body.number, body.digest), body.since_start, body.incomplete),
            ExportedRank(
                _at_least(1, body.block_size),
                body.group_idx,
                [_tier(tier) for tier in body.tiers],
                [_orphan(one) for one in body.orphans],
                body.uncounted,
                _at_least(0, body.lookahead),
            ),
        )
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"its checksum is right and its content is not: {error}") from None


# ---- columns ----------------------------------------------------------------------------------------------


def _column(hashes: Sequence[EngineHash]) -> _Column:
    pieces = [hashes[at : at + _PIECE] for at in range(0, len(hashes), _PIECE)]
    kinds = {kind for piece in pieces for kind in set(map(type, piece))}
    if kinds == {int}:
        try:
            packed = b"".join(np.array(piece).astype(_UINT64).tobytes() for piece in map(_numbers, pieces))
            return _Column(len(hashes), 8, numbers=True, packed=packed)
        except OverflowError:  # a number below 0, which no vLLM has
            pass
    elif kinds == {bytes}:
        widths = {width for piece in pieces for width in set(map(len, piece))}  # type: ignore[arg-type]  # all bytes
        if len(widths) == 1 and widths != {0}:
            return _Column(len(hashes), widths.pop(), packed=b"".join(hashes))  # type: ignore[arg-type]  # all bytes
    return _Column(len(hashes), plain=list(hashes))


def _numbers(hashes: Sequence[Any]) -> "array[int]":
    return array("Q", hashes)


def _hashes(column: _Column) -> list[EngineHash]:
    found: list[EngineHash] = []
    if not column.width:
        found += column.plain
    elif column.numbers:
        numbers = np.frombuffer(column.packed, _UINT64)
        for at in range(0, len(numbers), _PIECE):
            found += numbers[at : at + _PIECE].tolist()
    else:
        packed, width = column.packed, column.width
        found += [packed[at : at + width] for at in range(0, len(packed), width)]
    if len(found) != column.count or not _are_different(found, column):
        raise ValueError("a column of hashes is not what it says")
    return found


def _are_different(found: list[EngineHash], column: _Column) -> bool:
    if column.width and column.numbers:
        ordered = np.sort(np.frombuffer(column.packed, _UINT64))
        return not (ordered[1:] == ordered[:-1]).any()
    return len(set(found)) == len(found)


def _tier(tier: _Tier) -> ExportedTier:
    hashes = _hashes(tier.hashes)
    keys: Keys = np.frombuffer(tier.keys, _UINT64).astype(np.uint64)
    if len(keys) != len(hashes) or (len(keys) and not 0 < keys.min() <= keys.max() < 1 << KEY_BITS):
        raise ValueError("a column of keys does not fit its hashes")
    copies = dict(zip(_hashes(tier.copied), tier.copies, strict=True))
    if any(count < 1 for count in tier.copies) or (copies and not copies.keys() <= set(hashes)):
        raise ValueError("copies of blocks that are not there")
    return ExportedTier(tier.name, hashes, keys, copies)


def _orphan(orphan: _Orphan) -> ExportedOrphan:
    if not orphan.copies or any(count < 1 for count in orphan.copies.values()):
        raise ValueError("a block that waits has no copies")
    return ExportedOrphan(orphan.engine_hash, orphan.parent, _at_least(0, orphan.digest), orphan.copies)


def _at_least(least: int, value: Any) -> int:
    if value < least:
        raise ValueError(f"{value} is below {least}")
    return int(value)
