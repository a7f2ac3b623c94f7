"""Events are passed on whole, whatever pieces they arrive in, and what is written is read back the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request.sse import (
    MAX_EVENT_BYTES,
    EventCutter,
    EventReader,
    event_of,
    events,
    only_comments,
    with_data,
)


@pytest.mark.parametrize(
    ("chunks", "passed"),
    [
        ([b"data: 1\n\n"], [b"data: 1\n\n"]),
        ([b"data: 1", b"\n", b"\n"], [b"", b"", b"data: 1\n\n"]),
        ([b"data: 1\n\ndata: 2"], [b"data: 1\n\n"]),
        ([b"data: 1\n\nda", b"ta: 2\n\n"], [b"data: 1\n\n", b"data: 2\n\n"]),
        ([b"data: 1\r\n\r\ndata: 2\r\n", b"\r\n"], [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]),
        ([b"data: 1\n\r\ndata: 2"], [b"data: 1\n\r\n"]),
        ([b"\n\n"], [b"\n\n"]),
    ],
)
def test_only_whole_events_pass(chunks: list[bytes], passed: list[bytes]) -> None:
    cutter = EventCutter()
    assert [cutter.feed(chunk) for chunk in chunks] == passed


_BY_THE_BOOK = re.compile(rb"(.*?)(?:\r?\n){2,}", re.DOTALL)


@given(st.lists(st.sampled_from([b"data: 1", b"data:", b": c", b"x", b"\n", b"\r\n", b"\n\n"]), max_size=12))
def test_events_are_cut_where_a_line_is_empty(pieces: list[bytes]) -> None:
    run = b"".join(pieces)
    found = list(events(run))
    assert [event for event, _ in found] == [match[0] for match in _BY_THE_BOOK.finditer(run)]
    for event, data in found:
        said = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        assert data == b"\n".join(said)


@pytest.mark.parametrize(
    "run",
    [
        b"data: " + b"x" * (12 << 20) + b"\n\n",
        b"data: " + b"x" * (12 << 20) + b"\r\n\r\n",
        b"data: \r" + b"data: 1\n\n" * 100_000 + b"x" * (12 << 20) + b"\n\n",
        b"\n" * (12 << 20),
    ],
    ids=["long", "long with returns", "one return", "blank"],
)
def test_a_long_run_is_cut_into_events_without_a_loss(run: bytes) -> None:
    found = [event for event, _ in events(run)]
    assert b"".join(found) == run


def test_an_event_without_end_is_an_error() -> None:
    cutter = EventCutter()
    cutter.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(ValueError, match="bytes"):
        cutter.feed(b"x")


class Counted(bytes):
    """A piece that counts what is joined to it: what a cutter looks at once more."""

    joined_bytes = 0

    def __radd__(self, before: bytes) -> bytes:
        Counted.joined_bytes += len(before) + len(self)
        return before + bytes(self)


@pytest.mark.parametrize("make", [EventCutter, EventReader])
def test_an_event_in_a_thousand_pieces_costs_what_it_does_in_one(
    make: type[EventCutter] | type[EventReader],
) -> None:
    Counted.joined_bytes = 0
    pieces = 2000
    cutter = make()
    for _ in range(pieces):
        assert not cutter.feed(Counted(b"x" * 1000))
    assert cutter.feed(b"\n\n")
    assert Counted.joined_bytes < 2 * pieces * 1000


@pytest.mark.parametrize(
    ("pieces", "is_comment"),
    [
        ([], True),
        ([b": keep", b"-alive"], True),
        ([b":" + b"x" * 100, b"\nda", b"ta", b": 1"], False),
        ([b":" + b"x" * 100, b"\ndat"], True),
        ([b"d", b"ata"], False),
        ([b"event: e\n" + b"x" * 100, b"y"], False),
        ([b"data: " + b"x" * 100], False),
        ([b"data: 1\n\n:"], True),
        ([b"data: 1\n\n: c\ndata: 2"], False),
    ],
)
def test_what_waits_for_its_end_is_known_for_a_comment(pieces: list[bytes], is_comment: bool) -> None:
    cutter = EventCutter()
    for piece in pieces:
        cutter.feed(piece)
    assert cutter.tail_is_comment is is_comment


def test_an_event_left_unfinished_at_the_end_is_an_event() -> None:
    cutter = EventCutter()
    assert cutter.feed(b"data: [DONE]\n") == b""
    assert (cutter.rest(), cutter.rest()) == (b"data: [DONE]\n\n\n", b"")
    assert cutter.feed(b"data: 1\n\n\n") == b"data: 1\n\n\n"
    assert cutter.rest() == b""


@pytest.mark.parametrize(
    ("piece", "comments"),
    [
        (b": ping\n\n", True),
        (b": pi", True),
        (b"\r\n\r\n", True),
        (b"", True),
        (b": ping\n\ndata: 1\n\n", False),
        (b"data: : ping\n\n", False),
        (b"data: {", False),
        (b"event: a\ndata: 1\n\n", False),
        (b"\n: ping\n\n", True),
    ],
)
def test_comments(piece: bytes, comments: bool) -> None:
    assert only_comments(piece) is comments


@given(st.lists(st.text().map(lambda said: said.encode().translate(None, b"\r\n").strip()), max_size=5))
def test_events_that_are_written_are_read_back(said: list[bytes]) -> None:
    assert EventReader().feed(b"".join(map(event_of, said))) == said


@pytest.mark.parametrize(
    ("event", "changed"),
    [
        (b"data: 1\n\n", b"data: 2\n\n"),
        (b"event: last\r\ndata: 1\r\nid: 7\r\n\r\n", b"event: last\nid: 7\ndata: 2\n\n"),
        (b"data: 1\ndata: 1\n\n", b"data: 2\n\n"),
    ],
)
def test_an_event_with_other_data_keeps_its_other_lines(event: bytes, changed: bytes) -> None:
    assert with_data(event, b"2") == changed
