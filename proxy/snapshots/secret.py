"""The secret that block keys are made with is used only if no other user can read it.

Whoever knows the secret can choose prompts whose keys collide with those of others, and see in their
placement what others asked.
"""

import contextlib
import os
import pathlib
import secrets
import stat

from proxy.errors import ConfigError

SECRET_BYTES = 32
_OTHERS = 0o077
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_or_make(path: pathlib.Path, origin: str) -> bytes:
    """The secret in a file, which is made if it does not exist. Raises ConfigError; its message begins with
    `origin`.

    The caller MUST hold the lock of the directory, so that no other process makes the file at the same time.
    """
    try:
        return _read(path, origin)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(
            f"{origin}: {path.name} cannot be read: {error.strerror}; it must be a file that belongs to the "
            "user kvproxy runs as, with mode 600"
        ) from None
    try:
        return _make(path)
    except OSError as error:
        raise ConfigError(f"{origin}: {path.name} cannot be written: {error.strerror}") from None


def _read(path: pathlib.Path, origin: str) -> bytes:
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{origin}: {path.name} is not a file: remove it, and a new one is made")
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{origin}: {path.name} belongs to user {found.st_uid}, and kvproxy runs as user "
                f"{os.geteuid()}: run it as that user, or give it a directory of its own"
            )
        if found.st_mode & _OTHERS:
            raise ConfigError(
                f"{origin}: {path.name} is open to others than its owner (mode "
                f"{stat.S_IMODE(found.st_mode):03o}): chmod 600 it; if others may have read it, remove it, "
                "and kvproxy starts with empty caches"
            )
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise ConfigError(
            f"{origin}: {path.name} is not a secret that kvproxy made: remove it, and kvproxy starts with"
            " empty caches"
        )
    return secret


def _make(path: pathlib.Path) -> bytes:
    """Make the file completely or not at all, even if the machine stops meanwhile."""
    temporary = path.with_name(f"{path.name}.tmp")
    secret = secrets.token_bytes(SECRET_BYTES)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    with os.fdopen(os.open(temporary, _NEW, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return secret
