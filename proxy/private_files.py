"""Files that kvproxy trusts must be changeable by their owner alone: keys and state that others may write are
not used.
"""

import pathlib
import stat

from proxy.errors import ConfigError

READABLE_BY_OTHERS = 0o044
"""Bits of a file's mode: its group or everybody may read it."""

WRITABLE_BY_OTHERS = 0o022
"""Bits of a file's mode: its group or everybody may write it."""


def check_key_file(flag: str, path: pathlib.Path) -> None:
    """Raise ConfigError, naming the flag, if others than its owner may write a file or replace it."""
    try:
        file, folder = path.stat(), path.resolve().parent.stat()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    if mode := _open_to_others(file.st_mode):
        raise ConfigError(f"{flag} {path}: others than its owner may write it (mode {mode}): chmod go-w it")
    if not folder.st_mode & stat.S_ISVTX and (mode := _open_to_others(folder.st_mode)):
        raise ConfigError(
            f"{flag} {path}: others than its owner may write the directory it is in (mode {mode}), and so put"
            " another file in its place: chmod go-w that"
        )


def check_directory(origin: str, path: pathlib.Path) -> None:
    """Raise ConfigError, which begins with `origin`, if others than its owner may write a directory.

    Raises OSError if there is none.
    """
    if mode := _open_to_others(path.stat().st_mode):
        raise ConfigError(
            f"{origin}: others than its owner may write it (mode {mode}): chmod go-w it, or name a "
            "directory in it that does not exist"
        )


def readable_by_others(path: pathlib.Path) -> bool:
    """Whether others than its owner may read a file."""
    return bool(path.stat().st_mode & READABLE_BY_OTHERS)


def _open_to_others(mode: int) -> str:
    return f"{stat.S_IMODE(mode):03o}" if mode & WRITABLE_BY_OTHERS else ""
