"""Where a block's hash covers the tokens behind it, a prompt finds the block only if it has these tokens,
too."""

from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvevents.applier import Applier
from kvevents.block_keys import BlockHasher, Prompt
from kvevents.decoder import Message, decode
from kvevents.events import BlockRemoved, BlockStored, Event, Reason
from kvevents.observer import NullObserver
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot

HASHER = BlockHasher(b"test")
SIZE = 4
Content = tuple[tuple[int, ...], tuple[int, ...]]
"""All tokens up to a block's end, and those behind it that count."""


@dataclass
class Engine:
    """What an engine with that block size and lookahead has cached, by content."""

    size: int
    lookahead: int
    copies: list[Content] = field(default_factory=list)
    numbers: dict[Content, int] = field(default_factory=dict)

    def content(self, tokens: list[int], block: int) -> Content:
        end = (block + 1) * self.size
        return tuple(tokens[:end]), tuple(tokens[end : end + self.lookahead])

    def number(self, content: Content) -> int:
        """The engine's hash."""
        return self.numbers.setdefault(content, len(self.numbers) + 1)

    def blocks(self, tokens: list[int]) -> int:
        return max(0, (len(tokens) - self.lookahead) // self.size)

    def stored(self, tokens: list[int], first: int, last: int) -> BlockStored | None:
        """Blocks `first` to `last` of a sequence become cached, as far as it has them."""
        contents = [self.content(tokens, i) for i in range(min(last, self.blocks(tokens)))]
        if not contents[first:]:
            return None
        self.copies += contents[first:]
        return BlockStored(
            [self.number(content) for content in contents[first:]],
            self.number(contents[first - 1]) if first else None,
            tokens[first * self.size : len(contents) * self.size],
            self.size,
            medium="GPU",
            lookahead_token_ids=[list(behind) for _, behind in contents[first:]] if self.lookahead else None,
        )

    def removed(self, content: Content) -> BlockRemoved:
        self.copies.remove(content)
        return BlockRemoved([self.number(content)], "GPU")

    def cached(self, tokens: list[int]) -> int:
        """As the engine finds it: block by block, by its own hashes."""
        found = 0
        while found < self.blocks(tokens) and self.content(tokens, found) in self.copies:
            found += 1
        return found * self.size


ENGINES = {"plain": (2, 0), "eagle": (2, 1), "other": (3, 1), "mtp": (2, 3)}

sequences = st.lists(st.integers(0, 1), max_size=14)
operations = st.tuples(
    st.sampled_from(["store", "store", "remove"]),
    st.sampled_from(sorted(ENGINES)),
    sequences,
    st.integers(0, 3),
    st.integers(0, 7),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, max_size=40), st.lists(sequences, min_size=1, max_size=8), st.booleans())
@example(
    [("store", "eagle", [0, 0, 1], 0, 7), ("store", "eagle", [0, 0, 0, 1, 1], 0, 7)],
    [[0, 0, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0]],
    False,
)
def test_any_history_finds_what_engines_find(
    history: list[tuple[str, str, list[int], int, int]], prompts: list[list[int]], arrays: bool
) -> None:
    hasher = BlockHasher(b"test")  # its own: what it keeps is made for one of the two ways
    index = PrefixIndex(hasher)
    engines = {name: Engine(*shape) for name, shape in ENGINES.items()}
    with (
        patch("kvevents.block_store.FEW_BLOCKS", 0 if arrays else 12),
        patch("kvevents.block_keys._PYTHON_TOKENS", 0 if arrays else 80),
    ):
        for operation, name, tokens, first, number in history:
            engine = engines[name]
            if operation == "store":
                event = engine.stored(tokens, first, number)
                if event is not None:
                    assert index.store(name, 0, event).dropped == {}
            elif engine.copies:
                gone = engine.copies[number % len(engine.copies)]
                index.remove(name, 0, engine.removed(gone))
        other = PrefixIndex(hasher)
        for name in ENGINES:
            if (exported := index.export(name, 0)) is not None:
                other.load(name, 0, exported)
        for tokens in [*prompts, *(tokens for _, _, tokens, _, _ in history)]:
            for slot, cached in index.match(Prompt(tokens)).items():
                assert cached == engines[slot.instance].cached(tokens)
            assert other.match(Prompt(tokens)) == index.match(Prompt(tokens))


