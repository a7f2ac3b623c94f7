from typing import Any

import pytest

from kvevents.block_keys import BlockHasher, Prompt
from kvevents.change import Change
from kvevents.events import REPORT_SESSION, BlockRemoved, BlockStored, EngineHash, Reason
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot

E, R = "10.0.0.1:8000", 0
GPU, CPU = Slot(E, R, "GPU"), Slot(E, R, "CPU")
NOTHING_DROPPED: dict[Reason, int] = {}


def tokens(*blocks: int, size: int = 4) -> list[int]:
    return [block for block in blocks for _ in range(size)]


def stored(
    hashes: list[EngineHash], parent: EngineHash | None = None, *, size: int = 4, **fields: Any
) -> BlockStored:
    """A run whose blocks hold their own hash as tokens."""
    token_ids = fields.pop("token_ids", [h for h in hashes for _ in range(size)])
    return BlockStored(hashes, parent, token_ids, size, **{"medium": "GPU", **fields})


def removed(*hashes: EngineHash, medium: str | None = "GPU", group_idx: int | None = None) -> BlockRemoved:
    return BlockRemoved(list(hashes), medium, group_idx)


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex(BlockHasher(b"test"))


def cached(index: PrefixIndex, *blocks: int, slot: Slot = GPU, **prompt: Any) -> int:
    return index.match(Prompt(tokens(*blocks), **prompt))[slot]


def test_an_empty_index_knows_no_slot(index: PrefixIndex) -> None:
    assert index.match(Prompt([1, 2, 3])) == {}
    assert index.blocks() == {}
    assert index.block_size(E, R) is None
    assert index.retire(E) == index.clear(E, R) == 0


def test_the_longest_prefix_counts_in_tokens(index: PrefixIndex) -> None:
    assert index.store(E, R, stored([1, 2, 3])) == Change(3, 0, {})
    assert index.block_size(E, R) == 4
    assert index.blocks() == {GPU: 3}
    assert cached(index, 1, 2, 3) == 12
    assert cached(index, 1, 2, 3, 4) == 12
    assert cached(index, 1, 2) == 8
    assert cached(index, 2, 3) == 0
    assert index.match(Prompt([*tokens(1), 2, 2, 2])) == {GPU: 4}
    assert index.match(Prompt([])) == {GPU: 0}


def test_a_later_run_continues_its_parent(index: PrefixIndex) -> None:
    index.store(E, R, stored([1]))
    assert index.store(E, R, stored([2, 3], 1)).applied == 2
    assert cached(index, 1, 2, 3) == 12


def test_hashes_may_be_bytes(index: PrefixIndex) -> None:
    index.store(E, R, BlockStored([b"a" * 32], None, tokens(1), 4, medium="GPU"))
    index.store(E, R, BlockStored([b"b" * 32], b"a" * 32, tokens(2), 4, medium="GPU"))
    assert cached(index, 1, 2) == 8
    index.remove(E, R, removed(b"b" * 32))
    assert cached(index, 1, 2) == 4


def test_a_slot_is_an_instance_a_rank_and_a_tier(index: PrefixIndex) -> None:
    index.store("a", 0, stored([1]))
    index.store("a", 1, stored([1, 2]))
    index.store("b", 0, stored([9], token_ids=tokens(1)))
    index.store("b", 0, stored([9], token_ids=tokens(1), medium="CPU"))
    assert index.match(Prompt(tokens(1, 2))) == {
        Slot("a", 0, "GPU"): 4,
        Slot("a", 1, "GPU"): 8,
        Slot("b", 0, "GPU"): 4,
        Slot("b", 0, "CPU"): 4,
    }


def test_an_event_without_a_tier_is_of_the_engines_own_cache(index: PrefixIndex) -> None:
    index.store(E, R, stored([1], medium=None))
    assert cached(index, 1) == 4
    assert index.remove(E, R, removed(1)).applied == 1


