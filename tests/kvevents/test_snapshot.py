"""What is read back is what was written; whatever else lies there is refused with a reason and nothing
more."""

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvevents import snapshot as snapshots
from kvevents.block_keys import BlockHasher, Prompt
from kvevents.events import BlockStored, Reason
from kvevents.exported import ExportedOrphan, ExportedRank, ExportedTier
from kvevents.prefix_index import PrefixIndex
from kvevents.sequence import Position
from kvevents.slots import Slot
from kvevents.snapshot import FINGERPRINT_BYTES, Snapshot, SnapshotError, decode, encode, fingerprint
from kvevents.source_events import Checkpoint
from tests.kvevents.test_prefix_index_model import ENGINES, History, _play, histories

MADE = b"f" * FINGERPRINT_BYTES


def plain(snapshot: Snapshot) -> Any:
    """Everything in it, in order, as values that compare."""
    blocks = snapshot.blocks
    tiers = [(tier.name, tier.hashes, tier.keys.tolist(), list(tier.copies.items())) for tier in blocks.tiers]
    return (
        (snapshot.instance, snapshot.rank, snapshot.checkpoint),
        (blocks.block_size, blocks.group_idx, tiers, blocks.orphans, blocks.uncounted),
    )


numbers = st.integers(0, 2**64 - 1)
names: st.SearchStrategy[list[Any]] = st.one_of(
    st.lists(numbers, unique=True),
    st.lists(st.binary(min_size=32, max_size=32), unique=True),
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=3), unique=True),
)
counts = st.integers(1, 2**40)


@st.composite
def tiers(draw: st.DrawFn) -> ExportedTier:
    hashes = draw(names)
    # Few different keys, so that several hashes share one as salts and cache groups make them do.
    keys = draw(
        st.lists(
            st.sampled_from([1, 2, 2**53, 2**60 - 1]) | st.integers(1, 2**60 - 1),
            min_size=len(hashes),
            max_size=len(hashes),
        )
    )
    copies = {name: draw(counts) for name in draw(st.permutations(hashes)) if draw(st.booleans())}
    return ExportedTier(draw(st.text()), hashes, np.array(keys, np.uint64), copies)


orphans = st.builds(
    ExportedOrphan,
    numbers | st.binary(max_size=32),
    numbers | st.binary(max_size=32),
    numbers,
    st.dictionaries(st.text(), counts, min_size=1),
)
checkpoints = st.builds(
    Checkpoint,
    st.builds(Position, st.integers(0, 2**63 - 1), st.binary(min_size=16, max_size=16)),
    st.booleans(),
    st.booleans(),
)
whole_snapshots = st.builds(
    Snapshot,
    st.text(),
    st.integers(0, 2**31),
    checkpoints,
    st.builds(
        ExportedRank,
        st.integers(1, 2**31),
        st.none() | st.integers(0, 9),
        st.lists(tiers(), max_size=3),
        st.lists(orphans, max_size=4),
        st.dictionaries(st.text(), st.sampled_from(Reason)),
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(whole_snapshots)
def test_what_is_read_back_is_what_was_written(snapshot: Snapshot) -> None:
    assert plain(decode(encode(snapshot, MADE), MADE)) == plain(snapshot)


def a_checkpoint(number: int = 7) -> Checkpoint:
    return Checkpoint(Position(number, b"d" * 16), since_start=True, incomplete=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), histories, histories)
def test_an_index_goes_on_in_another_process(count_copies: bool, before: History, after: History) -> None:
    index, model = _play(before, count_copies=count_copies)
    made = fingerprint(index.hasher)
    files = [
        encode(Snapshot(*at, a_checkpoint(), exported), made)
        for at in ENGINES
        if (exported := index.export(*at)) is not None
    ]
    other = PrefixIndex(BlockHasher(b"test"), count_copies=count_copies)
    for data in files:
        read = decode(data, fingerprint(other.hasher))
        other.load(read.instance, read.rank, read.blocks)
    _play(after, count_copies=count_copies, index=other, model=model)


def small() -> bytes:
    """A snapshot of both kinds of hashes with all there can be."""
    hasher = BlockHasher(b"test")
    index = PrefixIndex(hasher)
    index.store("h:1", 0, BlockStored([1, 2], None, [1, 2, 3, 4], 2, medium="GPU"))
    index.store("h:1", 0, BlockStored([2], 1, [3, 4], 2, medium="GPU"))
    index.store("h:1", 0, BlockStored([b"x" * 32], None, [7, 7], 2, medium="CPU", extra_keys=[["salt"]]))
    index.store("h:1", 0, BlockStored([9], 8, [5, 6], 2, medium="GPU"))
    exported = index.export("h:1", 0)
    assert exported is not None
    return encode(Snapshot("h:1", 0, a_checkpoint(), exported), fingerprint(hasher))


def test_every_flipped_bit_is_noticed() -> None:
    data, made = small(), fingerprint(BlockHasher(b"test"))
    assert decode(data, made).instance == "h:1"
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotError):
            decode(bytes(flipped), made)


