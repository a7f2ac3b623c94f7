"""Lines reach the stream in the order in which they were told, and none stays behind: those that can wait are
written together when the event loop's turn is over, and any other line is written at once, after them.
"""

import asyncio
import logging
import select
import time
from typing import TextIO

from proxy.logs import Formatter

MAX_WRITE_BYTES = select.PIPE_BUF
"""Of several lines at once: so much a pipe takes in one piece, whoever else writes to it."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes the log's lines to a stream of text."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.lines = Formatter()
        self.setFormatter(self.lines)
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that is to write what waits."""

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging` asks."""
        self._write_waiting()
        super().emit(record)

    def write_soon(self, level: int, message: str) -> None:
        """Write a line when this turn of the event loop is over, or at once where none runs.

        It looks as one that a logger tells, and is ten times cheaper.
        """
        line = self.lines.line(time.time(), logging.getLevelName(level), message)
        self._waiting.append(line + self.terminator)
        if self._loop is not None and self._loop.is_running():
            return
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_waiting()
        else:
            self._loop.call_soon(self._write_waiting)

    def flush(self) -> None:
        """Write what waits. Raises what the stream raises; what it did not take is lost."""
        self.acquire()
        try:
            self._loop = None
            lines = self._waiting.copy()
            del self._waiting[: len(lines)]  # the loop may have added more since, if this is another thread
            for piece in pieces(lines):
                self.stream.write(piece)
            self.stream.flush()
        finally:
            self.release()

    def _write_waiting(self) -> None:
        try:
            self.flush()
        except (OSError, ValueError):
            self.handleError(logging.makeLogRecord({"msg": "lines of the log are lost"}))


def plain_handler(logger: logging.Logger, level: int) -> LineHandler | None:
    """The one handler to which all lines of a logger go; None if anybody else looks at them as well."""
    only: LineHandler | None = None
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if only is not None or not isinstance(handler, LineHandler):
                return None
            only = handler
        at = at.parent if at.propagate else None
    if (
        only is None
        or logger.filters
        or only.filters
        or level < only.level
        or only.formatter is not only.lines
    ):
        return None
    return only


def pieces(lines: list[str]) -> list[str]:
    """Whole lines, as many together as may be written at once."""
    joined: list[str] = []
    room = 0
    for line in lines:
        size = len(line) if line.isascii() else len(line.encode(errors="backslashreplace"))
        if size <= room:
            joined[-1] += line
            room -= size
        else:
            joined.append(line)
            room = MAX_WRITE_BYTES - size
    return joined
