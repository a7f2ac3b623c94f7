"""Which pages of other origins a browser lets read kvproxy's answers."""

import re
from collections.abc import Sequence

import msgspec

from proxy.errors import ConfigError

ANY = "*"

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#@,*\\A-Z]+")
_OWN_PORT = re.compile(r"(?:http|ws)://.*:0*80|(?:https|wss)://.*:0*443|ftp://.*:0*21|.*:0*")
"""Browsers leave out a scheme's own port."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_decode_words = msgspec.json.Decoder(str | list[str]).decode


class Cors(msgspec.Struct, frozen=True, kw_only=True):
    """As vLLM's flags of the same names, with the same defaults."""

    allowed_origins: Sequence[str] = ()
    """`scheme://host[:port]` each, `null`, or `*` for any; empty: nothing is said of origins at all."""
    allow_credentials: bool = False
    """Whether browsers may send cookies and the like; an origin is then named rather than `*`."""
    allowed_methods: Sequence[str] = (ANY,)
    allowed_headers: Sequence[str] = (ANY,)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for origin in self.allowed_origins:
            if not (origin.isascii() and _ORIGIN.fullmatch(origin)):
                raise ConfigError(
                    f"--allowed-origins {origin!r} is not an origin: write * or for example https://app.example:8443,"
                    " in small letters and without a path"
                )
            if _OWN_PORT.fullmatch(origin):
                raise ConfigError(
                    f"--allowed-origins {origin!r} is not an origin as browsers send it: write"
                    f" {origin.rpartition(':')[0]}, without the scheme's own port"
                )
        for flag, words in (
            ("--allowed-methods", self.allowed_methods),
            ("--allowed-headers", self.allowed_headers),
        ):
            for word in words:
                if not _TOKEN.fullmatch(word):
                    raise ConfigError(f"{flag} {word!r} is not the name of a {flag[10:-1]}")
        if self.allow_credentials and not self.allowed_origins:
            raise ConfigError("--allow-credentials needs --allowed-origins")


def read_words(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The words of a flag, each given plainly or in a JSON list, as vLLM takes them. Raises ConfigError."""
    words: list[str] = []
    for text in texts:
        if not text.startswith(("[", '"')):
            words.append(text)
            continue
        try:
            decoded = _decode_words(text)
        except msgspec.DecodeError:
            raise ConfigError(f"{flag} {text!r} is neither words nor a JSON list of them") from None
        words += [decoded] if isinstance(decoded, str) else decoded
    return tuple(words)
