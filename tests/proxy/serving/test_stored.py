"""Where a response is stored is known until newer ones take its place, and over a restart."""

import json

import pytest

from proxy.serving.stored import Place, StoredResponses

HERE, THERE = Place("a:1", None), Place("b:1", "alice")


def test_the_oldest_is_forgotten_first() -> None:
    stored = StoredResponses(most=2)
    stored.keep("one", HERE)
    stored.keep("two", HERE)
    stored.keep("one", THERE)  # answered again, elsewhere
    stored.keep("three", HERE)
    assert len(stored) == 2
    assert [stored.find(each) for each in ("one", "two", "three", "four")] == [THERE, None, HERE, None]


def test_what_is_known_outlives_the_process() -> None:
    before, after = StoredResponses(), StoredResponses()
    before.keep("one", HERE)
    before.keep("two", THERE)
    after.restore(json.loads(json.dumps(before.state())))
    assert (after.find("one"), after.find("two")) == (HERE, THERE)
    smaller = StoredResponses(most=1)
    smaller.restore(before.state())
    assert (smaller.find("one"), smaller.find("two")) == (None, THERE)


@pytest.mark.parametrize("odd", [[], {"one": []}, {"one": ["x"]}, {"one": [5, None]}, "text", None])
def test_what_is_no_such_state_is_refused(odd: object) -> None:
    with pytest.raises(ValueError, match=r"Expected|Array"):
        StoredResponses().restore(odd)
