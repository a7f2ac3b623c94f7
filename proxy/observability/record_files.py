"""A recording is a file that grows, and older ones beside it, at most so many and so large.

`traffic.jsonl` is the newest; when it is full it becomes `traffic.000001.jsonl`, and so on: names are in the
order of time. A file is never continued by another process, whose ids mean something else. All of this
blocks, and is called in a thread of its own.
"""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Sequence

from proxy.errors import ConfigError

MODE = 0o600

ENDING = ".jsonl"
"""What a recording's name ends in: a folder's files are known by it (`traces.readers`)."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


def file_named(flag: str, path: pathlib.Path) -> pathlib.Path:
    """The file that a flag names: `ENDING` is added to a name without an ending.

    Raises ConfigError for a name with another ending.
    """
    if path.suffix not in {"", ENDING}:
        raise ConfigError(f"{flag} {path}: the name must end in {ENDING}")
    return path.with_suffix(ENDING) if path.name else path


class RecordFiles:
    """The files of one recording. Only the thread that writes may use it, but for `check`."""

    def __init__(
        self, path: pathlib.Path, most_bytes: int, most_files: int, *, flag: str = "--record"
    ) -> None:
        """`flag`: what names it, for errors."""
        self._flag = flag
        self._path = path
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._file: int | None = None
        self._bytes = 0

    def check(self) -> None:
        """Raise ConfigError if there can be no such file: another is made beside it, and removed."""
        folder, named = self._path.parent, f"{self._flag} {self._path}"
        if not folder.is_dir():
            raise ConfigError(f"{named}: there is no directory {folder}")
        if self._path.exists() and not self._path.is_file():
            raise ConfigError(f"{named} is no file")
        try:
            with tempfile.NamedTemporaryFile(prefix=f"{self._path.name}.", dir=folder) as tried:
                tried.write(b"\n")
        except OSError as error:
            raise ConfigError(
                f"{named}: the directory {folder} cannot be written to ({error.strerror})"
            ) from None

    def write(self, lines: Sequence[bytes]) -> None:
        """Add lines, all or none of them. Raises OSError."""
        data = b"".join(lines)
        if self._file is not None and self._bytes and self._bytes + len(data) > self._most_bytes:
            self.close()
        file = self._begun() if self._file is None else self._file
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._bytes)
            raise
        self._bytes += len(data)

    def close(self) -> None:
        """End the newest file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begun(self) -> int:
        """Put an older file aside, drop the oldest ones, and open a new one."""
        older = self._older()
        if self._path.exists():
            number = older[-1][0] + 1 if older else 1
            aside = self._path.with_name(f"{self._path.stem}.{number:06d}{self._path.suffix}")
            self._path.rename(aside)
            older.append((number, aside))
        for _, path in older[: max(len(older) - self._most_files + 1, 0)]:
            path.unlink(missing_ok=True)
        file = os.open(self._path, _NEW, MODE)
        self._file, self._bytes = file, 0
        return file

    def _older(self) -> list[tuple[int, pathlib.Path]]:
        """The files that were put aside, the oldest first."""
        name = re.compile(rf"{re.escape(self._path.stem)}\.(\d{{6,}}){re.escape(self._path.suffix)}")
        return sorted(
            (int(found[1]), path)
            for path in self._path.parent.iterdir()
            if (found := name.fullmatch(path.name)) is not None
        )
