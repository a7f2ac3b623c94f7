from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvevents.decoder import Message, UnreadableMessage, decode, read_live, read_replay
from kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Reason
from tests.kvevents import recorded

pack = msgspec.msgpack.encode

STORED = {
    "type": "BlockStored",
    "block_hashes": [1, 2],
    "parent_block_hash": None,
    "token_ids": [5, 6, 7, 8],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}
AS_STORED = BlockStored([1, 2], None, [5, 6, 7, 8], 2, medium="GPU")
SEQ_7 = (7).to_bytes(8, "big")
END = (-1).to_bytes(8, "big", signed=True)


def events_of(*events: Any) -> list[Event]:
    decoded = decode(pack([1.5, list(events), 0]))
    assert decoded.skipped == {}
    return decoded.batch.events


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (STORED, AS_STORED),
        ({**STORED, "session_id": "s"}, msgspec.structs.replace(AS_STORED, session_id="s")),
        ({**STORED, "session_id": 7}, msgspec.structs.replace(AS_STORED, session_id=7)),
        ({**STORED, "ownership": "s", "locality": "LOCAL", "novelty": {"a": [1]}}, AS_STORED),
        (["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU"], AS_STORED),
        (["BlockStored", [1, 2], None, [5, 6, 7, 8], 2], BlockStored([1, 2], None, [5, 6, 7, 8], 2)),
        (
            ["BlockStored", [3], 2, [1], 1, 4, "CPU", "alpha", [["alpha"]], 0, "full_attention", None, "new"],
            BlockStored(
                [3],
                2,
                [1],
                1,
                4,
                "CPU",
                "alpha",
                [["alpha"]],
                0,
                "full_attention",
            ),
        ),
        (
            {**STORED, "block_hashes": [b"h" * 32, 2**64 - 1], "parent_block_hash": b"p" * 32},
            BlockStored([b"h" * 32, 2**64 - 1], b"p" * 32, [5, 6, 7, 8], 2, medium="GPU"),
        ),
        ({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}, BlockRemoved([1], "GPU")),
        ({"type": "BlockRemoved", "block_hashes": [1]}, BlockRemoved([1])),
        (["BlockRemoved", [1, b"x"]], BlockRemoved([1, b"x"])),
        (["BlockRemoved", [1], "CPU", 3], BlockRemoved([1], "CPU", 3)),
        ({"type": "AllBlocksCleared"}, AllBlocksCleared()),
        (["AllBlocksCleared"], AllBlocksCleared()),
    ],
)
def test_an_event_in_each_form(raw: Any, event: Event) -> None:
    assert events_of(raw) == [event]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"type": "BlockMoved", "block_hashes": [1]}, Reason.UNKNOWN_TYPE),
        (["BlockMoved", 1], Reason.UNKNOWN_TYPE),
        ({"kind": "BlockStored"}, Reason.BROKEN_REMOVAL),
        ([], Reason.BROKEN_REMOVAL),
        ([["BlockStored"]], Reason.BROKEN_REMOVAL),
        ("BlockStored", Reason.BROKEN_REMOVAL),
        (None, Reason.BROKEN_REMOVAL),
        ({"type": "TierBlocksCleared", "medium": "GPU"}, Reason.BROKEN_REMOVAL),
        (["blocks_evicted", [1]], Reason.BROKEN_REMOVAL),
        ({"type": "AllBlocksCleared", 5: 6}, Reason.BROKEN_REMOVAL),
        ({"type": "BlockStored"}, Reason.BROKEN_EVENT),
        ({**STORED, "token_ids": [1.5]}, Reason.BROKEN_EVENT),
        ({**STORED, "token_ids": None}, Reason.BROKEN_EVENT),
        ({**STORED, "block_hashes": ["text"]}, Reason.BROKEN_EVENT),
        (["BlockStored", [1]], Reason.BROKEN_EVENT),
        (["BlockRemoved"], Reason.BROKEN_REMOVAL),
        ({"type": "BlockRemoved", "block_hashes": "text"}, Reason.BROKEN_REMOVAL),
    ],
)
def test_a_bad_event_is_counted_and_its_neighbours_kept_in_order(raw: Any, reason: Reason) -> None:
    decoded = decode(pack([1.5, [STORED, raw, ["AllBlocksCleared"], raw, STORED], 3]))
    assert decoded.batch == EventBatch(1.5, [AS_STORED, AllBlocksCleared(), AS_STORED], 3)
    assert decoded.skipped == {reason: 2}


