"""Prompts of clients in different groups never share a block of an engine's cache: each group has salts that
no other can have. A client without a group is a group of its own.

An engine's prefix cache finds a block only for prompts with the same `cache_salt`. The salt that engines get
is a keyed hash of the group and of the client's own `cache_salt`, if it sent one. So a client can choose
among the salts of its own group, never one of another.
"""

import base64
import hashlib
import pathlib
from collections.abc import Mapping

import msgspec

from proxy.errors import BadRequestError, ConfigError

FLAG = "--salt-file"
MIN_SECRET_BYTES = 32
MAX_SECRET_BYTES = 4096

MAX_SALT_CHARS = 128
NEVER_IN_A_SALT = frozenset("@/\\\0")
"""vLLM's rule for a client's salt (`validate_cache_salt` of 0.32): a salt may become part of file names in a
store."""

_MAX_RAW_BYTES = 2 + 12 * MAX_SALT_CHARS
"""A character takes at most twelve bytes of JSON: an escaped surrogate pair."""

_SALT_BYTES = 33
"""The size of a salt: 44 characters of base64 without padding. vLLM advises at least 256 bits."""

_decode_string = msgspec.json.Decoder(str).decode


class ClientSalts:
    """Makes the salts of clients, from the names of their keys."""

    def __init__(self, secret: bytes, groups: Mapping[str, str]) -> None:
        """`secret`: any bytes; the same ones make the same salts. `groups`: the group of each name that is in
        one.
        """
        key = hashlib.blake2b(secret, person=b"kvproxy salts").digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=_SALT_BYTES)
        self._groups = dict(groups)

    def of(self, name: str, own: str | None) -> str:
        """The `cache_salt` that engines get for a request of the client `name`; `own`: the salt it sent.

        Consists of letters, digits, dashes and underscores.
        """
        group = self._groups.get(name)
        parts = ["key", name] if group is None else ["group", group]
        if own is not None:
            parts.append(own)
        salt = self._keyed.copy()
        for part in parts:
            data = part.encode()
            salt.update(len(data).to_bytes(4, "big") + data)
        return _base64(salt.digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def read_own_salt(raw: bytes | None) -> str | None:
    """The salt that a client sent; `raw`: its `cache_salt` as JSON text. None if it sent none.

    Raises BadRequestError in vLLM's words for what vLLM refuses, since engines do not see this salt.
    """
    if raw is None or raw == b"null":
        return None
    try:
        salt = _decode_string(raw) if raw[:1] == b'"' and len(raw) <= _MAX_RAW_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError("cache_salt is not valid JSON", param="cache_salt") from None
    if raw[:1] != b'"' or salt == "":
        raise _refusal("must be a non-empty string if provided.")
    if salt is None or len(salt) > MAX_SALT_CHARS or not NEVER_IN_A_SALT.isdisjoint(salt):
        raise _refusal(
            f"must be at most {MAX_SALT_CHARS} characters and must not contain '@', '/', '\\\\', or NUL."
        )
    return salt


def _refusal(words: str) -> BadRequestError:
    return BadRequestError(f"Parameter 'cache_salt' {words} (parameter=cache_salt)", param="cache_salt")


def read_secret(path: pathlib.Path) -> bytes:
    """The secret in a file, without white space at its ends. Raises ConfigError naming flag and file."""
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{FLAG} {path}: {error.strerror}") from None
    if len(secret) > MAX_SECRET_BYTES:
        raise ConfigError(f"{FLAG} {path}: it has more than {MAX_SECRET_BYTES} bytes")
    secret = secret.strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"{FLAG} {path}: at least {MIN_SECRET_BYTES} bytes are needed; openssl rand -base64 48 makes some"
        )
    return secret
