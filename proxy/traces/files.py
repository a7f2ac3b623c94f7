"""A file of traffic is read a line at a time, plain or gzip, and all trouble with it names the file and line.

Whether it is gzip is seen in its first bytes, not in its name.
"""

import codecs
import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, cast

from proxy.errors import TraceError

_GZIP = b"\x1f\x8b"

MAX_LINE_BYTES = 256 << 20
"""Longer lines are refused: a session of an agent in one line may take some MiB, anything else far less."""


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is gzip. Raises TraceError, also for what is read inside."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: not whole as gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None


def lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers, from 1; blank ones are left out. Raises TraceError."""
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise TraceError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB")
            if line := line.strip():
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def fault(path: pathlib.Path, line: int, what: object) -> TraceError:
    """The error of a line."""
    return TraceError(f"{path}, line {line}: {what}")
