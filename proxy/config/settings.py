"""A setting is described once: its declaration gives the flag, the key in a file, the environment name, the
check and the line of the reference.

    class Patience(Section, frozen=True, kw_only=True):
        queue_s: Annotated[float, Setting("--queue-timeout", SECONDS, "how long it may wait", above=0)] = 30.0

That is `--queue-timeout 30`, `queue-timeout = 30` and `KVPROXY_QUEUE_TIMEOUT=30`; 0 is refused in words that
name the flag. A section that exists is valid. Which source wins is `sources`' business.
"""

import dataclasses
import enum
import functools
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from proxy.errors import ConfigError, cut

SECONDS = "S"
COUNT = "N"
MIB = "MIB"
SHARE = "SHARE"
PORT = "PORT"
FILE = "FILE"

ENVIRONMENT_PREFIX = "KVPROXY_"

MAX_INTEGER = 2**63 - 1
"""The largest whole number of a setting, as in TOML; Python cannot compare some larger ones with limits."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a setting is called, what it means, and which values it may have."""

    flag: str
    """The flag with its dashes; empty for a secret that only the environment has, since other users can read
    command lines."""
    unit: str
    """The word for a value in `--help`."""
    help: str
    """For `--help` and the reference; `{policies}` and the like are replaced by names that `proxy.config`
    does not know."""
    _: dataclasses.KW_ONLY
    short: str = ""
    """A short flag, with one dash."""
    more: str = ""
    """Sentences for the reference alone, in Markdown; links are relative to docs/."""
    by_default: str = ""
    """The meaning of the default, where the value alone does not say it."""
    above: float | None = None
    least: float | None = None
    most: float | None = None
    check: Callable[[str, Any], None] | None = None
    """Called with the flag and a value that is not None. Raises ConfigError, which names the flag."""
    choices: Mapping[str, Any] | None = None
    """The words that a value may be, with what each stands for; those of an enum need no mention."""
    words: Mapping[str, Any] | None = None
    """Words that a value may be instead of a number, with what each stands for."""
    names: str = ""
    """Values are names of this kind, which rooms above know: `connectors`, for example."""
    read: Callable[[str, Sequence[str]], Any] | None = None
    """Makes the value from the flag and a list of words. Raises ConfigError."""
    environment: str = ""
    """The environment name, where it is not made of `KVPROXY_` and the flag."""
    group: str = ""
    """The heading that it stands under, where its section has none."""
    doctor: bool = False
    """Whether `kvproxy doctor` has the flag too."""
    reloadable: bool = False
    """Whether the setting is warm: read through `Rules` each time it is used. Others are cold: read when
    kvproxy starts."""


@dataclasses.dataclass(frozen=True)
class Under:
    """The heading of all settings of a section: `Annotated[Deadlines, Under("faults")]`."""

    group: str


@dataclasses.dataclass(frozen=True)
class Declared:
    """A setting with its field, its type and its default."""

    setting: Setting
    path: tuple[str, ...]
    """The names of the fields that lead to it, from the configuration on."""
    kind: type[Any]
    """The type of one value: bool, int, float, str or pathlib.Path."""
    many: bool
    """Whether the setting takes several words."""
    default: Any
    """`msgspec.NODEFAULT` if it must be given."""
    group: str
    choices: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the setting in errors."""
        return self.setting.flag or self.setting.environment

    @property
    def key(self) -> str:
        """The key in a configuration file; empty if there is none."""
        return self.setting.flag.removeprefix("--")

    @property
    def environment(self) -> str:
        """The environment name."""
        return self.setting.environment or ENVIRONMENT_PREFIX + self.key.replace("-", "_").upper()

    def read_word(self, text: str) -> Any:
        """The value that one word stands for. Raises ValueError, in words for the user."""
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"{text!r} is none of {', '.join(self.choices)}")
            return self.choices[text]
        if self.setting.words is not None and text in self.setting.words:
            return self.setting.words[text]
        if self.kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError(f"{text!r} is neither true nor false")
            return text.lower() in _TRUE
        try:
            value = self.kind(text)
        except ValueError:
            raise ValueError(f"{cut(text)!r} is not {self.what}") from None
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError("the number is too large")
        return value

    def read_words(self, words: Sequence[str]) -> Any:
        """The value that several words stand for. Raises ConfigError."""
        return self.setting.read(self.name, words) if self.setting.read is not None else tuple(words)

    @property
    def what(self) -> str:
        """What kind of value it takes, in words."""
        if self.kind is float:
            return "a number of seconds" if self.setting.unit == SECONDS else "a number"
        kind = {bool: "true or false", int: "a whole number"}.get(self.kind, "text")
        return " or ".join(filter(None, (", ".join(self.setting.words or ()), kind)))

    def default_text(self) -> str:
        """The default as a user would write it, and its meaning; empty if there is none to show."""
        value, text = self.default, ""
        for word, meant in (self.choices or self.setting.words or {}).items():
            if meant == value:
                text = word
        if isinstance(value, bool):
            text = text or ("on" if value else "off")
        elif isinstance(value, Mapping):
            text = " ".join(f"{name}={number:g}" for name, number in value.items())
        elif isinstance(value, int | float):
            text = text or f"{value:g}"
        elif isinstance(value, str | pathlib.Path):
            text = text or str(value)
        elif isinstance(value, Sequence):
            text = " ".join(value)
        return ", ".join(filter(None, (text, self.setting.by_default)))

    def with_names(self, names: Mapping[str, Sequence[str]]) -> "Declared":
        """The setting with the names that rooms above know put into its help."""
        setting, choices = self.setting, self.choices
        if setting.names:
            choices = {name: name for name in names.get(setting.names, ())}
        text = setting.help
        for kind, known in names.items():
            text = text.replace(f"{{{kind}}}", ", ".join(known))
        return dataclasses.replace(self, setting=dataclasses.replace(setting, help=text), choices=choices)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose fields may be settings. If one exists, its values are valid."""

    def __post_init__(self) -> None:
        """Check each setting by itself; a section with more checks calls this first. Raises ConfigError."""
        for declared in settings_of(type(self)):
            if len(declared.path) == 1 and (value := getattr(self, declared.path[0])) is not None:
                check(declared.setting, value, name=declared.name)


