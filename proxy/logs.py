"""The log says where and how something failed, never with which data: messages of exceptions may quote a
prompt or a key.

Texts of clients and engines are logged in quotes, cut, and without characters that could end a line or move
a cursor.
"""

import asyncio
import logging
import math
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

MAX_CAUSES = 8
"""How many exceptions of a chain of causes a traceback shows."""

NEWS_LINES = 64
NEWS_EVERY_S = 3600.0
"""`News` allows at most so many lines in that time; later news are logged when they come again."""
_NEWS_REMEMBERED = 256

MAX_QUOTED_CHARS = 100
"""The longest quotation of a client or an engine."""

MAX_LINE_CHARS = 8192
"""The longest line; the names of some hundred instances are shorter."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def quoted(text: object, max_chars: int = MAX_QUOTED_CHARS) -> str:
    """A text of a client or an engine, for the log and for messages: in quotes, cut, on one line."""
    words = str(text)
    cut = words[:max_chars]
    return repr(cut) if len(words) <= max_chars else f"{cut!r}..."


def as_value(text: object, max_chars: int = 300) -> str:
    """Several words as one value of the access log's line: in double quotes, as logfmt has them."""
    words = one_line(str(text), max_chars).replace('"', "'")
    return f'"{words}"'


def listed(texts: Sequence[object], most: int = 8) -> str:
    """The first `most` texts in quotes, and how many more there are."""
    words = ", ".join(quoted(text) for text in texts[:most])
    return words if len(texts) <= most else f"{words} and {len(texts) - most} more"


def one_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """A text as one line of printable characters."""
    if len(text) > max_chars:
        text = f"{text[:max_chars]}... ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Occasionally:
    """Counts what may happen often, so that one log line every `every_s` seconds covers all of it."""

    def __init__(self, clock: Callable[[], float], every_s: float) -> None:
        self._clock = clock
        self._every_s = every_s
        self._logged_at = -math.inf
        self._unlogged = 0

    def count(self) -> int:
        """Count an occurrence. Returns how many there were since the last line if a line is due; else 0."""
        self._unlogged += 1
        if self._clock() - self._logged_at < self._every_s:
            return 0
        count, self._unlogged, self._logged_at = self._unlogged, 0, self._clock()
        return count


class News:
    """Says what was not logged before, with a limit on lines an hour, since clients may choose the texts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: OrderedDict[str, None] = OrderedDict()
        self._since = -math.inf
        self._lines = 0

    def is_new(self, what: str) -> bool:
        """Whether to log a text now. The one that was met longest ago is forgotten if there are too many."""
        if what in self._logged:
            self._logged.move_to_end(what)
            return False
        if self._clock() - self._since >= NEWS_EVERY_S:
            self._since, self._lines = self._clock(), 0
        if self._lines >= NEWS_LINES:
            return False
        self._lines += 1
        self._logged[what] = None
        if len(self._logged) > _NEWS_REMEMBERED:
            self._logged.popitem(last=False)
        return True


class Formatter(logging.Formatter):
    """Lines with the time; a traceback without the texts of its exceptions."""

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self._second = (-1, "")
        """The one last told, and how it looks."""

    def line(self, at: float, level: str, message: str) -> str:
        """How a message looks that was told `at`, in seconds since 1970; without the line's end."""
        second, shown = self._second
        if not second <= at < second + 1:
            second = int(at)
            shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second, shown  # a pair, since threads write lines as well
        if len(message) > MAX_LINE_CHARS or not message.isprintable():
            message = one_line(message)
        return f"{shown},{int((at - second) * 1000):03d} {level} {message}"

    def format(self, record: logging.LogRecord) -> str:
        """The line and its traceback, never one that another handler has written into the record."""
        record.exc_text = None
        try:
            return super().format(record)
        finally:
            record.exc_text = None

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line without its traceback."""
        return self.line(record.created, record.levelname, record.message)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802  # logging's name
        """The frames and types of an exception and its causes."""
        return "" if ei[1] is None else traceback_of(ei[1])


def traceback_of(error: BaseException) -> str:
    """Where an exception and its causes came from; of their texts only those of the operating system."""
    parts: list[str] = []
    current: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if current is None:
            break
        words = f": {current.strerror}" if isinstance(current, OSError) and current.strerror else ""
        parts.append(
            "".join(traceback.format_tb(current.__traceback__)) + f"{type(current).__qualname__}{words}"
        )
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\ncaused by\n".join(parts)


def log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for event loops; asyncio's own would log the values that callbacks were given."""
    message = str(context.get("message", "the event loop failed")).partition(" in callback ")[0]
    error = context.get("exception")
    log.error("%s", message.partition("<")[0], exc_info=error if isinstance(error, BaseException) else None)
