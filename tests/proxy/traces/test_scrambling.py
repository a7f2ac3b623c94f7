"""Ids of a recording are SipHash's, and tell apart what is different."""

import numpy as np
import pytest

from proxy.traces.scrambling import Scrambler, siphash

KEY = bytes(range(16))


def test_the_vector_of_the_reference_implementation() -> None:
    # vectors_sip64[8] of veorq/SipHash: the message 00 01 .. 07.
    (found,) = siphash(KEY, np.frombuffer(bytes(range(8)), dtype="<u8").astype(np.uint64)).tolist()
    assert found.to_bytes(8, "little") == bytes([0x62, 0x24, 0x93, 0x9A, 0x79, 0xF5, 0xF5, 0x93])


def test_many_keys_are_as_each_by_itself() -> None:
    keys = np.random.default_rng(1).integers(0, 2**60, 1000, dtype=np.uint64)
    before = keys.copy()
    scrambler = Scrambler(KEY)
    ids = scrambler.ids(keys)
    assert ids == [scrambler.ids(keys[place : place + 1])[0] for place in range(1000)]
    assert len({*ids}) == 1000
    assert 0 <= min(ids) < max(ids) < 2**53
    assert (keys == before).all()
    assert scrambler.ids(keys[:0]) == []


def test_another_recording_has_other_ids() -> None:
    keys = np.arange(100, dtype=np.uint64)
    one, other = Scrambler(), Scrambler()
    assert not {*one.ids(keys)} & {*other.ids(keys)}
    assert one.session(None, "mine") != other.session(None, "mine")


@pytest.mark.parametrize("other", [("b", "mine"), ("a", "yours"), (None, "mine"), (None, "a\0mine")])
def test_sessions_are_a_clients_own(other: tuple[str | None, str]) -> None:
    scrambler = Scrambler(KEY)
    assert scrambler.session("a", "mine") == scrambler.session("a", "mine") != scrambler.session(*other)
    assert "mine" not in scrambler.session("a", "mine")
    assert len(scrambler.session("a", "\ud800" * 10_000)) == 16