def test_every_truncation_and_addition_is_noticed() -> None:
    data, made = small(), fingerprint(BlockHasher(b"test"))
    for length in range(len(data)):
        with pytest.raises(SnapshotError):
            decode(data[:length], made)
    for more in (b"\0", b"x", data):
        with pytest.raises(SnapshotError):
            decode(data + more, made)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_bytes_of_others_are_no_snapshot(data: bytes, sealed: bool) -> None:
    """Not even those with the right beginning and a right checksum at the end."""
    if sealed:
        data = snapshots._HEAD.pack(snapshots._MAGIC, snapshots.VERSION, MADE) + data
        data += hashlib.blake2b(data, digest_size=snapshots._DIGEST_BYTES).digest()
    with pytest.raises(SnapshotError):
        decode(data, MADE)


def sealed(**changes: Any) -> bytes:
    """A snapshot of one block with its body changed and its checksum made anew."""
    tier = snapshots._Tier(
        "GPU", snapshots._column([1]), (5).to_bytes(8, "little"), snapshots._column([]), []
    )
    body = snapshots._Body("h:1", 0, 7, b"d" * 16, True, False, 2, None, [tier], [], {})
    for name, value in changes.items():
        setattr(tier if hasattr(tier, name) else body, name, value)
    data = snapshots._HEAD.pack(snapshots._MAGIC, snapshots.VERSION, MADE) + msgspec.msgpack.encode(body)
    return data + hashlib.blake2b(data, digest_size=snapshots._DIGEST_BYTES).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": 0},
        {"keys": b""},
        {"keys": b"123"},
        {"keys": bytes(8)},
        {"keys": b"\xff" * 8},
        {"hashes": snapshots._Column(2, 8, True, b"12345678")},
        {"hashes": snapshots._Column(2, 8, True, b"1234567812345678"), "keys": b"1234567\0" * 2},
        {"hashes": snapshots._Column(1, 8, True, b"1234")},
        {"copied": snapshots._column([2]), "copies": [1]},
        {"copied": snapshots._column([1]), "copies": [0]},
        {"copied": snapshots._column([1]), "copies": []},
        {"orphans": [snapshots._Orphan(1, 2, 3, {})]},
        {"orphans": [snapshots._Orphan(1, 2, -3, {"GPU": 1})]},
        {"rank": "one"},
        {"lookahead": -1},
    ],
)
def test_a_right_checksum_over_nonsense_does_not_help(changes: dict[str, Any]) -> None:
    assert decode(sealed(), MADE).blocks.tiers[0].hashes == [1]
    with pytest.raises(SnapshotError):
        decode(sealed(**changes), MADE)


def test_what_is_behind_blocks_goes_on_too() -> None:
    index = PrefixIndex(BlockHasher(b"test"))
    event = BlockStored([1, 2], None, [1, 2, 3, 4], 2, medium="GPU", lookahead_token_ids=[[3], [5]])
    index.store("h:1", 0, event)
    exported = index.export("h:1", 0)
    assert exported is not None
    read = decode(encode(Snapshot("h:1", 0, a_checkpoint(), exported), MADE), MADE)
    other = PrefixIndex(BlockHasher(b"test"))
    other.load("h:1", 0, read.blocks)
    assert other.match(Prompt([1, 2, 3, 4, 5])) == {Slot("h:1", 0, "GPU"): 4}
    assert other.match(Prompt([1, 2, 3, 4, 6])) == {Slot("h:1", 0, "GPU"): 2}


def test_a_snapshot_of_version_1_has_no_lookahead() -> None:
    data = sealed()
    body = msgspec.msgpack.decode(data[snapshots._HEAD.size : -snapshots._DIGEST_BYTES])
    older = snapshots._HEAD.pack(snapshots._MAGIC, 1, MADE) + msgspec.msgpack.encode(body[:-1])
    older += hashlib.blake2b(older, digest_size=snapshots._DIGEST_BYTES).digest()
    assert decode(older, MADE) == decode(data, MADE)
    assert decode(older, MADE).blocks.lookahead == 0


def test_what_is_wrong_is_said() -> None:
    data = small()
    made = fingerprint(BlockHasher(b"test"))
    later = snapshots._HEAD.pack(snapshots._MAGIC, 9, made) + data[snapshots._HEAD.size : -32]
    for broken, words in (
        (b"", "not a snapshot"),
        (b"PK\3\4" + data, "not a snapshot"),
        (data[:-1], "checksum"),
        (later + hashlib.blake2b(later, digest_size=32).digest(), "version 9"),
        (later + b"what version 9 has there" * 2, "version 9"),
    ):
        with pytest.raises(SnapshotError, match=words):
            decode(broken, made)
    with pytest.raises(SnapshotError, match="another secret"):
        decode(data, fingerprint(BlockHasher(b"other")))


def test_the_fingerprint_is_that_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fingerprint(BlockHasher(b"test"))
    assert made == fingerprint(BlockHasher(b"test"))
    assert made != fingerprint(BlockHasher(b"other"))
    monkeypatch.setattr("kvevents.block_keys.canonical_bytes", lambda *_: b"made otherwise")
    assert made != fingerprint(BlockHasher(b"test"))