def test_block_sizes_differ_between_instances(index: PrefixIndex) -> None:
    index.store("a", 0, BlockStored([1, 2], None, [7] * 4, 2))
    index.store("b", 0, BlockStored([1], None, [7] * 3, 3))
    assert index.match(Prompt([7] * 5)) == {Slot("a", 0, "GPU"): 4, Slot("b", 0, "GPU"): 3}
    assert (index.block_size("a", 0), index.block_size("b", 0)) == (2, 3)


def test_each_copy_is_removed_by_its_own_event(index: PrefixIndex) -> None:
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([2], 1))
    assert index.blocks() == {GPU: 2}
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 8
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 4


def test_without_counting_the_first_removal_counts() -> None:
    index = PrefixIndex(count_copies=False)
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([2], 1))
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 4
    assert index.remove(E, R, removed(2)).dropped == {Reason.UNKNOWN_BLOCK: 1}


def test_without_counting_an_orphan_is_held_once() -> None:
    index = PrefixIndex(count_copies=False)
    for _ in range(2):
        index.store(E, R, stored([2], 1))
        index.store(E, R, stored([3], 1))
    index.remove(E, R, removed(3))
    assert index.orphans(E, R) == 1
    index.store(E, R, stored([1]))
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == cached(index, 1, 3) == 4


def test_a_missing_parent_hides_its_children_until_it_is_back(index: PrefixIndex) -> None:
    index.store(E, R, stored([1, 2, 3]))
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2, 3) == 4
    assert index.blocks() == {GPU: 2}
    index.store(E, R, stored([2], 1))
    assert cached(index, 1, 2, 3) == 12


def test_a_child_in_another_tier_finds_its_parent(index: PrefixIndex) -> None:
    index.store(E, R, stored([1]))
    assert index.store(E, R, stored([2], 1, medium="CPU")) == Change(1, 0, {})
    assert index.match(Prompt(tokens(1, 2))) == {GPU: 4, CPU: 0}
    index.store(E, R, stored([1], medium="CPU"))
    assert index.match(Prompt(tokens(1, 2))) == {GPU: 4, CPU: 8}
    assert index.match_tier(Prompt(tokens(1, 2))) == {(E, R): 4}
    assert index.match_tier(Prompt(tokens(1, 2)), "CPU") == {(E, R): 8}
    index.remove(E, R, removed(1))
    assert index.match(Prompt(tokens(1, 2))) == {GPU: 0, CPU: 8}
    assert index.match_tier(Prompt(tokens(1, 2))) == {}


def test_a_block_in_two_tiers_is_known_until_it_has_left_both(index: PrefixIndex) -> None:
    for medium in ("GPU", "CPU"):
        index.store(E, R, stored([1], medium=medium))
    index.remove(E, R, removed(1))
    assert index.store(E, R, stored([2], 1)).applied == 1
    assert index.remove(E, R, removed(1, medium="CPU")).applied == 1
    assert index.store(E, R, stored([3], 1)).orphans == 1


def test_two_hashes_of_one_block_are_both_counted(index: PrefixIndex) -> None:
    index.store(E, R, stored([1]))
    index.store(E, R, stored([91], token_ids=tokens(1)))
    assert index.blocks() == {GPU: 1}
    index.remove(E, R, removed(1))
    assert cached(index, 1) == 4
    index.remove(E, R, removed(91))
    assert cached(index, 1) == 0


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2)])
def test_orphans_count_once_their_parents_have_come(index: PrefixIndex, order: tuple[int, ...]) -> None:
    for block in order:
        index.store(E, R, stored([block], block - 1 or None))
    assert cached(index, 1, 2, 3) == 12
    assert index.orphans(E, R) == 0


def test_an_orphan_is_not_cached_and_not_dropped(index: PrefixIndex) -> None:
    assert index.store(E, R, stored([2, 3], 1)) == Change(0, 2, {})
    assert index.orphans(E, R) == 2
    assert index.match(Prompt(tokens(1, 2, 3))) == {GPU: 0}
    assert index.blocks() == {GPU: 0}


