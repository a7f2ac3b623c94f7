"""Each snapshot in the directory was written completely; a file that is not is set aside, and no other is
touched.

The files belong to one kvproxy, which holds a lock as long as it lives. All of this is blocking I/O, for a
thread.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import stat
import time
import urllib.parse
from collections.abc import Collection

from proxy.errors import ConfigError
from proxy.private_files import check_directory
from proxy.snapshots import secret

MAX_BROKEN = 8
"""The most files that are set aside and kept: enough to see what happened, too few to fill a disk."""

MAX_BYTES = 1 << 30
"""The largest file that can be a snapshot: at 40 bytes a block it has 27 million blocks of one rank."""

_LONGEST_STEM = 180  # file systems allow 255 bytes
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SNAPSHOT = ".snapshot"
_TEMPORARY = ".tmp"
_NAME = re.compile(r"(?P<stem>.+)\.rank[0-9]+\.snapshot")
_INSTANCES = "instances.json"
_LEARNED = "learned."
_JSON = ".json"
_RESPONSES = "responses.json"
_BROKEN = re.compile(r".+\.(?:snapshot|json)\.broken-(?P<at>[0-9]+)")

MAX_INSTANCES_BYTES = 4 << 20
"""The largest file of instances: room for ten thousand of them."""

MAX_LEARNED_BYTES = 4 << 20
"""The largest file of what was learned: room for four thousand instances and ten thousand pairs."""


MAX_RESPONSES_BYTES = 8 << 20
"""The largest file of where responses are stored: room for those that are remembered, and for long names of
their clients."""


class UnusableFileError(ValueError):
    """The file at a snapshot's place cannot be one."""


