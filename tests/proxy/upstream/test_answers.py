"""Whatever pieces an answer comes in, it reads the same; what is no HTTP answer is never taken for one.

The broken ones are those that nginx and HAProxy refuse of a server: bad status lines, two lengths, two
framings, wrong chunk sizes, heads without an end.
"""

import gc
import tracemalloc
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.headers import Headers
from proxy.upstream.answers import MAX_ANNOUNCEMENTS, MAX_HEAD_BYTES, AnswerReader

OK = b"HTTP/1.1 200 OK\r\n"


class Read(NamedTuple):
    """What there is to see of an answer."""

    status: int
    body: bytes
    complete: bool
    reusable: bool
    broken: str | None


def read(pieces: list[bytes], *, closed: bool = False) -> Read:
    """Feed the pieces, taking the body as it comes."""
    reader = AnswerReader()
    body = b""
    for piece in pieces:
        reader.feed(piece)
        body += reader.take()
    if closed:
        reader.closed()
    return Read(reader.status, body, reader.complete, reader.reusable, reader.broken)


WHOLE = {
    "counted": (OK + b"Content-Length: 5\r\n\r\nhello", Read(200, b"hello", True, True, None)),
    "counted, of nothing": (OK + b"Content-Length: 0\r\n\r\n", Read(200, b"", True, True, None)),
    "in chunks": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n",
        Read(200, b"hello", True, True, None),
    ),
    "in chunks, with trailers": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\nX-C: d\r\n\r\n",
        Read(200, b"hello", True, True, None),
    ),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", Read(200, b"x", True, True, None)),
    "an error": (
        b"HTTP/1.1 503 No\r\nContent-Length: 1\r\n\r\nx",
        Read(503, b"x", True, True, None),
    ),
    "to be closed": (
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        Read(200, b"hello", True, False, None),
    ),
    "of 1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Read(200, b"hello", True, False, None)),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Read(204, b"", True, True, None)),
    "not modified": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        Read(304, b"", True, True, None),
    ),
    "announced": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
        + OK
        + b"Content-Length: 1\r\n\r\nx",
        Read(200, b"x", True, True, None),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_cut_at_every_byte(name: str) -> None:
    data, expected = WHOLE[name]
    for at in range(1, len(data)):
        assert read([data[:at], data[at:]]) == expected
    assert read([bytes([byte]) for byte in data]) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_no_answer_is_complete_before_its_last_byte(name: str) -> None:
    data, _ = WHOLE[name]
    for at in range(1, len(data)):
        assert not read([data[:at]]).complete
        cut = read([data[:at]], closed=True)
        assert not cut.complete
        assert not cut.reusable


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(1, 40), max_size=60))
def test_an_answer_in_any_pieces(name: str, lengths: list[int]) -> None:
    data, expected = WHOLE[name]
    pieces = []
    for length in lengths:
        pieces.append(data[:length])
        data = data[length:]
    assert read([piece for piece in (*pieces, data) if piece]) == expected


class Told(NamedTuple):
    """The same, and its head."""

    read: Read
    headers: Headers
    media_type: str
    content_length: int | None


def told(pieces: list[bytes]) -> Told:
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(piece)
    of = Read(reader.status, reader.take(), reader.complete, reader.reusable, reader.broken)
    return Told(of, reader.headers, reader.media_type, reader.content_length)


LINES = st.one_of(
    st.sampled_from(
        [
            b"content-length: 5",
            b"Content-Length:5",
            b"content-length: 6",
            b"content-length:  5",
            b"content-length: 5 ",
            b"content-length: 05",
            b"content-length: +5",
            b"content_length: 7",
            b"content-type: Text/Event-Stream; charset=utf-8",
            b"transfer-encoding: chunked",
            b"connection: close",
            b"Connection: keep-alive",
            b"upgrade: h2c",
            b"date: Mon, 30 Nov 2026 16:00:00 GMT",
            b"x-empty:",
            b"x-empty: ",
            b"x-tab:\tb",
            b" folded",
            b"x-b\xc3\xa9: \xe9",
            b"x : y",
            b": nameless",
        ]
    ),
    st.tuples(st.text("aX-_9!:", min_size=1, max_size=4), st.text(' \t\r\n\0ab:;="\x7f', max_size=6)).map(
        lambda line: f"{line[0]}: {line[1]}".encode()
    ),
)
STATUS_LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 503 Service Unavailable",
        b"HTTP/1.1 600 What",
        b"HTTP/1.1 099 What",
        b"HTTP/1.0 200 OK",
        b"http/1.1 200 OK",
    ]
)