def test_an_orphan_keeps_its_copies_and_tiers(index: PrefixIndex) -> None:
    for medium in ("GPU", "GPU", "CPU"):
        index.store(E, R, stored([2], 1, medium=medium))
    index.remove(E, R, removed(2))
    index.store(E, R, stored([1]))
    index.store(E, R, stored([1], medium="CPU"))
    assert index.match(Prompt(tokens(1, 2))) == {GPU: 8, CPU: 8}
    index.remove(E, R, removed(2))
    assert index.match(Prompt(tokens(1, 2))) == {GPU: 4, CPU: 8}


def test_an_orphans_copies_are_still_counted_when_it_is_attached(index: PrefixIndex) -> None:
    for _ in range(3):
        index.store(E, R, stored([2], 1))
    index.store(E, R, stored([1]))
    for left in (8, 8, 4):
        index.remove(E, R, removed(2))
        assert cached(index, 1, 2) == left


def test_a_removed_orphan_does_not_come_back(index: PrefixIndex) -> None:
    index.store(E, R, stored([2, 3], 1))
    assert index.remove(E, R, removed(2)) == Change(1, 0, {})
    assert index.orphans(E, R) == 1
    assert index.remove(E, R, removed(2)).dropped == {Reason.UNKNOWN_BLOCK: 1}
    index.store(E, R, stored([1]))
    assert cached(index, 1, 2, 3) == 4
    index.store(E, R, stored([2], 1))
    assert cached(index, 1, 2, 3) == 12


def test_orphans_are_bounded_and_the_oldest_goes() -> None:
    index = PrefixIndex(max_orphans=2)
    index.store(E, R, stored([2], 1))
    index.store(E, R, stored([3], 2))
    assert index.store(E, R, stored([4], 3)) == Change(0, 1, {Reason.ORPHAN_EVICTED: 1})
    assert index.orphans(E, R) == 2
    index.store(E, R, stored([1]))
    assert cached(index, 1, 2, 3, 4) == 4
    index.store(E, R, stored([2], 1))
    assert cached(index, 1, 2, 3, 4) == 16


def test_orphans_that_wait_for_each_other_do_not_hang(index: PrefixIndex) -> None:
    index.store(E, R, stored([5], 5))
    index.store(E, R, stored([6], 7))
    index.store(E, R, stored([7], 6))
    index.store(E, R, stored([6]))
    assert cached(index, 6, 7) == 8
    assert index.orphans(E, R) == 1


@pytest.mark.parametrize(
    ("event", "reason", "count"),
    [
        (stored([1, 2], token_ids=[1] * 7), Reason.MISALIGNED, 2),
        (stored([1, 2], token_ids=[1] * 9), Reason.MISALIGNED, 2),
        (stored([], token_ids=[1]), Reason.MISALIGNED, 1),
        (stored([1], extra_keys=[None, None]), Reason.MISALIGNED, 1),
        (stored([1], size=0), Reason.PLACEHOLDER, 1),
        (stored([1], token_ids=[]), Reason.PLACEHOLDER, 1),
        (stored([]), Reason.PLACEHOLDER, 1),
        (stored([1], kv_cache_spec_kind="sliding_window"), Reason.CACHE_GROUP, 1),
        (stored([1], kv_cache_spec_kind="mamba"), Reason.CACHE_GROUP, 1),
        (stored([1], token_ids=[0, 0, 0, 2**32]), Reason.TOKENS, 1),
        (stored([1], token_ids=[0, 0, 0, -1]), Reason.TOKENS, 1),
        (stored([1], extra_keys=[[{}]]), Reason.EXTRA_KEYS, 1),
    ],
)
def test_what_cannot_be_keyed_is_dropped_with_its_reason(
    index: PrefixIndex, event: BlockStored, reason: Reason, count: int
) -> None:
    assert index.store(E, R, event) == Change(0, 0, {reason: count})
    assert index.blocks() == {}
    index.store(E, R, stored([8]))
    assert index.store(E, R, event) == Change(0, 0, {reason: count})
    assert index.blocks() == {GPU: 1}


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention", None])
def test_a_group_that_holds_the_whole_prefix_counts(index: PrefixIndex, kind: str | None) -> None:
    assert index.store(E, R, stored([1], group_idx=1, kv_cache_spec_kind=kind)).applied == 1