@pytest.mark.parametrize(
    "payload",
    [
        pack([1.5, [STORED]]),
        pack([1.5, [STORED], None]),
        pack([1.5, [STORED], None, "new"]),
        pack({"ts": 1.5, "events": [STORED]}),
        pack({"ts": 1.5, "events": [STORED], "data_parallel_rank": None, "novelty": 1}),
        pack([1.5, [STORED], "not a rank"]),
    ],
)
def test_a_batch_in_each_form(payload: bytes) -> None:
    assert decode(payload).batch == EventBatch(1.5, [AS_STORED])


def test_a_batch_as_a_map_keeps_its_rank() -> None:
    assert decode(pack({"ts": "soon", "events": [], "data_parallel_rank": 3})).batch == EventBatch(0.0, [], 3)


def test_endless_nesting_in_one_event_costs_only_that_event() -> None:
    nested = b"\x91" * 400 + b"\xc0"
    extra = {**STORED, "extra_keys": [msgspec.Raw(nested), None]}
    assert decode(pack([0, [extra, STORED]])).batch.events[-1] == AS_STORED


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        pack(None),
        pack("text"),
        pack([]),
        pack([1.5]),
        pack([1.5, None]),
        pack({"ts": 1.5}),
        pack([1.5, [STORED]])[:-1],
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_an_unreadable_payload_is_the_one_error(payload: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        decode(payload)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(pack([0, [{"type": "BlockStored", "block_hashes": msgspec.Raw(b"\xa2\xff\xff")}]]))
@example(pack([0, [msgspec.Raw(b"\xd7\xff" + b"\xff" * 8)]]))
@example(pack([0, [msgspec.Raw(b"\x81\x91\x80\x01")]]))
def test_arbitrary_bytes_raise_nothing_else(payload: bytes) -> None:
    for read in (
        decode,
        lambda data: decode(b"\x92\x00" + data),
        lambda data: decode(b"\x92\x00\x91" + data),
    ):
        with suppress(UnreadableMessage):
            read(payload)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["BlockStored", "BlockRemoved", "X"])}) | anything
    )
)
def test_what_is_not_skipped_is_kept(events: list[Any]) -> None:
    decoded = decode(pack([0, [*events, STORED]]))
    assert len(decoded.batch.events) + sum(decoded.skipped.values()) == len(events) + 1
    assert decoded.batch.events[-1] == AS_STORED


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=5))
def test_arbitrary_frames_raise_nothing_else(frames: list[bytes]) -> None:
    for read in (read_live, read_replay):
        with suppress(UnreadableMessage):
            read(frames)


def test_live_frames() -> None:
    assert read_live([b"kv", SEQ_7, b"p"]) == Message(b"kv", 7, b"p")


@pytest.mark.parametrize(
    "frames", [[], [SEQ_7, b"p"], [b"", b"kv", SEQ_7, b"p"], [b"kv", b"7", b"p"], [b"kv", END, b"p"]]
)
def test_bad_live_frames(frames: list[bytes]) -> None:
    with pytest.raises(UnreadableMessage):
        read_live(frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b"", b"kv", SEQ_7, b"p"], Message(b"kv", 7, b"p")),
        ([b"kv", SEQ_7, b"p"], Message(b"kv", 7, b"p")),
        ([b"", SEQ_7, b"p"], Message(b"", 7, b"p")),
        ([SEQ_7, b"p"], Message(b"", 7, b"p")),
        ([b"", b"", END, b""], None),
        ([b"", END, b""], None),
        ([END, b""], None),
    ],
)
def test_replay_frames_with_and_without_delimiter_and_topic(
    frames: list[bytes], message: Message | None
) -> None:
    assert read_replay(frames) == message


@pytest.mark.parametrize(
    "frames", [[SEQ_7], [b""] * 5, [b"", b"7", b"p"], [b"", b"", b"\xff" * 7 + b"\xfe", b""]]
)
def test_bad_replay_frames(frames: list[bytes]) -> None:
    with pytest.raises(UnreadableMessage):
        read_replay(frames)


@pytest.mark.parametrize("name", ["kv_events_0_32_int", "kv_events_0_32_bytes"])
def test_a_recorded_stream_decodes_fully_and_as_arrays_to_the_same(name: str) -> None:
    for frames in recorded.frames(name):
        message = read_live(frames)
        decoded = decode(message.payload)
        assert decoded.skipped == {}
        assert decoded.batch.events
        assert decode(recorded.as_arrays(message.payload)) == decoded
