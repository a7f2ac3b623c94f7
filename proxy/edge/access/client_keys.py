"""A client is identified by its key, and the time that a lookup takes shows neither how many keys there are
nor whether one is nearly right.
"""

import hashlib
import hmac
import pathlib
import re
import secrets
from collections.abc import Mapping
from typing import Self

from proxy.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FLAG = "--api-key-file"
_NOBODY = (bytes(32), None)


class ClientKeys:
    """The keys that clients may have; a name may have several, so that one can be replaced.

    A key is looked up by a digest keyed with a secret of this process. Nobody outside can compute digests, so
    the time of a lookup in the table shows nothing about the keys in it.
    """

    def __init__(self, names: Mapping[str, str], groups: Mapping[str, str]) -> None:
        """`names`: the name of each key; `groups`: the group of each name that is in one."""
        self._known_names = frozenset(names.values())
        self.groups = dict(groups)
        """The group of each name that is in one."""
        self._secret = secrets.token_bytes(hashlib.blake2b.MAX_KEY_SIZE)
        self._known = {
            digest: (digest, name) for key, name in names.items() for digest in (self._digest(key),)
        }

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(
            key.encode("utf-8", "surrogateescape"), digest_size=32, key=self._secret
        ).digest()

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
        """The keys of lines `NAME KEY` or `NAME@GROUP KEY`; empty lines and lines that begin with # are
        ignored. Raises ConfigError that begins with `origin` and names the line.
        """
        names: dict[str, str] = {}
        groups: dict[str, str | None] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            where = f"{origin}, line {number}"
            if len(words) != 2:
                raise ConfigError(f"{where}: a name and a key are needed, with a space between them")
            (name, at, group), key = words[0].partition("@"), words[1]
            if not _NAME.fullmatch(name) or (at and not _NAME.fullmatch(group)):
                raise ConfigError(
                    f"{where}: a name has up to 64 letters, digits, dots, dashes, underscores; so has its "
                    "group, after an @"
                )
            if groups.setdefault(name, group or None) != (group or None):
                raise ConfigError(f"{where}: {name} is in another group, or in none, above")
            if not key.isascii() or not key.isprintable():
                raise ConfigError(f"{where}: a key must be printable ASCII")
            if key in names:
                raise ConfigError(f"{where}: the same key stands in the file already")
            names[key] = name
        if not names:
            raise ConfigError(f"{origin}: there is no key in it")
        return cls(names, {name: group for name, group in groups.items() if group is not None})

    def knows(self, name: str) -> bool:
        """Whether a key has this name."""
        return name in self._known_names

    def name_of(self, authorization: str | None) -> str | None:
        """The name of the key in an `Authorization: Bearer KEY` header; None if it is no known key."""
        scheme, _, key = (authorization or "").partition(" ")
        given = self._digest(key)
        known, name = self._known.get(given, _NOBODY)
        found = hmac.compare_digest(given, known)
        return name if found and scheme.lower() == "bearer" else None
