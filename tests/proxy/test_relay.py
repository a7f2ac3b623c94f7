"""Events are passed on whole, whatever pieces they arrive in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import MAX_EVENT_BYTES
from proxy.relay import EventCutter


@pytest.mark.parametrize(
    ("chunks", "passed"),
    [
        ([b"data: 1\n\n"], [b"data: 1\n\n"]),
        ([b"data: 1", b"\n", b"\n"], [b"", b"", b"data: 1\n\n"]),
        ([b"data: 1\n\ndata: 2"], [b"data: 1\n\n"]),
        ([b"data: 1\n\nda", b"ta: 2\n\n"], [b"data: 1\n\n", b"data: 2\n\n"]),
        ([b"data: 1\r\n\r\ndata: 2\r\n", b"\r\n"], [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]),
        ([b"\n\n"], [b"\n\n"]),
    ],
)
def test_only_whole_events_pass(chunks: list[bytes], passed: list[bytes]) -> None:
    cutter = EventCutter()
    assert [cutter.feed(chunk) for chunk in chunks] == passed


@given(st.lists(st.sampled_from([b"data: {}", b"data: [DONE]", b": c"]), max_size=6), st.data())
def test_nothing_is_lost_or_reordered(events: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(event + b"\n\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cutter = EventCutter()
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert b"".join(cutter.feed(piece) for piece in pieces) == whole
    assert cutter.done is (events[-1:] == [b"data: [DONE]"])


def test_the_last_event_of_a_complete_stream_is_seen_across_pieces() -> None:
    cutter = EventCutter()
    cutter.feed(b"data: {}\n\ndata: [DO")
    assert not cutter.done
    cutter.feed(b"NE]\n\n")
    assert cutter.done


def test_an_event_without_end_is_an_error() -> None:
    cutter = EventCutter()
    cutter.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(ValueError, match="bytes"):
        cutter.feed(b"x")
