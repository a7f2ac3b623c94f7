"""The command line's words: each flag becomes a setting of `Config`, which alone knows the defaults.

Commands share what says which engines there are and how they are spoken to.
"""

import argparse
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

from proxy.config import (
    TIER_COSTS,
    Admission,
    Config,
    Deadlines,
    Health,
    Retries,
    Role,
    Security,
    State,
    WhenNoPrefill,
    parse_instance,
    read_tier_costs,
)
from proxy.config.checks import check_seconds
from proxy.connectors import CONNECTORS
from proxy.doctor import DEFAULT_LIMIT_S
from proxy.errors import ConfigError
from proxy.scheduling.policies import POLICIES

_S = TypeVar("_S", bound=msgspec.Struct)

LOG_LEVELS = ("debug", "info", "warning", "error")

_EXAMPLE = """\
example:
  kvproxy {command} -m llama -p 10.0.0.1:8100 10.0.0.2:8100 -d 10.0.0.3:8200 10.0.0.4:8200

An instance is HOST:PORT, or https://HOST:PORT where it speaks TLS. Its KV-event sources are asked of it; for one that does not tell, name them:
  HOST:PORT?events=tcp://HOST:5557&replay=tcp://HOST:5657&topic=T     (several ranks: comma-separated)

"""

_ENVIRONMENT = """
environment:
  ADMIN_API_KEY   the key that /instances/*, /explain and /doctor need in X-API-Key
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why on stderr and end the process."""
    print(f"kvproxy: {message}", file=sys.stderr)
    sys.exit(code)