@given(STATUS_LINES, st.lists(LINES, max_size=5), st.sampled_from([b"", b"hello", b"hello!"]))
def test_what_comes_at_once_is_read_as_in_pieces(status: bytes, lines: list[bytes], body: bytes) -> None:
    data = b"".join(line + b"\r\n" for line in (status, *lines, b"")) + body
    whole, pieces = told([data]), told([data[:1], data[1:]])
    if pieces.read.broken is None:
        assert whole == pieces
    else:
        assert whole.read.broken == pieces.read.broken


@pytest.mark.parametrize("name", WHOLE)
def test_one_answer_after_the_other(name: str) -> None:
    data, expected = WHOLE[name]
    reader = AnswerReader()
    for begun in (False, True, False):
        reader.begin()
        for piece in (data[:1], data[1:]) if begun else (data,):
            reader.feed(piece)
        assert (reader.status, reader.take(), reader.reusable) == (
            expected.status,
            expected.body,
            expected.reusable,
        )
        if not reader.reusable:
            break


def test_without_a_length_the_close_is_the_end() -> None:
    data = OK + b"Content-Type: text/plain\r\n\r\nhel"
    assert read([data, b"lo"]) == Read(200, b"hello", False, False, None)
    assert read([data, b"lo"], closed=True) == Read(200, b"hello", True, False, None)


def test_a_close_does_not_end_what_is_chunked_or_counted() -> None:
    for framing in (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"Content-Length: 6\r\n\r\nhello"):
        for version in (b"HTTP/1.1", b"HTTP/1.0"):
            cut = read([version + b" 200 OK\r\nConnection: close\r\n" + framing], closed=True)
            assert (cut.complete, cut.reusable) == (False, False)


@pytest.mark.parametrize("beyond", [b"x", OK, OK + b"Content-Length: 4\r\n\r\nevil", b"HTTP/1.1 500 "])
@pytest.mark.parametrize("name", ["counted", "in chunks", "no content"])
def test_bytes_after_the_end_are_nobodys_and_end_the_connection(name: str, beyond: bytes) -> None:
    data, expected = WHOLE[name]
    assert read([data + beyond]) == expected._replace(reusable=False)
    assert read([data, beyond]) == expected._replace(reusable=False)