def stored(tokens: list[int], hashes: list[int], behind: object, parent: int | None = None) -> BlockStored:
    return BlockStored(hashes, parent, tokens, SIZE, medium="GPU", lookahead_token_ids=behind)  # type: ignore[arg-type]  # what a stranger may send


def cached(index: PrefixIndex, tokens: list[int], instance: str = "a") -> int:
    return index.match(Prompt(tokens))[Slot(instance, 0, "GPU")]


def test_the_last_block_is_found_only_before_the_same_token() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 8, [1, 2], [[1], [7]]))
    assert cached(index, [1] * 8 + [7]) == 8
    assert cached(index, [1] * 8 + [7, 5]) == 8
    assert cached(index, [1] * 8 + [6]) == 4  # the first block is followed by what followed it
    assert cached(index, [1] * 8) == 4  # nothing follows the second
    assert cached(index, [1] * 4) == 0


def test_two_names_of_one_block_are_two_blocks() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 4, [1], [[7]]))
    index.store("a", 0, stored([1] * 4, [2], [[8]]))
    assert index.blocks() == {Slot("a", 0, "GPU"): 2}
    index.remove("a", 0, BlockRemoved([1], "GPU"))
    assert cached(index, [1] * 4 + [7]) == 0
    assert cached(index, [1] * 4 + [8]) == 4


def test_an_engine_that_does_not_look_ahead_is_not_asked_to() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 8, [1, 2], [[1], [7]]))
    index.store("b", 0, stored([1] * 8, [1, 2], None))
    assert index.match(Prompt([1] * 9)) == {Slot("a", 0, "GPU"): 4, Slot("b", 0, "GPU"): 8}
    assert (index.lookahead("a", 0), index.lookahead("b", 0), index.lookahead("c", 0)) == (1, 0, 0)


def test_lists_without_tokens_are_no_lookahead() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 8, [1, 2], [[], []]))
    assert cached(index, [1] * 8) == 8
    assert index.store("a", 0, stored([2] * 4, [3], None)).applied == 1


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        ([[1]], Reason.MISALIGNED),
        ([[1], [2], [3]], Reason.MISALIGNED),
        ([], Reason.MISALIGNED),
        ([[1], []], Reason.MISALIGNED),
        ([[1], [2, 3]], Reason.MISALIGNED),
        ([[], [2]], Reason.MISALIGNED),
        ([[1], [-2]], Reason.TOKENS),
        ([[1], [1 << 32]], Reason.TOKENS),
        ([[1] * 65, [1] * 65], Reason.LOOKAHEAD),
    ],
)
@pytest.mark.parametrize("runs", [1, 200])
def test_a_run_with_a_broken_lookahead_is_dropped_and_counted(
    behind: list[list[int]], reason: Reason, runs: int
) -> None:
    index = PrefixIndex(HASHER)
    tokens, hashes = [1] * 8 * runs, list(range(2 * runs))
    if behind and runs > 1:
        behind = behind + behind[-1:] * (2 * runs - 2)
    change = index.store("a", 0, stored(tokens, hashes, behind))
    assert (change.applied, dict(change.dropped)) == (0, {reason: 2 * runs})
    assert index.blocks() == {}


def test_one_rank_has_one_lookahead_until_it_is_empty() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 4, [1], [[7]]))
    assert index.store("a", 0, stored([1] * 4, [2], [[7, 8]])).dropped == {Reason.LOOKAHEAD: 1}
    assert index.store("a", 0, stored([1] * 4, [2], None)).dropped == {Reason.LOOKAHEAD: 1}
    index.remove("a", 0, BlockRemoved([1], "GPU"))
    assert index.store("a", 0, stored([1] * 4, [2], [[7, 8]])).applied == 1
    assert (cached(index, [1] * 4 + [7]), cached(index, [1] * 4 + [7, 8])) == (0, 4)


