"""A traceback in the log has every frame and type, and no word of the exceptions."""

import asyncio
import logging
import sys

import pytest

from proxy.logs import (
    MAX_CAUSES,
    MAX_LINE_CHARS,
    NEWS_EVERY_S,
    NEWS_LINES,
    Formatter,
    News,
    Occasionally,
    as_value,
    listed,
    log_loop_error,
    one_line,
    quoted,
    traceback_of,
)


def test_frequent_events_are_logged_now_and_then_with_their_count() -> None:
    now = [0.0]
    often = Occasionally(lambda: now[0], 60)
    told = []
    for now[0] in (0, 1, 59, 60, 61, 200):
        told.append(often.count())
    assert told == [1, 0, 0, 3, 0, 2]


def quote(secret: str) -> None:
    raise ValueError(f"cannot read {secret}")


def fail(secret: str) -> None:
    try:
        quote(secret)
    except ValueError as error:
        raise LookupError(secret) from error


def failed(secret: str) -> Exception:
    try:
        fail(secret)
    except LookupError as error:
        return error
    raise AssertionError


def test_frames_and_types_are_told_and_messages_are_not() -> None:
    text = traceback_of(failed("marker" * 2))
    assert "in fail\n" in text
    assert "in quote\n" in text
    assert "LookupError\ncaused by\n" in text
    assert text.endswith("ValueError")
    assert "markermarker" not in text


def test_words_of_the_operating_system_are_logged() -> None:
    assert traceback_of(OSError(24, "Too many open files", "secret-path")) == "OSError: Too many open files"


def test_a_chain_of_causes_ends() -> None:
    first = last = ValueError("marker")
    for _ in range(50):
        last.__cause__ = ValueError("marker")
        last = last.__cause__
    last.__cause__ = first  # and one that goes round
    assert traceback_of(first).count("ValueError") == MAX_CAUSES


def test_the_formatter_leaves_the_message_of_the_exception_out() -> None:
    error = failed("marker" * 2)
    info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it failed (id %s)", ("abc",), info)
    line = Formatter().format(record)
    assert "it failed (id abc)" in line
    assert "LookupError" in line
    assert "markermarker" not in line
    assert sys.exc_info() == (None, None, None)


async def test_a_failure_in_the_event_loop_is_logged_without_its_values(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    caplog.handler.setFormatter(Formatter())
    happened = asyncio.Event()
    loop.call_soon(quote, "marker" * 2)
    loop.call_soon(happened.set)
    await happened.wait()
    loop.call_exception_handler({"message": "Task was destroyed", "task": "marker" * 2})
    loop.set_exception_handler(None)
    assert "ValueError" in caplog.text
    assert "in quote\n" in caplog.text
    assert "Task was destroyed" in caplog.text
    assert "markermarker" not in caplog.text + "".join(capsys.readouterr())


def test_news_are_told_once_and_not_too_many_in_an_hour() -> None:
    now = [0.0]
    news = News(lambda: now[-1])
    assert [news.is_new("a"), news.is_new("a")] == [True, False]
    assert sum(news.is_new(f"junk {n}") for n in range(1000)) == NEWS_LINES - 1
    assert not news.is_new("b")
    now.append(NEWS_EVERY_S)
    assert not news.is_new("a"), "told long ago, and it still comes"
    assert [news.is_new("b"), news.is_new("b")] == [True, False]


FORGED = "x\n2026-11-30 12:00:00,000 WARNING forged\r\x1b[2J\u2028\u202e\ud800"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words, ünïcode 漢字", "plain words, ünïcode 漢字"),
        ("a\nb\rc\td\x00e\x1b[0m", "a\\nb\\rc\\td\\x00e\\x1b[0m"),
        ("a\u2028b\u202ec\ud800d", "a\\u2028b\\u202ec\\ud800d"),
        ("x" * (MAX_LINE_CHARS + 1), "x" * MAX_LINE_CHARS + f"... ({MAX_LINE_CHARS + 1} characters)"),
    ],
)
def test_a_line_is_one_line_whatever_is_in_it(text: str, expected: str) -> None:
    assert one_line(text) == expected


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_texts_of_others_forge_no_line(level: int) -> None:
    error = failed("x") if level == logging.ERROR else None
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("n", level, "p", 1, "%s said %s", ("h:1", FORGED), info)
    said = Formatter().format(record)
    first, _, rest = said.partition("\n")
    assert "WARNING forged\\r\\x1b[2J\\u2028\\u202e\\ud800" in first
    assert rest.startswith("  File") if error is not None else not rest
    said.encode()


def test_texts_of_others_are_quoted_and_cut() -> None:
    assert as_value('a "b" \n') == "\"a 'b' \\n\""
    assert len(as_value("x" * 1000)) < 350
    assert quoted("a b") == "'a b'"
    assert quoted("a', 'b") == "\"a', 'b\""
    assert quoted(FORGED).isprintable()
    assert quoted("x" * 101) == "'" + "x" * 100 + "'..."
    assert listed(["a", "b\n"]) == "'a', 'b\\n'"
    assert listed([]) == ""
    assert listed([str(n) for n in range(10)]).endswith("'7' and 2 more")
