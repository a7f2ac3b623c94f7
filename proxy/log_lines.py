"""Lines reach the stream in the order in which they were logged, and none stays behind: lines that can wait
are written together when the turn of the event loop is over, any other line at once, after these.
"""

import asyncio
import logging
import select
import time
from typing import TextIO

from proxy.logs import Formatter

MAX_WRITE_BYTES = select.PIPE_BUF
"""How many bytes of several lines are written at once: a pipe takes that many in one piece, even if other
processes write to it."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes the log's lines to a text stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.lines = Formatter()
        self.setFormatter(self.lines)
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that is to write the waiting lines; None if none is."""

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging` asks."""
        self._write_waiting()
        super().emit(record)

    def write_soon(self, level: int, message: str) -> None:
        """Write a line when this turn of the event loop is over, or at once if no loop runs.

        The line looks like one of a logger's, and takes a tenth of the time.
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
        """Write the waiting lines. Raises what the stream raises; lines it did not take are lost then."""
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
    """The one handler to which all lines of a logger go; None if other handlers or filters see them, too."""
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
    """The lines joined into pieces of at most MAX_WRITE_BYTES; a longer line is a piece of its own."""
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
