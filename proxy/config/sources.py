"""The value of a setting comes from its flag, else the environment, else the configuration file, else its
default.

The sources are not mixed within a setting: `--prefill` replaces all prefill engines of a file, and none of
its decode engines. An error about a value that is not from the command line says where it is from. An
environment name that is close to a setting's has no effect, and is logged.
"""

import difflib
import pathlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from proxy.config.settings import ENVIRONMENT_PREFIX, MAX_INTEGER, Declared, Section, sections_of
from proxy.errors import ConfigError

_S = TypeVar("_S", bound=Section)

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
"""The value of the variable that Kubernetes sets in each pod for a service beside it: for one called kvproxy
it sets KVPROXY_PORT=tcp://10.0.0.1:8000."""

_SERVICE_NAME = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""The names of other variables that Kubernetes sets for a service, after the prefix: KVPROXY_SERVICE_HOST,
KVPROXY_PORT_8000_TCP_ADDR. A service may also be called kvproxy-admin."""

_OF_SCRIPTS = frozenset(
    f"{ENVIRONMENT_PREFIX}{name}" for name in ("PIP_ARGS", "PYTHON", "VLLM_ENV", "VLLM_PYTHON")
)
"""The variables that the scripts of a checkout read."""

_decode_list = msgspec.json.Decoder(list[str]).decode


class MissingError(ConfigError):
    """A setting that has no default was not given."""


class Sources:
    """The values that were given for settings, and where."""

    def __init__(
        self,
        flags: Mapping[str, Any],
        environment: Mapping[str, str],
        file: Mapping[str, Any] | None = None,
        file_name: str = "",
    ) -> None:
        """`flags`: by key, the word or list of words after each flag of the command line, or whether the flag
        is on.

        `file`: what `read_file` returned for the file called `file_name`.
        """
        self._flags = flags
        self._environment = environment
        self._file = file or {}
        self._file_name = file_name
        self._origins: dict[str, str] = {}

    def build(self, section: type[_S], settings: Sequence[Declared]) -> _S:
        """A `section` in which each of `settings` has the value of its highest source. Raises ConfigError."""
        values: dict[tuple[str, ...], Any] = {}
        try:
            for declared in settings:
                value = self._value(declared)
                if value is msgspec.NODEFAULT:
                    flags = "/".join(filter(None, (declared.setting.short, declared.setting.flag)))
                    raise MissingError(
                        f"the following arguments are required: {flags}"
                    )  # as argparse says it
                # Several settings may give values of one field, as --prefill and --decode do: it has them
                # together.
                values[declared.path] = values[declared.path] + value if declared.path in values else value
            return _make(section, values)
        except ConfigError as error:
            raise type(error)(self.named(str(error))) from error

    def named(self, message: str) -> str:
        """An error's message, with the place where each setting that it names was given; flags have none."""
        flags = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", message))
        places = [self._origins[flag] for flag in flags if flag in self._origins]
        return f"{message} (set by {' and '.join(places)})" if places else message

    def _value(self, declared: Declared) -> Any:
        if declared.key and declared.key in self._flags:
            return _of_words(declared, self._flags[declared.key])
        if text := self._said_by_environment(declared):
            self._origins[declared.name] = declared.environment
            return _of_words(declared, _words(text) if declared.many else text)
        if declared.key in self._file:
            self._origins[declared.name] = f"{declared.key} in {self._file_name}"
            return _of_file(declared, self._file[declared.key])
        return declared.default

    def _said_by_environment(self, declared: Declared) -> str:
        text = self._environment.get(declared.environment, "").strip()
        return "" if declared.environment.endswith("_PORT") and _SERVICE_LINK.match(text) else text


def unknown_names(environment: Mapping[str, str], known: Sequence[Declared]) -> list[str]:
    """A line for each environment name that begins as settings do and is neither one of `known` nor set by
    Kubernetes.

    It names the closest setting if one is close, and no value, which may be a secret.
    """
    names = {
        declared.environment.removeprefix(ENVIRONMENT_PREFIX): declared.environment for declared in known
    }
    lines = []
    for name in sorted(environment):
        bare = name.removeprefix(ENVIRONMENT_PREFIX)
        if (
            bare == name
            or names.get(bare) == name
            or name in _OF_SCRIPTS
            or _is_service(bare, environment[name])
        ):
            continue
        close = difflib.get_close_matches(bare, names, n=1)
        hint = f": is {names[close[0]]} meant?" if close else ""
        lines.append(f"{name} in the environment is no setting, and is not looked at{hint}")
    return lines


def _is_service(bare: str, value: str) -> bool:
    """Whether Kubernetes sets the variable for a service; `bare`: its name after the prefix."""
    if _SERVICE_NAME.fullmatch(bare) is not None:
        return True
    return f"_{bare}".endswith("_PORT") and _SERVICE_LINK.match(value.strip()) is not None


def read_file(path: pathlib.Path, settings: Sequence[Declared]) -> dict[str, Any]:
    """The values in a configuration file. Raises ConfigError, also for a key that is none of `settings`."""
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # a number may be too long for Python, or a list too deep
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    keys = [declared.key for declared in settings if declared.key]
    for key, value in said.items():
        if key in keys:
            continue
        if close := difflib.get_close_matches(key, keys, n=1):
            hint = f"is {close[0]} meant?"
        elif isinstance(value, dict):
            hint = "settings stand in no table, each under the name of its flag"
        else:
            hint = "a setting has the name of its flag, without the dashes before it"
        raise ConfigError(f"--config {path}: there is no setting {key!r}: {hint}")
    return said


def _words(text: str) -> list[str]:
    """The words in one text, separated by spaces or written as a JSON list."""
    try:
        return _decode_list(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text.split()


def _of_words(declared: Declared, said: Any) -> Any:
    if isinstance(said, bool):
        return said
    if declared.many:
        return declared.read_words(said)
    try:
        return declared.read_word(said)
    except ValueError as error:
        raise ConfigError(f"{declared.name}: {error}") from None


def _of_file(declared: Declared, said: Any) -> Any:
    """The value of a setting from a TOML value. Raises ConfigError."""
    if declared.many:
        if isinstance(said, dict):  # tier-cost = {CPU = 0.2} is ["CPU=0.2"]
            said = [f"{name}={value}" for name, value in said.items()]
        words = [said] if isinstance(said, str) else said
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"{declared.name}: {said!r} is no list of texts")
        return declared.read_words(words)
    has_words = declared.choices or declared.setting.words
    if isinstance(said, str) and (has_words or issubclass(declared.kind, str | pathlib.Path)):
        return _of_words(declared, said)
    if isinstance(said, int) and abs(said) > MAX_INTEGER:
        raise ConfigError(f"{declared.name}: the number is too large")
    if declared.kind is float and type(said) in {int, float}:
        return float(said)
    if type(said) is not declared.kind:
        raise ConfigError(f"{declared.name}: {said!r} is not {declared.what}")
    return said


def _make(section: type[_S], values: Mapping[tuple[str, ...], Any]) -> _S:
    fields = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name, inner in sections_of(section).items():
        fields[name] = _make(inner, {path[1:]: value for path, value in values.items() if path[0] == name})
    return section(**fields)
