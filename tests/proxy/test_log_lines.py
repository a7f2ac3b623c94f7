"""Lines come in order and whole, those of a turn of the loop together, and look alike whoever wrote them."""

import asyncio
import io
import logging
import re
import weakref

import pytest

from proxy.happenings import Answered
from proxy.log_lines import MAX_WRITE_BYTES, LineHandler, pieces, plain_handler
from proxy.logs import Formatter
from proxy.observability import access_log
from proxy.observability.access_log import write_line


class Stream(io.StringIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.fails: type[Exception] | None = None

    def write(self, text: str) -> int:
        if self.fails is not None:
            raise self.fails
        self.writes.append(text)
        return len(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def handler(stream: Stream) -> LineHandler:
    return LineHandler(stream)


@pytest.fixture
def logger(handler: LineHandler, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The access log's, in loggers of its own: all there is is the handler at their root, as in a process of
    kvproxy.
    """
    root = logging.RootLogger(logging.INFO)
    root.addHandler(handler)
    logger = logging.Manager(root).getLogger("kvproxy.access")
    monkeypatch.setattr(access_log, "access", logger)
    return logger


def answered(path: str = "/v1/completions", *, probe: bool = False, **notes: str) -> Answered:
    return Answered("POST", path, 200, 0.01234, "abc", notes, probe)


def words(writes: list[str]) -> list[str]:
    """The lines without their time."""
    return [line.split(" ", 2)[2] for line in "".join(writes).splitlines()]


async def test_lines_of_a_turn_are_written_together_when_it_is_over(
    logger: logging.Logger, stream: Stream
) -> None:
    for n in range(3):
        write_line(answered(f"/{n}", outcome="ok", leg="x"))
    assert not stream.writes
    await asyncio.sleep(0)
    assert len(stream.writes) == 1
    assert words(stream.writes) == [f"INFO POST /{n} 200 12.3ms id=abc outcome=ok leg=x" for n in range(3)]
    await asyncio.sleep(0)
    assert len(stream.writes) == 1
    write_line(answered("/later"))
    await asyncio.sleep(0)
    assert words(stream.writes[1:]) == ["INFO POST /later 200 12.3ms id=abc"]


async def test_another_line_is_written_at_once_and_those_before_it_stay_before_it(
    logger: logging.Logger, stream: Stream
) -> None:
    write_line(answered("/first"))
    logger.warning("then %s", "this")
    assert [each.split(" ")[3] for each in "".join(stream.writes).splitlines()] == ["POST", "then"]
    write_line(answered("/last"))
    await asyncio.sleep(0)
    assert words(stream.writes)[2].startswith("INFO POST /last ")


def test_without_a_loop_a_line_is_written_at_once(logger: logging.Logger, stream: Stream) -> None:
    write_line(answered())
    assert len(stream.writes) == 1


def test_what_waits_in_a_loop_that_ended_is_written_at_the_end_of_the_process(
    logger: logging.Logger, handler: LineHandler, stream: Stream
) -> None:
    async def last_turn() -> None:
        write_line(answered("/one"))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(last_turn())
    loop.close()
    asyncio.run(last_turn())  # another loop is told anew
    logging.shutdown([weakref.ref(handler)])
    assert len(words(stream.writes)) == 2


def test_a_logger_and_the_short_way_write_the_same(logger: logging.Logger, stream: Stream) -> None:
    odd = answered("/ünï\x1b[2J\u2028", model='"a b"')
    write_line(odd)
    other = logging.NullHandler()
    logger.addHandler(other)  # somebody wants records: they are made
    write_line(odd)
    logger.removeHandler(other)
    short, long = "".join(stream.writes).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO POST /ünï.+", short)
    assert short.split(" ", 2)[2] == long.split(" ", 2)[2]
    assert "\\x1b[2J\\u2028 200 12.3ms id=abc" in short


@pytest.mark.parametrize(("second", "ms"), [(0, 0), (1764519000, 7), (1764519000, 999), (1764519001, 250)])
def test_the_time_of_a_line_is_that_of_loggings_own_format(second: int, ms: int) -> None:
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "%s", ("words",), None)
    record.created, record.msecs = second + ms / 1000 + 0.0001, float(ms)
    theirs = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    ours = Formatter()
    for _ in range(2):  # the second time it is remembered
        assert ours.format(record) == theirs.format(record)


async def test_levels_hold_for_lines_of_requests_and_probes(logger: logging.Logger, stream: Stream) -> None:
    write_line(answered("/probe", probe=True))
    logger.setLevel(logging.DEBUG)
    write_line(answered("/probe", probe=True))
    logger.setLevel(logging.WARNING)
    write_line(answered())
    await asyncio.sleep(0)
    assert words(stream.writes) == ["DEBUG POST /probe 200 12.3ms id=abc"]


def test_whoever_else_listens_is_given_records(logger: logging.Logger, handler: LineHandler) -> None:
    assert plain_handler(logger, logging.INFO) is handler
    for each in (logger, logger.parent):
        assert each is not None
        other = logging.NullHandler()
        each.addHandler(other)
        assert plain_handler(logger, logging.INFO) is None
        each.removeHandler(other)
    logger.propagate = False
    assert plain_handler(logger, logging.INFO) is None, "nobody hears it"
    logger.propagate = True
    handler.setLevel(logging.ERROR)
    assert plain_handler(logger, logging.INFO) is None
    handler.setLevel(logging.NOTSET)
    for filtered in (logger, handler):
        filtered.addFilter(lambda _record: True)
        assert plain_handler(logger, logging.INFO) is None
        filtered.filters.clear()
    handler.setFormatter(logging.Formatter("%(message)s"))
    assert plain_handler(logger, logging.INFO) is None


@pytest.mark.parametrize("error", [OSError, ValueError])
async def test_a_stream_that_fails_loses_lines_and_harms_nobody(
    logger: logging.Logger, stream: Stream, error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    stream.fails = error
    write_line(answered("/lost"))
    await asyncio.sleep(0)
    write_line(answered("/lost"))
    logger.warning("lost")
    stream.fails = None
    write_line(answered("/again"))
    await asyncio.sleep(0)
    assert words(stream.writes) == ["INFO POST /again 200 12.3ms id=abc"]
    assert "Logging error" in capsys.readouterr().err


def test_what_is_written_at_once_fits_a_pipe_and_no_line_is_cut() -> None:
    lines = [f"{n} {'x' * (n * 7 % 900)}{'ü' * (n % 50)}\n" for n in range(200)]
    lines.insert(9, "long" * MAX_WRITE_BYTES + "\n")
    lines.insert(50, "\ud800" * 200 + "\n")
    joined = pieces(lines)
    assert "".join(joined) == "".join(lines)
    assert all(piece.endswith("\n") for piece in joined)
    assert [piece for piece in joined if len(piece.encode(errors="backslashreplace")) > MAX_WRITE_BYTES] == [
        lines[9]
    ]
    assert len(joined) < 40
    assert pieces([]) == []