def test_another_groups_blocks_neither_add_nor_remove_copies(index: PrefixIndex) -> None:
    index.store(E, R, stored([1], group_idx=0, kv_cache_spec_kind="full_attention"))
    for kind in ("sliding_window", "full_attention"):
        other = stored([1], group_idx=1, kv_cache_spec_kind=kind)
        assert index.store(E, R, other).dropped == {Reason.CACHE_GROUP: 1}
    assert index.remove(E, R, removed(1, group_idx=1)) == Change(0, 0, {Reason.CACHE_GROUP: 1})
    assert cached(index, 1) == 4
    index.remove(E, R, removed(1, group_idx=0))
    assert cached(index, 1) == 0


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        ("sliding_window", "group 1: sliding_window", Reason.CACHE_GROUP),
        ("mamba", "group 1: mamba", Reason.CACHE_GROUP),
        ("full_attention", "group 1: full_attention", Reason.CACHE_GROUP),
        ("unknown", "group 1: unknown", Reason.CACHE_KIND),
        ("dreamt_up_later", "group 1: dreamt_up_later", Reason.CACHE_KIND),
        ("x" * 1000, f"group 1: {'x' * 40}", Reason.CACHE_KIND),
    ],
)
def test_a_group_that_is_not_counted_makes_predictions_upper_bounds(
    index: PrefixIndex, kind: str, words: str, reason: Reason
) -> None:
    index.store(E, R, stored([1, 2], group_idx=0, kv_cache_spec_kind="full_attention"))
    assert not index.upper_bound(E, R)
    change = index.store(E, R, stored([1, 2, 3], group_idx=1, kv_cache_spec_kind=kind))
    assert change == Change(0, 0, {reason: 3})
    assert cached(index, 1, 2, 3) == 8
    assert index.uncounted(E, R) == {words: reason}
    assert index.upper_bound(E, R)
    assert not index.upper_bound(E, R + 1)
    exported = index.export(E, R)
    assert exported is not None
    index.load(E, R + 1, exported)
    assert index.upper_bound(E, R + 1)
    index.clear(E, R)
    assert index.upper_bound(E, R)  # it is the same model
    index.retire(E, R)
    assert not index.upper_bound(E, R)


def test_a_hybrid_model_is_known_by_any_of_its_groups(index: PrefixIndex) -> None:
    index.store(E, R, stored([1], group_idx=1, kv_cache_spec_kind="mamba"))
    assert index.upper_bound(E, R)
    assert index.blocks() == {}


def test_groups_that_are_not_counted_are_told_in_bounded_number(index: PrefixIndex) -> None:
    for n in range(100):
        index.store(E, R, stored([1], group_idx=n, kv_cache_spec_kind="mamba"))
    assert len(index.uncounted(E, R)) == 8


def test_another_block_size_waits_for_the_engine_to_be_empty_or_new(index: PrefixIndex) -> None:
    index.store(E, R, stored([1]))
    assert index.store(E, R, stored([2], size=8)).dropped == {Reason.BLOCK_SIZE: 1}
    index.retire(E, R)
    assert index.store(E, R, stored([2], size=8)).applied == 1
    assert index.block_size(E, R) == 8
    assert index.match(Prompt([2] * 8)) == {GPU: 8}
    index.clear(E, R)
    assert index.store(E, R, stored([2])).applied == 1
    assert index.block_size(E, R) == 4


