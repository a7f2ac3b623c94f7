"""The commands share what says which engines there are and how they are spoken to."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from proxy.cli.flags import groups
from proxy.cli.flags.cors import add_cors
from proxy.cli.flags.numbers import seconds
from proxy.doctor import DEFAULT_LIMIT_S

_EXAMPLE = """\
example:
  kvproxy {command} -m llama -p 10.0.0.1:8100 10.0.0.2:8100 -d 10.0.0.3:8200 10.0.0.4:8200

An instance is HOST:PORT, or https://HOST:PORT where it speaks TLS. Its KV-event sources are asked of it; for one that does not tell, name them:
  HOST:PORT?events=tcp://HOST:5557&replay=tcp://HOST:5657&topic=T     (several ranks: comma-separated)

"""

_ENVIRONMENT = """
environment:
  ADMIN_API_KEY   the key that /instances/*, /v1/load_lora_adapter, /v1/unload_lora_adapter, /explain and
                  /doctor need in X-API-Key
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why on stderr and end the process."""
    print(f"kvproxy: {message}", file=sys.stderr)
    sys.exit(code)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command; exits for --help and for words that are none."""
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
    groups.add_engines(serve.add_argument_group("engines"))
    routing = serve.add_argument_group("routing")
    groups.add_routing(routing)
    groups.add_tokenizer(routing)
    service = serve.add_argument_group("service")
    groups.add_service(service)
    groups.add_log_level(service, "info", "info logs a line a request")
    groups.add_faults(serve.add_argument_group("faults"))
    groups.add_overload(serve.add_argument_group("overload"))
    security = serve.add_argument_group("security")
    groups.add_security(security)
    groups.add_engine_security(security)
    add_cors(serve.add_argument_group("browsers"))
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
    groups.add_engines(engines)
    groups.add_tokenizer(engines)
    groups.add_engine_security(engines)
    groups.add_number(engines, *groups.CONNECT_TIMEOUT)
    output = doctor.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="everything, for machines")
    output.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_LIMIT_S,
        metavar="S",
        help="what is not done after so many seconds has failed (default: %(default)g)",
    )
    groups.add_log_level(output, "error", "what is logged on stderr beside the report")
    return doctor
