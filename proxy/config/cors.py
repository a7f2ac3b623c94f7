"""Which pages of other origins may read kvproxy's answers in a browser."""

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from proxy.config.settings import Section, Setting
from proxy.errors import ConfigError

ANY = "*"

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#@,*\\A-Z]+")
_OWN_PORT = re.compile(r"(?:http|ws)://.*:0*80|(?:https|wss)://.*:0*443|ftp://.*:0*21|.*:0*")
"""Matches an origin that names its scheme's own port, which browsers leave out."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_decode_words = msgspec.json.Decoder(str | list[str]).decode


def read_words(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The words of a flag, each given as it is or in a JSON list, as vLLM takes them. Raises ConfigError."""
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


def _check_origins(flag: str, origins: Sequence[str]) -> None:
    for origin in origins:
        if not (origin.isascii() and _ORIGIN.fullmatch(origin)):
            raise ConfigError(
                f"{flag} {origin!r} is not an origin: write * or for example https://app.example:8443,"
                " in small letters and without a path"
            )
        if _OWN_PORT.fullmatch(origin):
            raise ConfigError(
                f"{flag} {origin!r} is not an origin as browsers send it: write"
                f" {origin.rpartition(':')[0]}, without the scheme's own port"
            )


def _check_tokens(flag: str, words: Sequence[str]) -> None:
    for word in words:
        if not _TOKEN.fullmatch(word):
            raise ConfigError(f"{flag} {word!r} is not the name of a {flag[10:-1]}")


class Cors(Section, frozen=True, kw_only=True):
    """The same flags as vLLM's, with the same defaults; each list is words, or one JSON list."""

    allowed_origins: Annotated[
        Sequence[str],
        Setting(
            "--allowed-origins",
            "ORIGIN",
            "origins whose pages may read answers, * for any",
            more="Words, or one JSON list, as for vLLM's flags of these names."
            " [For browsers](security.md#browsers).",
            read=read_words,
            check=_check_origins,
            by_default="none",
        ),
    ] = ()
    """Each is `scheme://host[:port]`, `null`, or `*` for any; empty: answers say nothing of origins."""
    allowed_methods: Annotated[
        Sequence[str],
        Setting("--allowed-methods", "METHOD", "methods they may use", read=read_words, check=_check_tokens),
    ] = (ANY,)
    allowed_headers: Annotated[
        Sequence[str],
        Setting("--allowed-headers", "NAME", "headers they may send", read=read_words, check=_check_tokens),
    ] = (ANY,)
    allow_credentials: Annotated[
        bool,
        Setting(
            "--allow-credentials",
            "",
            "let browsers send cookies and the like; an origin is then named rather than *",
        ),
    ] = False

    def __post_init__(self) -> None:
        """Check what depends on several settings. Raises ConfigError."""
        super().__post_init__()
        if self.allow_credentials and not self.allowed_origins:
            raise ConfigError("--allow-credentials needs --allowed-origins")