@pytest.mark.parametrize("event", [removed(9), removed(1, medium="CPU")])
def test_an_unknown_block_is_counted(index: PrefixIndex, event: BlockRemoved) -> None:
    assert index.remove(E, R, event).dropped == {Reason.UNKNOWN_BLOCK: 1}
    index.store(E, R, stored([1]))
    assert index.remove(E, R, event).dropped == {Reason.UNKNOWN_BLOCK: 1}
    assert index.remove(E, R, BlockRemoved([9, 1, 8], "GPU")) == Change(1, 0, {Reason.UNKNOWN_BLOCK: 2})


def test_clear_empties_all_tiers_and_keeps_the_slots(index: PrefixIndex) -> None:
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([1], medium="CPU"))
    index.store(E, R, stored([9], 8))
    index.store(E, 1, stored([1]))
    assert index.clear(E, R) == 3
    assert index.blocks() == {GPU: 0, CPU: 0, Slot(E, 1, "GPU"): 1}
    assert index.orphans(E, R) == 0
    assert index.store(E, R, stored([2], 1)).orphans == 1


def test_retire_forgets_one_rank_or_all(index: PrefixIndex) -> None:
    for instance, rank in ((E, 0), (E, 1), ("other", 0)):
        index.store(instance, rank, stored([1]))
    assert index.retire(E, 0) == 1
    assert set(index.match(Prompt(tokens(1)))) == {Slot(E, 1, "GPU"), Slot("other", 0, "GPU")}
    assert index.block_size(E, 0) is None
    index.store(E, 0, stored([1]))
    assert index.retire(E) == 2
    assert set(index.blocks()) == {Slot("other", 0, "GPU")}


def test_who_listens_hears_of_blocks_that_are_gone(index: PrefixIndex) -> None:
    heard: list[tuple[str, int, list[int] | None]] = []
    index.listen(lambda at, rank, keys: heard.append((at, rank, None if keys is None else list(keys))))
    keys = index.hasher.of_prompt(Prompt(tokens(1, 2)), 4)
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([2], 1))
    assert index.holds(E, R, keys[1])
    index.remove(E, R, removed(2))
    assert heard == []  # there is another copy
    index.remove(E, R, removed(2))
    assert heard == [(E, R, [keys[1]])]
    assert index.holds(E, R, keys[0])
    assert not index.holds(E, R, keys[1])
    assert not index.holds(E, R + 1, keys[0])
    index.clear(E, R)
    index.retire(E)
    assert heard[1:] == [(E, R, None), (E, R, None)]
    assert not index.holds(E, R, keys[0])


def test_adapter_and_salt_are_part_of_the_prefix(index: PrefixIndex) -> None:
    index.store(E, R, stored([1]))
    index.store(E, R, stored([11], token_ids=tokens(1), extra_keys=[["s"]]))
    index.store(E, R, stored([12], token_ids=tokens(1), lora_name="a", extra_keys=[["a"]]))
    index.store(E, R, stored([13], token_ids=tokens(2), lora_id=1))
    assert index.blocks() == {GPU: 4}
    assert cached(index, 1, cache_salt="s") == 4
    assert cached(index, 1, cache_salt="t") == 0
    assert cached(index, 1, lora_name="a") == 4
    assert cached(index, 1, lora_name="a", cache_salt="s") == 0
    assert cached(index, 2) == cached(index, 2, lora_name="1") == 0


def test_an_impossible_prompt_matches_up_to_what_is_wrong_with_it(index: PrefixIndex) -> None:
    index.store(E, R, stored([1, 2]))
    assert index.match(Prompt([*tokens(1), 2, -1, 2, 2])) == {GPU: 4}
    assert index.match(Prompt([*tokens(1), 2, 2**40, 2, 2])) == {GPU: 4}