class Arguments(NamedTuple):
    """What the command line asks for."""

    command: str
    config: Config
    as_json: bool = False
    """Of `doctor`: for machines."""
    limit_s: float = DEFAULT_LIMIT_S
    """Of `doctor`: when it ends at the latest."""


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    top = _Parser(prog="kvproxy", description="The router for disaggregated vLLM.", allow_abbrev=False)
    top.add_argument(
        "--version", action="version", version=f"kvproxy {importlib.metadata.version('kvproxy')}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    parsers = {"serve": _add_serve(commands), "doctor": _add_doctor(commands)}
    args, unknown = top.parse_known_args(argv)
    if unknown:
        parsers[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _add_serve(commands: "argparse._SubParsersAction[_Parser]") -> _Parser:
    serve = commands.add_parser(
        "serve",
        help="serve prefill and decode engines behind one OpenAI-compatible address",
        description="Serve X prefill and Y decode engines behind one OpenAI-compatible address.",
        epilog=_EXAMPLE.format(command="serve") + _ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_engines(serve.add_argument_group("engines"))
    routing = serve.add_argument_group("routing")
    _add_routing(routing)
    _add_tokenizer(routing)
    service = serve.add_argument_group("service")
    _add_service(service)
    _add_log_level(service, "info", "info logs a line a request")
    _add_faults(serve.add_argument_group("faults"))
    _add_overload(serve.add_argument_group("overload"))
    security = serve.add_argument_group("security")
    _add_security(security)
    _add_engine_security(security)
    return serve


def _add_doctor(commands: "argparse._SubParsersAction[_Parser]") -> _Parser:
    doctor = commands.add_parser(
        "doctor",
        help="look whether engines do what kvproxy relies on, and say what to do where not",
        description="Look at each engine, and at each pair of them, step by step. Small probe prompts are sent."
        " Exit code 0: all is well; 1: warnings; 2: failures, or a wrong flag.",
        epilog=_EXAMPLE.format(command="doctor"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    engines = doctor.add_argument_group("engines, as for kvproxy serve")
    _add_engines(engines)
    _add_tokenizer(engines)
    _add_engine_security(engines)
    _add_number(engines, *_CONNECT_TIMEOUT)
    output = doctor.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="everything, for machines")
    output.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_LIMIT_S,
        metavar="S",
        help="what is not done after so many seconds has failed (default: %(default)g)",
    )
    _add_log_level(output, "error", "what is logged on stderr beside the report")
    return doctor


def _add_engines(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("-m", "--model", required=True, help="the model name that all engines serve")
    for flags, what in (
        (("-p", "--prefill"), "prefill engines"),
        (("-d", "--decode"), "decode engines"),
        (("--both",), "engines that do both: they serve a request in one leg"),
    ):
        group.add_argument(*flags, nargs="+", action="extend", default=[], metavar="HOST:PORT", help=what)
    group.add_argument(
        "--connector",
        choices=list(CONNECTORS),
        default="nixl",
        help="how KV moves: nixl hands transfer params from leg to leg, shared sends two plain legs"
        " for engines with a shared store (default: %(default)s)",
    )
    group.add_argument(
        "--kv-lease-s",
        type=float,
        default=30.0,
        metavar="S",
        help="how long prefill engines hold blocks: their kv_lease_duration (default: %(default)g)",
    )
    group.add_argument(
        "--kv-events",
        choices=["auto", "off"],
        default="auto",
        help="auto follows the KV events of engines that publish them; off places by load (default: %(default)s)",
    )


def _add_routing(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--policy",
        default="cache_affinity",
        help=f"how instances are picked: {', '.join(POLICIES)}, or package.module:Class (default: %(default)s)",
    )
    group.add_argument(
        "--decision-headers",
        action="store_true",
        help="answers carry X-Kvproxy-Prefill, X-Kvproxy-Decode and X-Kvproxy-Cached-Tokens (predicted)",
    )
    group.add_argument(
        "--tier-cost",
        nargs="+",
        action="extend",
        metavar="TIER=SHARE",
        help="what reloading a token from a tier slower than GPU costs, as a share of computing it; tiers that are"
        f" not named do not count (default: {' '.join(f'{tier}={cost:g}' for tier, cost in TIER_COSTS.items())})",
    )


def _add_tokenizer(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--tokenizer",
        default="auto",
        metavar="PATH|NAME",
        help="the model's tokenizer and chat template: a directory, or a name in the Hugging Face cache (nothing is"
        " downloaded); auto uses the engines' own directory if it can be read here, else asks engines, as"
        " engines always does (default: %(default)s)",
    )


def _add_service(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    group.add_argument(
        "--max-body-mb",
        type=int,
        default=64,
        metavar="MIB",
        help="largest request body (default: %(default)s)",
    )
    group.add_argument(
        "--startup-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="end with exit code 1 if no request can be served after so many seconds (default: %(default)g)",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="how long running requests may take to end after SIGTERM or Ctrl-C (default: %(default)g)",
    )
    group.add_argument(
        "--state-dir",
        type=pathlib.Path,
        metavar="DIR",
        help="keep what is known of the engines' caches there, so that a restart loses nothing; a directory of this"
        " kvproxy's own, made if it does not exist",
    )
    _add_number(
        group,
        "--state-interval",
        State,
        "state_interval_s",
        "S",
        "how often what changed is written there",
    )


def _add_log_level(group: "argparse._ArgumentGroup", default: str, what: str) -> None:
    group.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=default,
        help=f"{what} (default: %(default)s)",
    )


def _add_number(
    group: "argparse._ArgumentGroup",
    flag: str,
    section: type[msgspec.Struct],
    field: str,
    unit: str,
    what: str,
) -> None:
    """A flag for a number, with the default that the section of the configuration has for it."""
    default = getattr(section(), field)
    group.add_argument(
        flag,
        dest=field,
        type=type(default),
        default=default,
        metavar=unit,
        help=f"{what} (default: %(default)g)",
    )


_CONNECT_TIMEOUT = (
    "--connect-timeout",
    Deadlines,
    "connect_s",
    "S",
    "how long connecting to an engine may take",
)


def _add_faults(group: "argparse._ArgumentGroup") -> None:
    for flag, section, field, unit, what in (
        _CONNECT_TIMEOUT,
        ("--prefill-timeout", Deadlines, "prefill_s", "S", "how long a prefill leg may take"),
        (
            "--first-byte-timeout",
            Deadlines,
            "first_byte_s",
            "S",
            "how long a decode leg may take to its first event, or an unstreamed one altogether",
        ),
        ("--chunk-timeout", Deadlines, "chunk_s", "S", "how long a stream may pause"),
        (
            "--request-timeout",
            Deadlines,
            "request_s",
            "S",
            "how long a request may take in all, 0 for no limit; X-Request-Timeout-Ms can shorten it",
        ),
        (
            "--client-stall-timeout",
            Deadlines,
            "client_stall_s",
            "S",
            "how long a client may take nothing of an answer that waits for it",
        ),
        ("--max-attempts", Retries, "max_attempts", "N", "attempts of one request at engines that live"),
        (
            "--retry-budget",
            Retries,
            "budget",
            "SHARE",
            "the share of running requests that may be in a retry; three always may",
        ),
        ("--health-interval", Health, "interval_s", "S", "how often each engine is checked"),
        ("--health-timeout", Health, "timeout_s", "S", "how long the answer to a check may take"),
        (
            "--slow-start",
            Health,
            "slow_start_s",
            "S",
            "how long an engine that came back or was added takes to get its full share, 0 for at once",
        ),
    ):
        _add_number(group, flag, section, field, unit, what)


def _add_overload(group: "argparse._ArgumentGroup") -> None:
    for flag, field, unit, what in (
        (
            "--max-prefill-tokens",
            "max_prefill_tokens",
            "N",
            "outstanding tokens of one engine's prefill legs, 0 for no limit",
        ),
        ("--max-decode-tokens", "max_decode_tokens", "N", "the same of its decode legs"),
        ("--max-queue", "max_queue", "N", "requests that may wait; one more is answered 429"),
        ("--queue-timeout", "queue_timeout_s", "S", "how long a request may wait for an engine"),
        ("--max-bodies-mb", "max_bodies_mb", "MIB", "all request bodies in memory together"),
    ):
        _add_number(group, flag, Admission, field, unit, what)
    group.add_argument(
        "--client-header",
        metavar="NAME",
        help="the header that tells clients apart when they queue (default: the name of the API key)",
    )
    group.add_argument(
        "--when-no-prefill",
        choices=[choice.value for choice in WhenNoPrefill],
        default=Admission().when_no_prefill.value,
        help="with no usable prefill engine: wait up to --queue-timeout, decode all of it on a decode engine,"
        " or fail at once (default: %(default)s)",
    )


def _add_security(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="clients' keys, one NAME KEY a line, wanted for all of /v1; without it everybody may ask",
    )
    group.add_argument("--admin-host", metavar="HOST", help="where --admin-port listens (default: --host)")
    group.add_argument(
        "--admin-port",
        type=int,
        metavar="PORT",
        help="serve /status, /metrics, /explain, /doctor and /instances/* here and no longer on --port",
    )
    for flag, what in (
        ("--tls-cert", "the certificate chain to serve https with, on both ports (PEM)"),
        ("--tls-key", "its key, without a passphrase (PEM)"),
    ):
        group.add_argument(flag, type=pathlib.Path, metavar="FILE", help=what)
    group.add_argument(
        "--allow-instances",
        nargs="+",
        action="extend",
        default=[],
        metavar="CIDR|HOSTGLOB",
        help="networks and patterns of names that /instances/add may name (default: anything)",
    )


def _add_engine_security(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--engine-api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="a file with the key that engines want; clients' Authorization is passed on only with neither file",
    )
    group.add_argument(
        "--engine-ca",
        type=pathlib.Path,
        metavar="FILE",
        help="the authorities that certify https:// engines (PEM; default: the system's)",
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration in command-line arguments and environment. Raises ConfigError; exits for --help."""
    return read_arguments(argv).config


def read_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """The command and its configuration. Raises ConfigError; exits for --help."""
    args = _parse(argv)
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
        missing = " and ".join(f"--{r}" for r in (Role.PREFILL, Role.DECODE) if not roles[r])
        raise ConfigError(
            f"{missing} needs at least one HOST:PORT (or name engines that do both with --both)"
        )
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
        "shutdown_timeout_s": args.shutdown_timeout,
        "decision_headers": args.decision_headers,
        "max_body_mb": args.max_body_mb,
        "retries": _section(Retries, args),
        "health": _section(Health, args),
        "admission": _section(Admission, args),
        "state": _section(State, args),
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
