"""An engine gets no probe that it cannot take."""

import pytest

from proxy.fitting.sizes import KV_SHARE, LONGEST, STREAMED, Room, alone, fewer, handed, together


@pytest.mark.parametrize("longest", [1, 20, 300, 2048, LONGEST])
def test_no_prompt_is_longer_than_an_engine_takes(longest: int) -> None:
    room = Room(longest, kv_tokens=40_000, caches=True)
    prompts = [probe.prompt for probe in alone(room)] + [probe.prompt for probe in handed(room)]
    assert 1 <= min(prompts) <= max(prompts) <= longest
    assert all(probe.cached < probe.prompt for probe in alone(room))
    assert all(probe.context <= max(longest - STREAMED, 1) for probe in together(room))


def test_no_streams_take_more_memory_than_there_is() -> None:
    for kv_tokens in (100, 2000, 16_000):
        room = Room(2048, kv_tokens=kv_tokens)
        assert all(
            probe.sequences * (probe.context + STREAMED) <= KV_SHARE * kv_tokens for probe in together(room)
        )
    assert together(Room(2048))


def test_some_of_each_kind_are_held_out_and_the_same_again() -> None:
    room = Room(8192, 200_000, caches=True)
    for held_out in (
        [probe.held_out for probe in alone(room)],
        [probe.held_out for probe in together(room)],
        [probe.held_out for probe in handed(room)],
    ):
        assert 3 <= sum(held_out) < len(held_out) / 2
    assert alone(room) == alone(room)
    assert handed(room) == handed(room)
    assert not handed(room)[0].held_out  # hands are shaken


def test_nothing_is_sent_twice_where_no_prefix_is_kept() -> None:
    assert not any(probe.cached for probe in alone(Room(8192)))
    assert any(probe.cached for probe in alone(Room(8192, caches=True)))


def test_engines_that_are_alike_are_sent_fewer() -> None:
    probes = alone(Room(8192, caches=True))
    assert 6 <= len(fewer(probes)) <= len(probes) / 2