def test_the_hasher_makes_the_keys_of_this_index() -> None:
    hasher = BlockHasher()
    assert PrefixIndex(hasher).hasher is hasher
    assert PrefixIndex().hasher is not PrefixIndex().hasher


def test_copies_never_exceed_what_the_engine_has(index: PrefixIndex) -> None:
    """A "full" report announces blocks again that are there once."""
    index.set_capacity(E, R, 4)
    for _ in range(5):
        index.store(E, R, stored([1, 2]))
    assert index.store(E, R, stored([3, 4])).applied == 2
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 4
    index.set_capacity(E, R, None)
    index.store(E, R, stored([1]))
    index.remove(E, R, removed(1))
    assert cached(index, 1) == 4


def test_what_a_marked_report_tells_again_is_no_further_copy(index: PrefixIndex) -> None:
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([2], 1))  # a real copy
    assert index.store(E, R, stored([1, 2, 3], session_id=REPORT_SESSION)) == Change(1, 0, NOTHING_DROPPED)
    assert index.store(E, R, stored([1, 2, 3], session_id=REPORT_SESSION)) == Change(0, 0, NOTHING_DROPPED)
    assert cached(index, 1, 2, 3) == 12
    index.remove(E, R, removed(3))
    assert cached(index, 1, 2, 3) == 8
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 8
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 4


