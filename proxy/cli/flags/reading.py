"""The command line's words: each flag becomes a setting of `Config`, which alone knows the defaults."""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from proxy.cli.flags.commands import parse
from proxy.cli.flags.cors import read_cors
from proxy.config import (
    TIER_COSTS,
    Admission,
    Config,
    Deadlines,
    Health,
    Retries,
    Security,
    State,
    WhenNoPrefill,
    parse_instance,
    read_tier_costs,
)
from proxy.config.checks import check_seconds
from proxy.doctor import DEFAULT_LIMIT_S
from proxy.errors import ConfigError
from proxy.phases import Role

_S = TypeVar("_S", bound=msgspec.Struct)


class Arguments(NamedTuple):
    """What the command line asks for."""

    command: str
    config: Config
    as_json: bool = False
    """Of `doctor`: for machines."""
    limit_s: float = DEFAULT_LIMIT_S
    """Of `doctor`: when it ends at the latest."""


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration in command-line arguments and environment. Raises ConfigError; exits for --help."""
    return read_arguments(argv).config


def read_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """The command and its configuration. Raises ConfigError; exits for --help."""
    args = parse(argv)
    if args.command == "doctor":
        check_seconds("--timeout", args.timeout)
        return Arguments(args.command, _config(args), args.json, args.timeout)
    return Arguments(args.command, _config(args))


def _config(args: argparse.Namespace) -> Config:
    roles = {Role.PREFILL: args.prefill, Role.DECODE: args.decode, Role.BOTH: args.both}
    instances = tuple(parse_instance(text, role) for role, texts in roles.items() for text in texts)
    config = Config(
        model=args.model,
        instances=instances,
        connector=args.connector,
        kv_events=args.kv_events == "auto",
        tokenizer=args.tokenizer,
        engine_api_key=_read_key(args.engine_api_key_file),
        log_level=args.log_level,
        kv_lease_s=args.kv_lease_s,
        deadlines=_section(Deadlines, args),
        security=_section(Security, args),
        **(_service_settings(args) if args.command == "serve" else {}),
    )
    if not args.both and not (args.prefill and args.decode):
        missing = [f"--{r}" for r in (Role.PREFILL, Role.DECODE) if not roles[r]]
        need = " and ".join(missing) + (" need" if len(missing) > 1 else " needs")
        raise ConfigError(f"{need} at least one HOST:PORT (or name engines that do both with --both)")
    return config


def _service_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What only a running service can be told."""
    args.when_no_prefill = WhenNoPrefill(args.when_no_prefill)
    return {
        "host": args.host,
        "port": args.port,
        "policy": args.policy,
        "tier_costs": TIER_COSTS if args.tier_cost is None else read_tier_costs(args.tier_cost),
        "admin_api_key": os.environ.get("ADMIN_API_KEY", "").strip() or None,
        "startup_timeout_s": args.startup_timeout,
        "stream_keepalive_s": args.stream_keepalive,
        "drain_delay_s": args.drain_delay,
        "shutdown_timeout_s": args.shutdown_timeout,
        "decision_headers": args.decision_headers,
        "max_body_mb": args.max_body_mb,
        "retries": _section(Retries, args),
        "health": _section(Health, args),
        "admission": _section(Admission, args),
        "state": _section(State, args),
        "cors": read_cors(args),
    }


def _section(section: type[_S], args: argparse.Namespace) -> _S:
    """A section of the configuration from the flags named as its fields, as far as the command has them."""
    return section(**{name: getattr(args, name) for name in section.__struct_fields__ if name in args})


def _read_key(path: pathlib.Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"--engine-api-key-file {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"--engine-api-key-file {path}: {error.strerror}") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"--engine-api-key-file {path}: it must hold one key on one line")
    return key
