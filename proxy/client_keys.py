"""A client is who its key says; how long the answer takes does not tell which keys are nearly right."""

import hashlib
import hmac
import pathlib
import re
from collections.abc import Mapping
from typing import Self

from proxy.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FLAG = "--api-key-file"

READABLE_BY_OTHERS = 0o044
"""Bits of a file's mode: its group and everybody may read it."""


class ClientKeys:
    """The keys clients may come with, by their hashes; a name may have several, so that one can be replaced."""

    def __init__(self, names: Mapping[bytes, str]) -> None:
        """`names` maps SHA-256 digests of keys to names; `parse` and `read` make it."""
        self._names = dict(names)

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """The keys of a file. Raises ConfigError naming the flag, the file and the line, never a key."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{_FLAG} {path}: it is not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{_FLAG} {path}: {error.strerror}") from None
        return cls.parse(text, origin=f"{_FLAG} {path}")

    @classmethod
    def parse(cls, text: str, *, origin: str = _FLAG) -> Self:
        """The keys of lines `NAME KEY`; empty lines and those that begin with # are passed over."""
        names: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            where = f"{origin}, line {number}"
            if len(words) != 2:
                raise ConfigError(f"{where}: a name and a key are needed, with a space between them")
            name, key = words
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{where}: a name has up to 64 letters, digits, dots, dashes, underscores")
            if not key.isascii() or not key.isprintable():
                raise ConfigError(f"{where}: a key must be printable ASCII")
            digest = hashlib.sha256(key.encode()).digest()
            if digest in names:
                raise ConfigError(f"{where}: the same key stands in the file already")
            names[digest] = name
        if not names:
            raise ConfigError(f"{origin}: there is no key in it")
        return cls(names)

    def name_of(self, authorization: str | None) -> str | None:
        """Whose key an `Authorization: Bearer KEY` header carries; None if nobody's."""
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, name in self._names.items():  # all of them, whichever matches
            if hmac.compare_digest(given, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def readable_by_others(path: pathlib.Path) -> bool:
    """Whether more than its owner may read a file."""
    return bool(path.stat().st_mode & READABLE_BY_OTHERS)
