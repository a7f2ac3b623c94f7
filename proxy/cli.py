"""The command line: flags become a `Config`, the `Config` runs, and how that ended becomes the exit code.

0: asked to stop. 1: not ready in time. 2: a setting is wrong, or an engine serves another model.
"""

import argparse
import asyncio
import importlib.metadata
import logging
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import uvloop
from aiohttp import web

from proxy.app import create_runner, shut_down
from proxy.app_keys import WATCH
from proxy.config import Config, Role, parse_instance
from proxy.connectors import CONNECTORS
from proxy.errors import ConfigError, KvproxyError
from proxy.scheduling.policies import POLICIES

log = logging.getLogger("kvproxy")

LOG_LEVELS = ("debug", "info", "warning", "error")

_EXAMPLE = """\
example:
  kvproxy serve -m llama -p 10.0.0.1:8100 10.0.0.2:8100 -d 10.0.0.3:8200 10.0.0.4:8200

An instance is HOST:PORT. Its KV-event sources are asked of it; for one that does not tell, name them:
  HOST:PORT?events=tcp://HOST:5557&replay=tcp://HOST:5657&topic=T     (several ranks: comma-separated)

environment:
  ADMIN_API_KEY   the key that /instances/add and /instances/remove need in X-API-Key
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (see {self.prog} --help)")


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"kvproxy: {message}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog="kvproxy", description="The router for disaggregated vLLM.", allow_abbrev=False)
    top.add_argument(
        "--version", action="version", version=f"kvproxy {importlib.metadata.version('kvproxy')}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="serve prefill and decode engines behind one OpenAI-compatible address",
        description="Serve X prefill and Y decode engines behind one OpenAI-compatible address.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    engines = serve.add_argument_group("engines")
    engines.add_argument("-m", "--model", required=True, help="the model name that all engines serve")
    for flags, what in (
        (("-p", "--prefill"), "prefill engines"),
        (("-d", "--decode"), "decode engines"),
        (("--both",), "engines that do both: they serve a request in one leg"),
    ):
        engines.add_argument(*flags, nargs="+", action="extend", default=[], metavar="HOST:PORT", help=what)
    engines.add_argument(
        "--connector",
        choices=list(CONNECTORS),
        default="nixl",
        help="how KV moves: nixl hands transfer params from leg to leg, shared sends two plain legs"
        " for engines with a shared store (default: %(default)s)",
    )
    engines.add_argument(
        "--kv-lease-s",
        type=float,
        default=30.0,
        metavar="S",
        help="how long prefill engines hold blocks: their kv_lease_duration (default: %(default)g)",
    )
    engines.add_argument(
        "--kv-events",
        choices=["auto", "off"],
        default="auto",
        help="auto follows the KV events of engines that publish them; off places by load (default: %(default)s)",
    )
    engines.add_argument(
        "--engine-api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="a file with the key that engines want; clients' Authorization is then not passed on",
    )
    routing = serve.add_argument_group("routing")
    routing.add_argument(
        "--policy",
        default="cache_affinity",
        help=f"how instances are picked: {', '.join(POLICIES)}, or package.module:Class (default: %(default)s)",
    )
    routing.add_argument(
        "--decision-headers",
        action="store_true",
        help="answers carry X-Kvproxy-Prefill, X-Kvproxy-Decode and X-Kvproxy-Cached-Tokens (predicted)",
    )
    service = serve.add_argument_group("service")
    service.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    service.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    service.add_argument(
        "--max-body-mb",
        type=int,
        default=64,
        metavar="MIB",
        help="largest request body (default: %(default)s)",
    )
    service.add_argument(
        "--startup-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="end with exit code 1 if no request can be served after so many seconds (default: %(default)g)",
    )
    service.add_argument(
        "--shutdown-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="how long running requests may take to end after SIGTERM or Ctrl-C (default: %(default)g)",
    )
    service.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="info logs a line a request (default: %(default)s)",
    )
    return top


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration in command-line arguments and environment. Raises ConfigError; exits for --help."""
    args = _parser().parse_args(argv)
    roles = {Role.PREFILL: args.prefill, Role.DECODE: args.decode, Role.BOTH: args.both}
    instances = tuple(parse_instance(text, role) for role, texts in roles.items() for text in texts)
    config = Config(
        model=args.model,
        instances=instances,
        host=args.host,
        port=args.port,
        connector=args.connector,
        policy=args.policy,
        kv_events=args.kv_events == "auto",
        engine_api_key=_read_key(args.engine_api_key_file),
        admin_api_key=os.environ.get("ADMIN_API_KEY", "").strip() or None,
        log_level=args.log_level,
        startup_timeout_s=args.startup_timeout,
        shutdown_timeout_s=args.shutdown_timeout,
        kv_lease_s=args.kv_lease_s,
        decision_headers=args.decision_headers,
        max_body_mb=args.max_body_mb,
    )
    if not args.both and not (args.prefill and args.decode):
        missing = " and ".join(f"--{r}" for r in (Role.PREFILL, Role.DECODE) if not roles[r])
        raise ConfigError(
            f"{missing} needs at least one HOST:PORT (or name engines that do both with --both)"
        )
    return config


def _read_key(path: pathlib.Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--engine-api-key-file {path}: {error}") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"--engine-api-key-file {path}: it must hold one key on one line")
    return key


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once what is still running.

    Raises ConfigError or StartupError if there is no point in going on.
    """
    runner = create_runner(config)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            raise ConfigError(
                f"--host {config.host} --port {config.port}: cannot listen there ({error.strerror})"
            ) from None
        port = runner.addresses[0][1]
        log.info(
            "listening on http://%s:%d, waiting for %d engines", config.host, port, len(config.instances)
        )
        fatal = runner.app[WATCH].fatal
        stopped = loop.create_task(stop.wait(), name="signal")
        ends: set[asyncio.Future[Any]] = {stopped, fatal}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if fatal.done():
            raise fatal.result()
        log.info("stopping: running requests have %g s to end", config.shutdown_timeout_s)
        await shut_down(runner, config.shutdown_timeout_s, hurry)
    finally:
        await runner.cleanup()


def _allow_many_sockets() -> None:
    """Every client and every leg is a file descriptor; the usual soft limit of 1024 is no limit of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: Sequence[str] | None = None) -> None:
    """The `kvproxy` command."""
    try:
        config = read_config(argv)
        logging.basicConfig(
            level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        _allow_many_sockets()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config))
    except ConfigError as error:
        _fail(str(error))
    except KvproxyError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        pass