@pytest.mark.parametrize("count", [2, 40])
def test_blocks_of_sequences_that_are_decoded_go_in_together(count: int) -> None:
    index, one_by_one = PrefixIndex(HASHER), PrefixIndex(HASHER)
    events = [stored([n] * 4, [n], [[n % 3]]) for n in range(1, count + 1)]
    for each in (index, one_by_one):
        each.store("a", 0, stored([0] * 4, [1000], [[0]]))
    with (
        patch.object(index, "store", side_effect=AssertionError("one by one"))
        if count > 12
        else patch.object(index, "store", wraps=index.store)
    ):
        assert index.store_all("a", 0, events).applied == count
    for event in events:
        one_by_one.store("a", 0, event)
    for n in range(1, count + 1):
        assert cached(index, [n] * 4 + [n % 3]) == 4
        assert cached(index, [n] * 4 + [3]) == 0
    assert index.blocks() == one_by_one.blocks()
    # One that is not like the others sends all of them through the door for single ones.
    odd = [*events, stored([1] * 4, [5000], [[1, 2]])]
    assert dict(index.store_all("a", 0, odd).dropped) == {Reason.LOOKAHEAD: 1}


def test_a_long_event_is_cut_with_its_lookahead() -> None:
    index = PrefixIndex(HASHER)
    tokens = [n % 7 for n in range(SIZE * 1500 + 1)]
    behind = [[tokens[end]] for end in range(SIZE, len(tokens), SIZE)]
    event = stored(tokens[:-1], list(range(1500)), behind)
    for told, found in (
        (event, SIZE * 1500),
        (msgspec.structs.replace(event, lookahead_token_ids=behind[1:]), 0),
    ):
        applier = Applier("a", 0, index, NullObserver())
        message = Message(b"", 0, msgspec.msgpack.encode([0.0, [told], 0]))
        steps = sum(1 for _ in applier.apply(message))
        assert steps > (3 if found else 0)
        assert index.match(Prompt(tokens)).get(Slot("a", 0, "GPU"), 0) == found
        index.retire("a")


def test_blocks_wait_for_their_parent_with_their_lookahead() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([2] * 4, [2], [[9]], parent=1))
    assert index.orphans("a", 0) == 1
    index.store("a", 0, stored([1] * 4, [1], [[2]]))
    assert cached(index, [1] * 4 + [2] * 4 + [9]) == 8
    assert cached(index, [1] * 4 + [2] * 4 + [8]) == 4


@pytest.mark.parametrize("behind", ["text", 5, [1, 2], [["a"]], {"a": 1}, [[1.5]], [None]])
def test_a_lookahead_of_another_type_breaks_its_event_alone(behind: object) -> None:
    good = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [1],
        "block_size": 1,
    }
    batch = [0.0, [{**good, "lookahead_token_ids": behind}, {**good, "lookahead_token_ids": [[5]]}], 0]
    decoded = decode(msgspec.msgpack.encode(batch))
    assert decoded.skipped == {Reason.BROKEN_EVENT: 1}
    events: list[Event] = [BlockStored([1], None, [1], 1, lookahead_token_ids=[[5]])]
    assert decoded.batch.events == events


def test_a_lookahead_beyond_all_reason_is_not_taken_apart() -> None:
    huge: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [1],
        "block_size": 1,
        "lookahead_token_ids": [[]] * (1 << 20),
    }
    assert decode(msgspec.msgpack.encode([0.0, [huge], 0])).skipped == {Reason.BROKEN_EVENT: 1}


def test_slower_tiers_are_looked_through_with_the_lookahead() -> None:
    index = PrefixIndex(HASHER)
    index.store("a", 0, stored([1] * 4, [1], [[2]]))
    slow = msgspec.structs.replace(stored([2] * 4, [2], [[9]], parent=1), medium="CPU")
    index.store("a", 0, slow)
    assert index.match_slower(Prompt([1] * 4 + [2] * 4 + [9, 9]), ["CPU"]) == {("a", 0): {"CPU": 4}}
    assert index.match_slower(Prompt([1] * 4 + [2] * 4 + [8, 8]), ["CPU"]) == {}
