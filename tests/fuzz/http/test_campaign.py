"""Nonsense over raw sockets does kvproxy no harm; and what judges its answers can tell right from wrong."""

import asyncio
import pathlib

import pytest

from tests.fuzz.http.answers import Answer, AnswerParser, WrongAnswerError, check
from tests.fuzz.http.campaign import Campaign
from tests.fuzz.http.client import words
from tests.fuzz.http.setting import setting
from tests.fuzz.http.shots import Ending, Shots, Target

TARGET = Target("key", "127.0.0.1:2", "127.0.0.1:1")
NONE: frozenset[int] = frozenset()
JSON = {b"content-type": b"application/json; charset=utf-8"}
EVENTS = {b"content-type": b"text/event-stream"}


def test_kvproxy_serves_on_after_some_thousand_broken_requests(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    with setting(tmp_path, ["--log-level", "info"]) as ready:
        campaign = Campaign(ready, seed=7, connections=32, say=said.append)
        result = asyncio.run(campaign.run(requests=4000, rounds=2, time_limit_s=60))
    findings = [words(finding) for finding in result.tally.findings]
    assert result.passed, "\n".join([*result.failures, *findings, *said])
    assert result.tally.outcomes["right", "200"]
    assert result.tally.outcomes["admin", "200"]
    assert sum(n for (_, end), n in result.tally.outcomes.items() if end == "400") > 100


def test_a_number_and_a_seed_make_the_same_shot_again() -> None:
    shots, again = Shots(5, TARGET), Shots(5, TARGET)
    assert [again[n] for n in reversed(range(300))] == [shots[n] for n in reversed(range(300))]
    assert [shots[n] for n in range(50)] != [Shots(6, TARGET)[n] for n in range(50)]


def test_every_kind_of_shot_is_made_and_those_that_must_be_answered_are_whole() -> None:
    made = [Shots(1, TARGET)[n] for n in range(2000)]
    assert {shot.ending for shot in made} == set(Ending)
    assert len({shot.kind for shot in made}) == 19
    assert all(shot.pieces and all(shot.pieces) for shot in made)
    framed = [shot for shot in made if shot.answers is not None]
    assert all(shot.answers == shot.requests and shot.ending is Ending.WAIT for shot in framed)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_answers_are_cut_apart_however_they_arrive(size: int) -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    parser = AnswerParser()
    answers = [a for at in range(0, len(data), size) for a in parser.feed(data[at : at + size])]
    assert [(a.status, a.body, a.closes) for a in answers] == [
        (200, b"{}", False),
        (200, b"abc", False),
        (404, b"", True),
    ]
    assert parser.idle
    assert parser.end() is None


@pytest.mark.parametrize(
    "data",
    [
        b"Hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxxx",
    ],
)
def test_what_is_not_http_is_noticed(data: bytes) -> None:
    with pytest.raises(WrongAnswerError):
        AnswerParser().feed(data)


def test_an_answer_that_ends_early_is_marked_as_cut() -> None:
    parser = AnswerParser()
    assert not parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
    cut = parser.end()
    assert cut is not None
    assert cut.cut
    headless = AnswerParser()
    headless.feed(b"HTTP/1.1 200")
    with pytest.raises(WrongAnswerError):
        headless.end()


@pytest.mark.parametrize(
    ("body", "cut", "broken_off"),
    [
        (b'data: {}\n\ndata: {"error": {"message": "m"}}\n\n', True, True),
        (b'data: {}\n\ndata: {"error": {"message": "m"}}\n\n', False, False),
        (b'data: {"error": {"message": "m"}}\n\ndata: {}\n\n', True, False),
        (b"data: {}\n\n", True, False),
        (b"", True, False),
    ],
)
def test_a_stream_may_end_early_with_an_error_event_alone(body: bytes, cut: bool, broken_off: bool) -> None:
    assert Answer(200, EVENTS, body, cut=cut).broken_off is broken_off
    assert not Answer(200, JSON, body, cut=cut).broken_off


ENVELOPE = b'{"error": {"message": "m", "type": "t", "param": null, "code": 400}}'


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, JSON, ENVELOPE),
        Answer(502, JSON, ENVELOPE),
        Answer(400, {b"content-type": b"text/html"}, b"<p>"),
        Answer(400, JSON, b'{"detail": "no"}'),
        Answer(404, JSON, ENVELOPE),
        Answer(400, JSON, b'{"error": {"message": "", "type": "t", "param": null, "code": 400}}'),
        Answer(200, JSON, b"{"),
        Answer(200, EVENTS, b"data: {}\n\n"),
        Answer(200, EVENTS, b"data: {\n\ndata: [DONE]\n\n"),
        Answer(200, {}, b"Traceback (most recent call last)"),
    ],
)
def test_untrue_answers_are_noticed(answer: Answer) -> None:
    with pytest.raises(WrongAnswerError):
        check(answer, NONE)


@pytest.mark.parametrize(
    ("answer", "true"),
    [
        (Answer(400, JSON, ENVELOPE), NONE),
        (Answer(200, EVENTS, b": ping\n\ndata: {}\n\ndata: [DONE]\n\n"), NONE),
        (Answer(200, EVENTS, b"data: {", cut=True), NONE),
        (Answer(504, JSON, ENVELOPE.replace(b"400", b"504")), frozenset({504})),
        (Answer(500, JSON, b'{"error":{"message":"a fault","type":"t","param":null,"code":500}}'), NONE),
    ],
)
def test_true_answers_pass(answer: Answer, true: frozenset[int]) -> None:
    check(answer, true)