@pytest.mark.parametrize("length", [6, 60])
def test_a_report_may_know_more_or_less_than_we_do(index: PrefixIndex, length: int) -> None:
    hashes: list[EngineHash] = list(range(1, length + 1))
    index.store(E, R, stored([2, 3], 1))  # waits for what the report tells
    index.store(E, R, stored(hashes[: length // 2], medium="CPU"))
    assert index.store(E, R, stored(hashes, session_id=REPORT_SESSION)).applied == length
    assert index.match(Prompt(tokens(*range(1, length + 1))))[GPU] == 4 * length
    assert index.orphans(E, R) == 0
    index.remove(E, R, removed(*hashes))
    assert index.blocks()[GPU] == 0


def test_a_copy_told_by_a_report_errs_towards_too_little(index: PrefixIndex) -> None:
    """The request that reports stores a second copy of a block: told once too few, it is forgotten too
    early."""
    index.store(E, R, stored([1, 2]))
    index.store(E, R, stored([2], 1, session_id=REPORT_SESSION))
    index.remove(E, R, removed(2))
    assert cached(index, 1, 2) == 4
    assert index.remove(E, R, removed(2)).dropped == {Reason.UNKNOWN_BLOCK: 1}


def test_of_an_engine_that_marks_no_reports_no_known_block_counts_again_until_it_is_reset(
    index: PrefixIndex,
) -> None:
    index.store(E, R, stored([1]))
    index.expect_reports(E, R)
    for _ in range(3):
        index.store(E, R, stored([1, 2]))
        index.store(E, R, stored([4], 3))  # and one that waits
    index.remove(E, R, removed(2, 4))
    assert cached(index, 1, 2) == 4
    assert index.orphans(E, R) == 0
    index.store("other", R, stored([1]))
    index.store("other", R, stored([1]))
    index.remove("other", R, removed(1))
    assert index.match(Prompt(tokens(1)))[Slot("other", R, "GPU")] == 4
    for forget in (index.clear, index.retire):
        forget(E, R)
        index.store(E, R, stored([1]))
        index.store(E, R, stored([1]))
        index.remove(E, R, removed(1))
        assert cached(index, 1) == 4
        index.expect_reports(E, R)


def test_of_an_engine_that_marks_its_reports_all_else_counts_as_ever(index: PrefixIndex) -> None:
    index.expect_reports(E, R)
    index.store(E, R, stored([1]))
    index.store(E, R, stored([1], session_id=REPORT_SESSION))
    index.expect_reports(E, R)
    index.store(E, R, stored([1]))
    index.remove(E, R, removed(1))
    assert cached(index, 1) == 4


def test_room_for_copies_is_used(index: PrefixIndex) -> None:
    index.set_capacity(E, R, 3)
    for _ in range(5):
        index.store(E, R, stored([1, 2]))
    index.remove(E, R, removed(1, 2))
    assert cached(index, 1, 2) in {4, 8}
    index.remove(E, R, removed(1, 2))
    assert cached(index, 1, 2) == 0


def test_hundreds_of_instances_with_all_their_ranks_and_tiers(index: PrefixIndex) -> None:
    slots = [Slot(f"i{i}", i % 3, ("GPU", "CPU")[i % 2]) for i in range(300)]
    prompt = list(range(1, 41))
    for i, slot in enumerate(slots):
        index.store(slot.instance, slot.rank, stored(list(prompt[: i % 41]) or [99], medium=slot.tier))
    found = index.match(Prompt(tokens(*prompt)))
    assert found == {slot: 4 * (i % 41) for i, slot in enumerate(slots)}


def test_what_was_cleared_is_gone_before_it_is_swept(index: PrefixIndex) -> None:
    long = list(range(1, 101))
    index.store(E, R, stored([*long]))
    index.store("other", 0, stored([*long]))
    index.clear(E, R)
    assert index.match(Prompt(tokens(*long))) == {GPU: 0, Slot("other", 0, "GPU"): 400}
    index.store(E, R, stored([*long[:50]]))
    index.retire("other")
    assert index.match(Prompt(tokens(*long))) == {GPU: 200}
    slices = 1
    while index.sweep(10):
        slices += 1
    assert slices > 10
    assert index.match(Prompt(tokens(*long))) == {GPU: 200}
    assert len(index._residency) == 50


def test_a_slots_place_is_used_again_only_when_nothing_is_left_of_it(index: PrefixIndex) -> None:
    for generation in range(20):
        index.store(E, R, stored([generation + 1, 100, 101, 102]))
        index.sweep(2)
        assert cached(index, generation + 1, 100) == 8
        assert cached(index, generation, 100) == 0
        index.retire(E, R)
    while index.sweep(3):
        pass
    assert len(index._residency) == index._residency.different == 0
    assert len(index._slots.by_bit) <= 20


def test_storing_sweeps_faster_than_it_fills(index: PrefixIndex) -> None:
    for generation in range(50):
        index.store(E, R, stored([generation * 100 + i for i in range(1, 100)]))
        index.clear(E, R)
    assert len(index._residency) < 500


def test_holes_and_lengths_are_exact_in_long_prompts(index: PrefixIndex) -> None:
    long = list(range(1, 901))
    kept = {"a": 900, "b": 1, "c": 17, "d": 128, "e": 600, "f": 272}
    for instance in kept:
        index.store(instance, 0, stored([*long]))
    for instance, blocks in kept.items():
        if blocks < 900:
            index.remove(instance, 0, removed(blocks + 1, *range(890, 880, -1)))
    found = index.match(Prompt(tokens(*long)))
    assert found == {Slot(instance, 0, "GPU"): 4 * blocks for instance, blocks in kept.items()}
    index.store("c", 0, stored([18], 17))
    assert index.match(Prompt(tokens(*long)))[Slot("c", 0, "GPU")] == 4 * 880


@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 14])
def test_holes_and_lengths_are_exact_in_short_prompts(index: PrefixIndex, length: int) -> None:
    """Those whose blocks are looked up one by one, and the next longer ones, which are not."""
    short = list(range(1, length + 1))
    for blocks in range(length + 1):
        index.store(f"i{blocks}", 0, stored([*short]))
        if blocks < length:
            index.remove(f"i{blocks}", 0, removed(blocks + 1))
    found = index.match(Prompt(tokens(*short)))
    assert found == {Slot(f"i{blocks}", 0, "GPU"): 4 * blocks for blocks in range(length + 1)}