def check(setting: Setting, value: Any, *, name: str = "") -> None:
    """Raises ConfigError, which names the flag, unless `value` is allowed for `setting`."""
    name = name or setting.flag
    bounded = any(limit is not None for limit in (setting.above, setting.least, setting.most))
    if bounded and (wrong := _wrong(setting, value)):
        raise ConfigError(f"{name} {wrong}")
    if setting.check is not None:
        setting.check(name, value)


def check_header(flag: str, name: str) -> None:
    """Raise ConfigError unless a setting's value can be the name of a header."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ConfigError(f"{flag} {name!r} is not the name of a header")


def _wrong(setting: Setting, value: float) -> str:
    above, least, most = setting.above, setting.least, setting.most
    if setting.unit == SECONDS and not math.isfinite(value):
        return f"must be a number of seconds, not {value}"
    inside = (
        math.isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    if inside:
        return ""
    if setting.unit == PORT:
        return f"{value} is not a port: give {least:g} to {most:g}"
    if setting.unit == SHARE:
        return f"must be a share from {least:g} to {most:g}, not {value:g}"
    if setting.unit == SECONDS:
        return f"must be {limits_text(setting)}"
    return f"must be {limits_text(setting)}, not {value:g}"


def limits_text(setting: Setting) -> str:
    """The limits of a value, in words; empty if there are none."""
    above, least, most = setting.above, setting.least, setting.most
    unit = " seconds" if setting.unit == SECONDS else ""
    if least is not None and most is not None:
        return f"from {least:g} to {most:g}{unit}"
    if above is not None and most is not None:
        return f"more than {above:g} and at most {most:g}{unit}"
    if above is not None:
        return f"more than {above:g}{unit}"
    if least is not None:
        return f"{least:g}{unit} or more" if unit else f"at least {least:g}"
    return f"at most {most:g}{unit}" if most is not None else ""


def sections_of(struct: type[msgspec.Struct]) -> dict[str, type[Section]]:
    """The fields of `struct` that are sections themselves."""
    bare = typing.get_type_hints(struct)
    return {name: kind for name, kind in bare.items() if isinstance(kind, type) and issubclass(kind, Section)}


@functools.cache
def settings_of(struct: type[msgspec.Struct]) -> tuple[Declared, ...]:
    """All settings of `struct` and of its sections, in the order of their declarations."""
    return tuple(_declared(struct))


def _declared(struct: type[msgspec.Struct]) -> Iterator[Declared]:
    hints = typing.get_type_hints(struct, include_extras=True)
    sections = sections_of(struct)
    for field in msgspec.structs.fields(struct):
        notes = getattr(hints[field.name], "__metadata__", ())
        if field.name in sections:
            group = next((note.group for note in notes if isinstance(note, Under)), "")
            for inner in settings_of(sections[field.name]):
                yield dataclasses.replace(inner, path=(field.name, *inner.path), group=inner.group or group)
        for setting in (note for note in notes if isinstance(note, Setting)):
            kind, many = _kind(typing.get_args(hints[field.name])[0])
            choices = setting.choices or {}
            if issubclass(kind, enum.Enum):
                choices = {member.value: member for member in kind}
            yield Declared(
                setting,
                (field.name,),
                kind,
                many,
                default=field.default,
                group=setting.group,
                choices=choices,
            )


def _kind(hint: Any) -> tuple[type[Any], bool]:
    """The type of one value, and whether there are several, as in `Sequence[str]`."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is not None:
        return str, True
    return hint, False
