"""Command line, environment and file become one `Config`, which alone knows the defaults."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.cli.flags.commands import (
    CONFIG_FILE,
    FIT_LIMIT,
    LIMIT,
    SETTINGS,
    parse,
    settings_of_sources,
)
from proxy.config import Config
from proxy.config.settings import check
from proxy.config.sources import MissingError, Sources, read_file, unknown_names
from proxy.doctor import DEFAULT_LIMIT_S
from proxy.errors import ConfigError
from proxy.phases import Role
from proxy.watching.membership.base import SourceSettings
from proxy.watching.membership.registry import registered

MOST_TOKENS = 1 << 24
"""More than any engine takes in a prompt or a step."""


class FitOptions(NamedTuple):
    """What `fit` is asked for beside its engines."""

    out: pathlib.Path
    limit_s: float
    longest: int
    chunk_tokens: int
    anyway: bool


class Arguments(NamedTuple):
    """What the command line asks for."""

    command: str
    config: Config
    sources: Sources
    """The sources of the settings, for later errors."""
    as_json: bool = False
    """Of `doctor`: whether it prints JSON."""
    limit_s: float = DEFAULT_LIMIT_S
    """Of `doctor`: the seconds after which it ends."""
    doubts: Sequence[str] = ()
    """What was given and has no effect: a line for the log each."""
    fit: FitOptions | None = None
    """Of `fit`."""


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration of arguments, environment and file. Raises ConfigError; exits for --help."""
    return read_arguments(argv).config


def read_arguments(
    argv: Sequence[str] | None = None, kinds: Sequence[type[SourceSettings]] | None = None
) -> Arguments:
    """The command and its configuration. Raises ConfigError; exits for --help.

    `kinds`: the settings of membership sources beside kvproxy's own; those of installed packages by default.
    """
    of_sources = settings_of_sources(registered() if kinds is None else kinds)
    others = [declared for settings in of_sources.values() for declared in settings]
    known = [*SETTINGS, *others]
    command = parse(argv, others)
    name = command.given["command"]
    limit = FIT_LIMIT if name == "fit" else LIMIT
    limit_s = limit.default
    if limit.key in command.given:
        limit_s = limit.read_word(command.given[limit.key])
        check(limit.setting, limit_s)
    fit = _fit_options(command.given, limit_s) if name == "fit" else None
    file = command.given.get(CONFIG_FILE.key) or os.environ.get(CONFIG_FILE.environment, "").strip()
    said = read_file(pathlib.Path(file), known) if file else {}
    sources = Sources(command.given, os.environ, said, file)
    doubts = unknown_names(os.environ, [*known, CONFIG_FILE])
    try:
        config = sources.build(Config, command.settings)
        membership = [sources.build(kind, settings) for kind, settings in of_sources.items()]
    except MissingError as error:
        command.parser.error("; ".join([str(error), *doubts]))
    key = _read_key(config.security.engine_api_key_file, sources)
    config = msgspec.structs.replace(config, engine_api_key=key, membership=membership)
    there = {spec.role for spec in config.instances}
    others_name_some = name == "serve" and any(section.used for section in membership)
    if not others_name_some and Role.BOTH not in there and there < {Role.PREFILL, Role.DECODE}:
        missing = [f"--{role}" for role in (Role.PREFILL, Role.DECODE) if role not in there]
        need = " and ".join(missing) + (" need" if len(missing) > 1 else " needs")
        raise ConfigError(f"{need} at least one HOST:PORT (or name engines that do both with --both)")
    return Arguments(name, config, sources, command.given.get("json", False), limit_s, doubts, fit)


def _fit_options(given: Mapping[str, Any], limit_s: float) -> FitOptions:
    for flag in ("longest", "chunk_tokens"):
        if not 1 <= given[flag] <= MOST_TOKENS:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} {given[flag]}: a number from 1 to {MOST_TOKENS} is needed")
    return FitOptions(given["out"], limit_s, given["longest"], given["chunk_tokens"], given["anyway"])


def _read_key(path: pathlib.Path | None, sources: Sources) -> str | None:
    if path is None:
        return None
    flag = "--engine-api-key-file"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(sources.named(f"{flag} {path}: it is not UTF-8 text")) from None
    except OSError as error:
        raise ConfigError(sources.named(f"{flag} {path}: {error.strerror}")) from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(sources.named(f"{flag} {path}: it must hold one key on one line"))
    return key
