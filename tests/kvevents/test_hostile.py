"""Whatever a publisher sends costs little for its bytes, and no source takes more room than an engine
needs."""

from typing import Any

import msgspec
import pytest

from kvevents import (
    BlockRemoved,
    BlockStored,
    Message,
    NullObserver,
    PrefixIndex,
    Prompt,
    Reason,
    Slot,
    decode,
)
from kvevents.applier import Applier
from kvevents.block_keys import BlockHasher
from kvevents.decoder import MAX_PAYLOAD_BYTES, UnreadableMessage, read_batch
from kvevents.prefix_index import MAX_TIERS
from kvevents.source import Source
from kvevents.source_events import AskReplay, Connected, Damage, Live, ReplayEnded
from kvevents.tail import Tail
from kvevents.waiting import MAX_WAITING

ENGINE = "engine:8000"
SLOT = Slot(ENGINE, 0, "GPU")
encode = msgspec.msgpack.encode


def run(names: list[Any], tokens: list[int], size: int, **fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": size,
        **fields,
    }


class Drops(NullObserver):
    def __init__(self) -> None:
        self.drops: dict[Reason, int] = {}

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count


def apply(index: PrefixIndex, *events: Any) -> tuple[int, Damage, dict[Reason, int]]:
    """How many turns it took, what was not understood, and what was dropped."""
    told = Drops()
    steps = Applier(ENGINE, 0, index, told).apply(Message(b"", 0, encode([0.0, list(events), 0])))
    turns = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return turns, done.value, told.drops
        turns += 1