class StateDirectory:
    """The files of `--state-dir`."""

    def __init__(self, path: pathlib.Path) -> None:
        """Make the directory, lock it and read its secret. Raises ConfigError, with the remedy, if it cannot
        be used.
        """
        origin = f"--state-dir {path}"
        self._path = path
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            raise ConfigError(f"{origin}: the directory above it does not exist") from None
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{origin}: it is not a directory") from None
        except OSError as error:
            raise ConfigError(f"{origin}: it cannot be made: {error.strerror}") from None
        check_directory(origin, path)
        self._lock = _lock(path / "lock", origin)
        try:
            self._clean()
            self._try_to_write(origin)
            self.secret = secret.read_or_make(path / "secret", origin)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock, so that another kvproxy can have the directory. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, instance: str, rank: int) -> bytes | None:
        """The bytes written for a rank; None if there are none. Raises UnusableFileError, OSError."""
        return _read(self._file(instance, rank), MAX_BYTES)

    def write(self, instance: str, rank: int, data: bytes) -> None:
        """Replace what was written before, completely or not at all. Raises OSError."""
        self._write(self._file(instance, rank), data)

    def read_instances(self) -> bytes | None:
        """The bytes written for the instances; None if there are none. Raises UnusableFileError, OSError."""
        return _read(self._path / _INSTANCES, MAX_INSTANCES_BYTES)

    def write_instances(self, data: bytes) -> None:
        """Replace what was written before, completely or not at all. Raises OSError."""
        self._write(self._path / _INSTANCES, data)

    def set_instances_aside(self) -> str:
        """Rename the file of instances, as `set_aside` does for a snapshot."""
        return self._set_aside(self._path / _INSTANCES)

    def read_learned(self, model: str) -> bytes | None:
        """The bytes written for what was learned of engines that serve a model; None if there are none.
        Raises UnusableFileError, OSError.
        """
        return _read(self._learned(model), MAX_LEARNED_BYTES)

    def write_learned(self, model: str, data: bytes) -> None:
        """Replace what was written before, completely or not at all. Raises OSError."""
        self._write(self._learned(model), data)

    def set_learned_aside(self, model: str) -> str:
        """Rename the file of what was learned, as `set_aside` does for a snapshot."""
        return self._set_aside(self._learned(model))

    def read_responses(self) -> bytes | None:
        """The bytes written for where responses are stored; None if there are none. Raises UnusableFileError,
        OSError.
        """
        return _read(self._path / _RESPONSES, MAX_RESPONSES_BYTES)

    def write_responses(self, data: bytes) -> None:
        """Replace what was written before, completely or not at all. Raises OSError."""
        self._write(self._path / _RESPONSES, data)

    def set_responses_aside(self) -> str:
        """Rename the file of where responses are stored, as `set_aside` does for a snapshot."""
        return self._set_aside(self._path / _RESPONSES)

    def _learned(self, model: str) -> pathlib.Path:
        return self._path / f"{_LEARNED}{_stem(model)}{_JSON}"

    def _write(self, file: pathlib.Path, data: bytes) -> None:
        temporary = file.with_name(file.name + _TEMPORARY)
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            with os.fdopen(os.open(temporary, _NEW, 0o600), "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._sync()

    def set_aside(self, instance: str, rank: int) -> str:
        """Rename the snapshot of a rank, so that it is not read again. Returns the new name. Raises
        OSError.
        """
        return self._set_aside(self._file(instance, rank))

    def _set_aside(self, file: pathlib.Path) -> str:
        aside = file.with_name(f"{file.name}.broken-{time.time_ns()}")
        file.replace(aside)
        broken = [(int(match["at"]), name) for name in self._names() if (match := _BROKEN.fullmatch(name))]
        for _, name in sorted(broken)[:-MAX_BROKEN]:
            (self._path / name).unlink(missing_ok=True)
        return aside.name

    def remove(self, instance: str, rank: int | None = None) -> None:
        """Remove the snapshots of an instance, or of one rank of it. Raises OSError."""
        if rank is not None:
            self._file(instance, rank).unlink(missing_ok=True)
            return
        for name, stem in self._snapshots():
            if stem == _stem(instance):
                (self._path / name).unlink(missing_ok=True)

    def remove_others(self, instances: Collection[str]) -> int:
        """Remove the snapshots of all but these instances. Returns how many were removed. Raises OSError."""
        stems = {_stem(instance) for instance in instances}
        others = [name for name, stem in self._snapshots() if stem not in stems]
        for name in others:
            (self._path / name).unlink(missing_ok=True)
        return len(others)

    def _file(self, instance: str, rank: int) -> pathlib.Path:
        return self._path / f"{_stem(instance)}.rank{rank}{_SNAPSHOT}"

    def _names(self) -> list[str]:
        with os.scandir(self._path) as entries:
            return [entry.name for entry in entries]

    def _snapshots(self) -> list[tuple[str, str]]:
        """The names of all snapshots, each with the name of its instance in it."""
        found = [(name, _NAME.fullmatch(name)) for name in self._names()]
        return [(name, match["stem"]) for name, match in found if match is not None]

    def _clean(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        with contextlib.suppress(OSError):
            for name in self._names():
                learned = name.startswith(_LEARNED) and name.endswith(_JSON + _TEMPORARY)
                if learned or name.endswith(
                    tuple(kind + _TEMPORARY for kind in (_SNAPSHOT, _INSTANCES, _RESPONSES))
                ):
                    (self._path / name).unlink()

    def _try_to_write(self, origin: str) -> None:
        probe = self._path / f"probe{_SNAPSHOT}{_TEMPORARY}"
        try:
            os.close(os.open(probe, _NEW, 0o600))
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{origin}: it cannot be written to: {error.strerror}") from None

    def _sync(self) -> None:
        opened = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _read(path: pathlib.Path, max_bytes: int) -> bytes | None:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise UnusableFileError("it is not a file")
        if found.st_size > max_bytes:
            raise UnusableFileError(f"it has {found.st_size} bytes")
        return file.read()


def _stem(name: str) -> str:
    """The name of an instance or a model in file names: one that people recognize, unless that is too
    long.
    """
    quoted = urllib.parse.quote(name, safe="", errors="surrogatepass")
    if len(quoted) <= _LONGEST_STEM:
        return quoted
    return hashlib.blake2b(name.encode(errors="surrogatepass")).hexdigest()


def _lock(path: pathlib.Path, origin: str) -> int | None:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{origin}: it cannot be written to: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise ConfigError(
            f"{origin}: another kvproxy uses it (process {holder or 'unknown'}): give each a directory of "
            "its own"
        ) from None
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"{origin}: it cannot be locked: {error.strerror}; give a local directory"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock
