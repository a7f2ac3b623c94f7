"""The commands `serve`, `doctor` and `fit`: they share the flags that name engines and say how to speak to them.

`simulate` and `plan` bring their own flags (`cli/simulate.py`, `cli/plan.py`).
"""

import argparse
import dataclasses
import importlib.metadata
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from proxy.cli.flags.generating import add_flag, add_groups
from proxy.config import Config
from proxy.config.settings import FILE, SECONDS, Declared, Setting, settings_of
from proxy.connectors import CONNECTORS
from proxy.doctor import DEFAULT_LIMIT_S
from proxy.errors import ConfigError
from proxy.fitting.sizes import LONGEST
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.scheduling.policies import POLICIES
from proxy.watching.membership.base import SourceSettings

NAMES: Mapping[str, Sequence[str]] = {
    "connectors": tuple(CONNECTORS),
    "how_kv_moves": [f"{name} {made.how}" for name, made in CONNECTORS.items()],
    "policies": tuple(POLICIES),
    "profiles": tuple(PROFILES),
}
"""The names that settings may have as values, which `proxy.config` does not know."""

SETTINGS = tuple(declared.with_names(NAMES) for declared in settings_of(Config))
"""All settings of `kvproxy serve`; a configuration file for both commands may have all of them."""


def settings_of_sources(kinds: Iterable[type[SourceSettings]]) -> dict[type[SourceSettings], list[Declared]]:
    """The settings of the sources that other packages bring. Raises ConfigError for a name that is taken."""
    taken = {declared.name for declared in (*SETTINGS, CONFIG_FILE, LIMIT)}
    found: dict[type[SourceSettings], list[Declared]] = {}
    for kind in kinds:
        found[kind] = [
            dataclasses.replace(declared.with_names(NAMES), group=declared.group or "engines")
            for declared in settings_of(kind)
        ]
        for declared in found[kind]:
            if declared.name in taken:
                raise ConfigError(f"{declared.name} of {kind.__name__} is the name of another setting")
            taken.add(declared.name)
    return found


CONFIG_FILE = Declared(
    Setting("--config", FILE, "settings in TOML, each under the name of its flag: queue-timeout = 30"),
    (), str, many=False, default=None, group="", choices={},
)  # fmt: skip

LIMIT = Declared(
    Setting("--timeout", SECONDS, "what is not done after so many seconds has failed", above=0),
    (), float, many=False, default=DEFAULT_LIMIT_S, group="", choices={},
)  # fmt: skip

FIT_LIMIT = dataclasses.replace(
    LIMIT,
    setting=Setting("--timeout", SECONDS, "no probe is sent after so many seconds", above=0),
    default=300.0,
)

_EXAMPLE = """\
example:
  kvproxy {command} -m llama -p 10.0.0.1:8100 10.0.0.2:8100 -d 10.0.0.3:8200 10.0.0.4:8200

An instance is HOST:PORT, or https://HOST:PORT where it speaks TLS. Its KV-event sources are asked of it; for one that does not tell, name them:
  HOST:PORT?events=tcp://HOST:5557&replay=tcp://HOST:5657&topic=T     (several ranks: comma-separated)

"""

_ANY_SETTING = "the setting of --FLAG, as in KVPROXY_QUEUE_TIMEOUT=30; flags win over it, it over --config"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


class Command(NamedTuple):
    """A parsed command line."""

    parser: argparse.ArgumentParser
    settings: Sequence[Declared]
    """The command's settings, with its own defaults."""
    given: dict[str, Any]
    """The word or words after each flag that was given, by key."""


def fail(message: str, code: int = 2) -> NoReturn:
    """Write a message to stderr, and end the process with `code`."""
    print(f"kvproxy: {message}", file=sys.stderr)
    sys.exit(code)


def empty_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command that brings its own flags."""
    return _Parser(prog=f"kvproxy {command}", allow_abbrev=False)


def parse(argv: Sequence[str] | None, others: Sequence[Declared] = ()) -> Command:
    """Parse a command line; exits for --help and for words that mean nothing.

    `others`: settings of other packages; `serve` has flags for them too.
    """
    top = _Parser(prog="kvproxy", description="The router for disaggregated vLLM.", allow_abbrev=False)
    top.add_argument(
        "--version", action="version", version=f"kvproxy {importlib.metadata.version('kvproxy')}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    made = {
        "serve": _add_serve(commands, others),
        "doctor": _add_doctor(commands),
        "fit": _add_fit(commands),
    }
    commands.add_parser("simulate", help="let a fleet serve recorded or generated traffic in simulated time")
    commands.add_parser("plan", help="tell how GPUs are best split into prefill and decode for some traffic")
    args, unknown = top.parse_known_args(argv)
    parser, settings = made[args.command]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return Command(parser, settings, vars(args))


def _add_serve(
    commands: "argparse._SubParsersAction[_Parser]", others: Sequence[Declared]
) -> tuple[_Parser, Sequence[Declared]]:
    serve = commands.add_parser(
        "serve",
        help="serve prefill and decode engines behind one OpenAI-compatible address",
        description="Serve X prefill and Y decode engines behind one OpenAI-compatible address.",
        epilog=_EXAMPLE.format(command="serve") + _environment(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flag(serve, CONFIG_FILE)
    add_groups(serve, [*SETTINGS, *others])
    return serve, SETTINGS


def _add_doctor(commands: "argparse._SubParsersAction[_Parser]") -> tuple[_Parser, Sequence[Declared]]:
    doctor = commands.add_parser(
        "doctor",
        help="look whether engines do what kvproxy relies on, and say what to do where not",
        description="Look at each engine, and at each pair of them, step by step. Small probe prompts are "
        "sent. Exit code 0: all is well; 1: warnings; 2: failures, or a wrong flag.",
        epilog=_EXAMPLE.format(command="doctor"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flag(doctor, CONFIG_FILE)
    engines = doctor.add_argument_group("engines, as for kvproxy serve")
    output = doctor.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="everything, for machines")
    add_flag(output, LIMIT)
    settings = [_quiet(declared) if declared.key == "log-level" else declared for declared in SETTINGS]
    for declared in settings:
        if declared.setting.doctor:
            add_flag(output if declared.key == "log-level" else engines, declared)
    return doctor, settings


def _add_fit(commands: "argparse._SubParsersAction[_Parser]") -> tuple[_Parser, Sequence[Declared]]:
    fit = commands.add_parser(
        "fit",
        help="make a profile of engines: how long they take, for simulate and plan",
        description="Send probes to engines, one after the other, and fit a model of what they take. The"
        " profile is for --profile of kvproxy simulate and plan. Engines that others use are not probed.",
        epilog=_EXAMPLE.format(command="fit"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flag(fit, CONFIG_FILE)
    engines = fit.add_argument_group("engines, as for kvproxy serve")
    probes = fit.add_argument_group("probes")
    probes.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="FILE", help="write the profile there"
    )
    probes.add_argument(
        "--longest", type=int, default=LONGEST, metavar="TOKENS",
        help="no prompt is longer, nor than an engine takes (default: %(default)s)",
    )  # fmt: skip
    probes.add_argument(
        "--chunk-tokens", type=int, default=PROFILES[UNKNOWN].chunk_tokens, metavar="TOKENS",
        help="--max-num-batched-tokens of the engines, which they do not tell (default: %(default)s)",
    )  # fmt: skip
    probes.add_argument(
        "--anyway", action="store_true", help="probe engines that others use, whose requests wait meanwhile"
    )
    add_flag(probes, FIT_LIMIT)
    settings = [_quiet(declared) if declared.key == "log-level" else declared for declared in SETTINGS]
    for declared in settings:
        if declared.setting.doctor:
            add_flag(probes if declared.key == "log-level" else engines, declared)
    return fit, settings


def _quiet(log_level: Declared) -> Declared:
    setting = dataclasses.replace(log_level.setting, help="what is logged on stderr beside the report")
    return dataclasses.replace(log_level, setting=setting, default="error")


def _environment() -> str:
    """The help text about the environment: its names for settings, and secrets that have no flag."""
    described = {"KVPROXY_FLAG": _ANY_SETTING}
    described |= {
        declared.environment: declared.setting.help for declared in SETTINGS if not declared.setting.flag
    }
    width = max(map(len, described))
    lines = ["", "environment:"]
    for name, text in described.items():
        first, *rest = textwrap.wrap(text, 90)
        lines += [f"  {name:<{width}}   {first}", *(f"  {'':<{width}}   {line}" for line in rest)]
    return "\n".join(lines) + "\n"