# ---- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        bytes(MAX_PAYLOAD_BYTES + 1),
        encode([0.0, [7] * (1 << 19), 0]),
        b"\x93\x00\xdd\xff\xff\xff\xff",
    ],
)
def test_more_than_an_engine_can_mean_is_not_read_at_all(payload: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        decode(payload)


@pytest.mark.parametrize(
    "event",
    [
        run([b"x" * 65], [1], 1),
        run([1], [1], 1, medium="x" * 257),
        run([1], [1], 1, lora_name="x" * 257),
        run([1], [1], 1, extra_keys=[["x" * (2 << 20)]]),
        ["BlockStored", [1], None, [1], 1, None, None, None, [["x" * (2 << 20)]]],
        ["BlockStored", [1], None, [1], 1, None, "x" * 257],
    ],
)
def test_fields_longer_than_any_engines_are_broken_events(event: Any) -> None:
    decoded = decode(encode([0.0, [event, run([1], [1], 1)], 0]))
    assert decoded.skipped == {Reason.BROKEN_EVENT: 1}
    assert len(decoded.batch.events) == 1


def test_an_event_that_is_too_large_to_look_at_may_be_anything() -> None:
    decoded = decode(encode([0.0, [run([1], [1] * (9 << 20), 9 << 20), run([1], [1], 1)], 0]))
    assert decoded.skipped == {Reason.BROKEN_REMOVAL: 1}
    assert len(decoded.batch.events) == 1


def test_the_longest_runs_of_real_engines_are_read() -> None:
    names = [b"%032d" % number for number in range(1 << 16)]
    index = PrefixIndex()
    assert apply(index, run(names, [150_000] * (1 << 20), 16))[1:] == (Damage.NONE, {})
    assert index.blocks() == {SLOT: 1 << 16}
    assert index.match(Prompt([150_000] * (1 << 20)))[SLOT] == 1 << 20


@pytest.mark.parametrize("ts", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_without_a_date_is_none(ts: float) -> None:
    payload = encode([ts, [run([1], [1], 1)], 0])
    assert read_batch(payload).ts == decode(encode([ts, [7], 0])).batch.ts == 0.0
    lines: list[str] = []
    tail = Tail(lines.append)
    for _ in Applier(ENGINE, 0, tail, tail).apply(Message(b"", 0, payload)):
        pass
    assert "stored" in lines[0]


# ---- turns for others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", [None, 99])
def test_a_very_long_run_is_applied_in_parts_and_means_the_same(parent: int | None) -> None:
    names, tokens, extra = list(range(100, 10_100)), list(range(20_000)), [None] * 9_999 + [["x"]]
    event = run(names, tokens, 2, parent_block_hash=parent, extra_keys=extra, medium="GPU")
    in_parts, whole = PrefixIndex(), PrefixIndex()
    turns, damage, drops = apply(in_parts, event)
    assert turns >= 5
    assert (damage, drops) == (Damage.NONE, {})
    (stored,) = decode(encode([0.0, [event], 0])).batch.events
    assert isinstance(stored, BlockStored)
    whole.store(ENGINE, 0, stored)
    prompt = Prompt(tokens)
    assert in_parts.match(prompt) == whole.match(prompt) == {SLOT: 19_998 if parent is None else 0}
    assert in_parts.orphans(ENGINE, 0) == whole.orphans(ENGINE, 0)
    assert in_parts.blocks() == whole.blocks()


def test_a_very_long_removal_is_applied_in_parts() -> None:
    index = PrefixIndex()
    names = list(range(10_000))
    apply(index, run(names, names, 1))
    turns, _, drops = apply(index, {"type": "BlockRemoved", "block_hashes": [*names, 77_777]})
    assert turns >= 5
    assert drops == {Reason.UNKNOWN_BLOCK: 1}
    assert index.blocks() == {SLOT: 0}


def test_a_long_run_that_is_misaligned_is_dropped_as_a_whole() -> None:
    index = PrefixIndex()
    names = list(range(10_000))
    for event in (run(names, names[:-1], 1), run(names, names, 1, extra_keys=[None]), run(names, names, 0)):
        _, _, drops = apply(index, event)
        assert sum(drops.values()) == 10_000
    assert not any(index.blocks().values())


def test_skipped_events_leave_turns_for_others() -> None:
    turns, damage, drops = apply(PrefixIndex(), *[7] * 1000)
    assert turns == 1000
    assert (damage, drops) == (Damage.STALE, {Reason.BROKEN_REMOVAL: 1000})


# ---- room --------------------------------------------------------------------------------------------------


def test_tiers_are_bounded() -> None:
    index = PrefixIndex()
    events = [run([n], [n], 1, medium=f"tier {n}") for n in range(MAX_TIERS + 3)]
    assert apply(index, *events)[2] == {Reason.TIERS: 3}
    assert len(index.blocks()) == MAX_TIERS
    assert apply(index, run([50], [50], 1, medium="tier 0"))[2] == {}


def test_a_source_that_only_stores_is_bounded_and_not_exact_any_more() -> None:
    index = PrefixIndex(max_blocks=100)
    index.store("other:1", 0, BlockStored([1], None, [7], 1))
    assert apply(index, run(list(range(90)), list(range(90)), 1))[1:] == (Damage.NONE, {})
    assert apply(index, run(list(range(90, 120)), list(range(30)), 1))[1:] == (
        Damage.MISSING,
        {Reason.FULL: 30},
    )
    assert apply(index, run(list(range(300, 311)), [5] * 11, 1))[2] == {Reason.FULL: 11}
    index.remove(ENGINE, 0, BlockRemoved(list(range(50))))
    assert apply(index, run(list(range(300, 330)), list(range(300, 330)), 1))[1:] == (Damage.NONE, {})
    assert index.blocks()[Slot("other:1", 0, "GPU")] == 1


def test_a_tier_that_nothing_ever_leaves_takes_no_place_of_the_engines_own_blocks() -> None:
    index = PrefixIndex(max_blocks=100)
    assert apply(index, run(list(range(50)), list(range(50)), 1, medium="CPU"))[1:] == (Damage.NONE, {})
    assert apply(index, run([50], [50], 1, medium="STORAGE"))[1:] == (Damage.NONE, {Reason.FULL: 1})
    assert apply(index, run(list(range(100, 200)), list(range(100)), 1))[1:] == (Damage.NONE, {})


def test_block_sizes_no_engine_has_are_dropped_and_what_is_kept_of_others_is_bounded() -> None:
    hasher = BlockHasher(b"secret")
    index = PrefixIndex(hasher)
    size = (1 << 16) + 1
    assert apply(index, run([1], [1] * size, size))[2] == {Reason.BLOCK_SIZE: 1}
    for size in range(60_000, 60_010):
        assert apply(index, run([1], [1] * size, size), {"type": "AllBlocksCleared"})[2] == {}
    assert sum(hasher._multipliers) < 200_000


def test_resets_by_the_thousand_leave_nothing_behind() -> None:
    index = PrefixIndex()
    reset = {"type": "AllBlocksCleared"}
    apply(index, run([1], [1], 1), *[reset] * 1000, run([2], [2], 1, parent_block_hash=99), *[reset] * 1000)
    assert len(index._slots.by_bit) <= 2
    assert index.orphans(ENGINE, 0) == 0
    for number in range(200):
        apply(index, run([number], [1], 1), reset)
    assert len(index._slots.by_bit) <= 4


def test_long_salts_are_not_kept() -> None:
    hasher = BlockHasher(b"secret")
    for number in range(10):
        prompt = Prompt([1, 2, 3, 4], cache_salt=f"{number}" * 100_000)
        assert hasher.of_prompt(prompt, 2) == hasher.of_prompt(
            Prompt(prompt.token_ids, None, prompt.cache_salt), 2
        )
    assert sum(len(extra) for *_, extra in hasher._offsets) < 100_000


def test_messages_that_wait_for_a_replay_are_bounded_in_number_too() -> None:
    source = Source(can_replay=True)
    source.handle(Connected())
    for number in range(MAX_WAITING + 5):
        source.handle(Live(Message(b"", number, b"")))
    assert len(source._waiting) == 5
    assert AskReplay(0) in source.handle(ReplayEnded(marker=True))


def test_topics_that_wait_for_a_replay_weigh() -> None:
    source = Source(can_replay=True, max_waiting_bytes=1000)
    source.handle(Connected())
    for number in range(10):
        source.handle(Live(Message(b"x" * 300, number, b"")))
    assert len(source._waiting) < 4
