"""The table against a dictionary."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents.key_table import KeyTable

# Keys that want the same few places, near the end of the smallest table and beyond, so that probes run on and
# wrap.
keys = st.builds(
    lambda low, high: (high << 20 | low) or 1, st.sampled_from([0, 1, 2, 4094, 4095, 4096]), st.integers(0, 6)
)
updates = st.lists(
    st.tuples(st.booleans(), st.dictionaries(keys, st.integers(0, 3), min_size=1, max_size=12)), max_size=40
)


def as_arrays(wanted: dict[int, int]) -> tuple[Any, Any]:
    return np.array(list(wanted), np.uint64), np.array(list(wanted.values()), np.uint32)


def set_many(table: KeyTable, keys: Any, numbers: Any) -> None:
    table.update_many(keys, lambda _before: numbers, adds=bool(numbers.any()))


@settings(deadline=None)
@given(updates)
def test_any_updates_give_what_a_dictionary_gives(history: list[tuple[bool, dict[int, int]]]) -> None:
    table, model = KeyTable(), dict[int, int]()
    for many, wanted in history:
        if many:
            set_many(table, *as_arrays(wanted))
        else:
            for key, number in wanted.items():
                table.set(key, number)
        model.update(wanted)
        assert table.get_many(np.array(list(model), np.uint64)).tolist() == list(model.values())
        assert [table.get(key) for key in model] == list(model.values())
        assert len(table) == sum(map(bool, model.values()))


def random_keys(seed: int, count: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    return np.unique(np.random.default_rng(seed).integers(1, 2**60, count, dtype=np.uint64))


@pytest.mark.parametrize("run", [1, 30, 5000])
def test_it_grows_and_shrinks_while_it_is_used(run: int) -> None:
    keys = random_keys(run, 20_000)
    table, model = KeyTable(), dict[int, int]()
    for start in range(0, len(keys), run):
        new = keys[start : start + run]
        numbers = (new & np.uint64(0xFFFF)).astype(np.uint32) | np.uint32(1)
        if run == 1:
            table.set(new.item(0), numbers.item(0))
        else:
            set_many(table, new, numbers)
        model.update(zip(new.tolist(), numbers.tolist(), strict=True))
        if start % 2000 < run:
            seen = keys[: start + run]
            assert table.get_many(seen).tolist() == list(model.values())
            assert not table.get_many(keys[start + run :]).any()
    assert len(table) == len(model)
    while table.move():
        pass
    assert table.get_many(keys).tolist() == list(model.values())
    grown = table.resident_bytes
    set_many(table, keys, np.zeros(len(keys), np.uint32))
    assert len(table) == 0
    for key in random_keys(7, 80_000).tolist():
        table.set(key, 1)
        table.set(key, 0)
    while table.move():
        pass
    assert table.resident_bytes < grown


def test_no_update_moves_more_than_a_slice() -> None:
    table = KeyTable()
    keys = random_keys(1, 60_000)
    set_many(table, keys, np.ones(len(keys), np.uint32))
    while table.move():
        pass
    moved = []
    for key in random_keys(2, 120_000).tolist():
        before = table.places_to_move
        table.set(key, 1)
        moved.append(before - table.places_to_move)
    assert sum(count > 0 for count in moved) > 10
    assert max(moved) <= 4096 + 32
    assert len(table) == 60_000 + len(moved)


def test_no_update_moves_more_when_the_table_shrinks_as_far_as_it_can() -> None:
    table = KeyTable()
    keys = random_keys(1, 78_000)
    set_many(table, keys, np.ones(len(keys), np.uint32))
    while table.move():
        pass
    set_many(table, keys[19_600:], np.zeros(len(keys) - 19_600, np.uint32))
    moved: list[int] = []
    held: list[int] = []
    for key in random_keys(2, 140_000).tolist():
        before = table.places_to_move
        table.set(key, 1)
        moved.append(max(0, before - table.places_to_move))
        if not (before or table.places_to_move or held):
            table.set(key, 0)  # wears places out, until the table is made anew
        else:
            held.append(key)
        if held and not table.places_to_move:
            break
    assert 0 < sum(moved) == 4 * 65_536
    assert max(moved) <= 4096 + 32
    assert [table.get(key) for key in held] == [1] * len(held)
    assert table.get_many(keys[:19_600]).all()


@pytest.mark.parametrize("adds", [True, False])
def test_keys_are_updated_wherever_a_move_has_got_to(adds: bool) -> None:
    keys = random_keys(3, 100_000)
    table, filled = KeyTable(), 0
    while table.places_to_move < 50_000:
        set_many(table, keys[filled : filled + 100], np.full(100, 7, np.uint32))
        filled += 100
    held = keys[:filled]
    seen = []

    def change(numbers: Any) -> Any:
        seen.extend(numbers.tolist())
        return numbers + np.uint32(1) if adds else numbers * np.uint32(0)

    for start in range(0, filled, 200):
        table.update_many(held[start : start + 200], change, adds=adds)
    assert seen == [7] * filled
    assert set(table.get_many(held).tolist()) == {8 if adds else 0}
    assert len(table) == (filled if adds else 0)
    while table.move():
        pass
    assert set(table.get_many(held).tolist()) == {8 if adds else 0}