def test_a_body_where_none_may_be_is_nobodys() -> None:
    answer = read([b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}"])
    assert answer == Read(204, b"", True, False, None)


BROKEN = {
    "nothing like it": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no version": b"HTTP 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "a space in a name": OK + b"Content-Length : 5\r\n\r\nhello",
    "a line without a name": OK + b": x\r\n\r\n",
    "a line without a colon": OK + b"Content-Length\r\n\r\n",
    "a folded line": OK + b"X-A: b\r\n  c\r\n\r\n",
    "a zero byte": OK + b"X-A: b\0c\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "one length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "a length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "a length in hexadecimal": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "a length beyond 64 bits": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n",
    "a chunk of negative size": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
    "a chunk size beyond 64 bits": OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a chunk size with a prefix": OK + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
    "a chunk longer than it says": OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
    "a chunk shorter than it says": OK + b"Transfer-Encoding: chunked\r\n\r\n8\r\nhello\r\n0\r\n\r\n",
    "lines that end with a line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_answer(name: str) -> None:
    data = BROKEN[name]
    whole = read([data], closed=True)
    assert not whole.reusable
    assert whole.broken in {"the answer is not valid HTTP", "the answer is not HTTP/1.1"}
    assert read([bytes([byte]) for byte in data], closed=True).broken == whole.broken


def test_nothing_is_read_after_a_broken_answer() -> None:
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 OK\r\n\r\n")
    reader.feed(OK + b"Content-Length: 2\r\n\r\n{}")
    assert (reader.broken, reader.complete, reader.take()) == ("the answer is not valid HTTP", False, b"")


@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("start", "flood", "words"),
    [
        (OK, b"X-A: " + b"b" * 95 + b"\r\n", "the answer's head has more than 64 KiB"),
        (OK + b"X-A: ", b"b" * 100, "the answer's head has more than 64 KiB"),
        (b"HTTP/1.1 200 ", b"O" * 100, "the answer's head has more than 64 KiB"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n1;",
            b"e" * 100,
            "its chunks are framed with more than 64 KiB",
        ),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
            b"X-T: " + b"b" * 95 + b"\r\n",
            "its chunks are framed with more than 64 KiB",
        ),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n",
            b"0" * 100,
            "its chunks are framed with more than 64 KiB",
        ),
    ],
    ids=["lines", "a line", "a reason", "a chunk's extension", "trailers", "zeros before a size"],
)
def test_a_flood_of_framing_is_cut(start: bytes, flood: bytes, words: str, piece: int) -> None:
    data = start + flood * (4 * MAX_HEAD_BYTES // len(flood))
    reader = AnswerReader()
    for at in range(0, len(data), piece):
        reader.feed(data[at : at + piece])
        if reader.broken is not None:
            break
    assert reader.broken in {words, "the answer is not valid HTTP"}  # llhttp bounds some of it itself
    assert at <= MAX_HEAD_BYTES + 2 * piece


def test_a_long_head_that_comes_at_once_is_too_long_all_the_same() -> None:
    head = OK + b"X-A: %s\r\nContent-Length: 2\r\n\r\n{}" % (b"b" * MAX_HEAD_BYTES)
    assert read([head]).broken == "the answer's head has more than 64 KiB"


def test_a_large_body_beside_a_small_head_is_no_flood() -> None:
    body = b"x" * (4 * MAX_HEAD_BYTES)
    assert read([OK + b"Content-Length: %d\r\n\r\n" % len(body) + body]) == Read(200, body, True, True, None)
    chunks = b"".join(b"1\r\nx\r\n" for _ in range(2 * MAX_HEAD_BYTES))
    assert read([OK + b"Transfer-Encoding: chunked\r\n\r\n", chunks]).broken is None


def test_an_answer_is_not_announced_for_ever() -> None:
    announced = b"HTTP/1.1 102 Processing\r\n\r\n"
    end = OK + b"Content-Length: 0\r\n\r\n"
    assert read([announced * MAX_ANNOUNCEMENTS + end]).complete
    assert read([announced * (MAX_ANNOUNCEMENTS + 1) + end]).broken is not None


def test_the_next_answer_on_a_connection_has_nothing_of_the_one_before() -> None:
    reader = AnswerReader()
    for status in (b"200 OK", b"404 Not Found", b"200 OK"):
        reader.begin()
        reader.feed(b"HTTP/1.1 %s\r\nX-Is: %s\r\nContent-Length: 3\r\n\r\n%s" % (status, status, status[:3]))
        assert (reader.status, reader.complete, reader.reusable) == (int(status[:3]), True, True)
        assert reader.headers == [("X-Is", status.decode()), ("Content-Length", "3")]
        assert reader.take() == status[:3]


def test_an_announcement_says_nothing_of_the_answer_it_announces() -> None:
    reader = AnswerReader()
    reader.feed(
        b"HTTP/1.1 103 Early\r\nContent-Type: text/event-stream\r\nContent-Length: 7\r\n\r\n" + OK + b"\r\nx"
    )
    assert (reader.headers, reader.media_type, reader.content_length) == ([], "", None)
    reader.closed()
    assert (reader.complete, reader.take()) == (True, b"x")


def test_the_kind_of_a_body() -> None:
    reader = AnswerReader()
    reader.feed(OK + b"Content-Type: Text/Event-Stream; charset=utf-8\r\nContent-Length: 0\r\n\r\n")
    assert reader.media_type == "text/event-stream"
    assert reader.headers[0] == ("Content-Type", "Text/Event-Stream; charset=utf-8")


def test_long_names_of_headers_are_not_kept() -> None:
    """An engine chooses them: a name may be as long as a head."""
    tracemalloc.start()
    try:
        read([OK + b"Content-Length: 0\r\n\r\n"])
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100):
            name = b"x%d-" % number + b"n" * (MAX_HEAD_BYTES // 2)
            assert read([OK + name + b": v\r\nContent-Length: 0\r\n\r\n"]).complete
        gc.collect()
        kept_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept_bytes < 5 * MAX_HEAD_BYTES, "of a hundred halves"
