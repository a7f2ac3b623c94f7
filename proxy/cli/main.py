"""The command line: flags become a `Config`, the `Config` runs, and how that ended becomes the exit code.

0: asked to stop. 1: not ready in time. 2: a setting is wrong, or an engine serves another model. `doctor`
ends with what it found: 0 for nothing, 1 for warnings, 2 for failures; 130 if Ctrl-C ended it. `simulate` and
`plan` end with 0 if all was simulated, 130 as `doctor`; `fit` with 0 if a profile was written, 1 if an engine
did not answer or others use it. 141: what a command writes has no reader any more.
"""

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from proxy.cli.doctor import examine, shown
from proxy.cli.flags import empty_parser, fail, read_arguments
from proxy.cli.memory import keep_tidy
from proxy.cli.output import reader_may_leave
from proxy.config import Config
from proxy.edge.app import create_runner, drain, shut_down
from proxy.edge.app_keys import SERVICE
from proxy.errors import ConfigError, KvproxyError, TraceError
from proxy.log_lines import LineHandler
from proxy.logs import log_loop_error

log = logging.getLogger("kvproxy")

INTERRUPTED = 130
"""The exit code of shells for SIGINT: 128 and the number of the signal."""

YOUNG_OBJECTS = 20_000
"""So many objects more than before have the collector look for cycles, which requests leave none of: with
CPython's 700 it looks at those of requests under way again and again, for 4 % of the CPU."""

SWITCH_S = 0.001
"""Seconds that a computing thread keeps the GIL while others wait for it.

The event loop waits that long after each system call that released the GIL; with Python's own 5 ms, a turn
with six such calls beside a large body takes 30 ms."""


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once the draining and all that still runs.

    Raises ConfigError or StartupError if kvproxy cannot serve.
    """
    runner = create_runner(config)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    loop.add_signal_handler(
        signal.SIGHUP, log.info, "SIGHUP is ignored: nothing is read anew while kvproxy runs"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    await runner.setup()
    try:
        urls = await runner.listen()
        count = len(runner.app[SERVICE].fleet)  # the instances of flags, and those added before a restart
        engines = "1 engine" if count == 1 else f"{count} engines"
        log.info("listening on %s, waiting for %s", " and ".join(urls), engines)
        fatal = runner.app[SERVICE].watch.fatal
        stopped = loop.create_task(stop.wait(), name="signal")
        ends: set[asyncio.Future[Any]] = {stopped, fatal}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if fatal.done():
            await shut_down(runner, 0.0, hurry)
            raise fatal.result()
        if config.drain_delay_s:
            log.info("draining: /ready fails, and for %g s all is still served", config.drain_delay_s)
            await drain(runner, config.drain_delay_s, hurry)
        log.info("stopping: running requests have %g s to end", config.shutdown_timeout_s)
        begun_at = loop.time()
        await shut_down(runner, config.shutdown_timeout_s, hurry)
        log.info("stopped after %.1f s", loop.time() - begun_at)
    finally:
        await runner.cleanup()


def _allow_many_sockets() -> None:
    """Raise the soft limit of file descriptors, usually 1024: every client and every leg needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave_no_core() -> None:
    """Have no core dump written: it would hold prompts and keys. One that is piped to a program is that
    program's to limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _simulate(words: Sequence[str]) -> None:
    from proxy.cli.simulate import run  # noqa: PLC0415  # what serves needs no simulator in its memory

    run(words, empty_parser("simulate"))


def _plan(words: Sequence[str]) -> None:
    from proxy.cli.plan import run  # noqa: PLC0415  # as above

    run(words, empty_parser("plan"))


SIMULATING = {"simulate": _simulate, "plan": _plan}
"""The commands that bring their own flags, and need neither a `Config` nor a loop."""


def main(argv: Sequence[str] | None = None) -> None:
    """The `kvproxy` command."""
    command = ""
    named: Callable[[str], str] = str
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in SIMULATING:
            command = words[0]
            with reader_may_leave():
                SIMULATING[command](words[1:])
            return
        arguments = read_arguments(words)
        command, named = arguments.command, arguments.sources.named
        config = arguments.config
        logging.basicConfig(level=config.log_level.upper(), handlers=[LineHandler(sys.stderr)])
        for doubt in arguments.doubts:
            log.warning("%s", doubt)
        _allow_many_sockets()
        _leave_no_core()
        keep_tidy()
        sys.setswitchinterval(SWITCH_S)
        gc.freeze()  # the objects of all modules: to scan them again stops everything for 20 ms
        gc.set_threshold(YOUNG_OBJECTS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if arguments.fit is not None:
                from proxy.cli.fit import fit  # noqa: PLC0415  # what serves needs no probes in its memory

                words_of_fit = runner.run(fit(config, arguments.fit))
                with reader_may_leave():
                    print(words_of_fit)
                return
            if command == "doctor":
                report = runner.run(examine(config, arguments.limit_s))
                with reader_may_leave():
                    print(shown(report, json_wanted=arguments.as_json))
                sys.exit(report.exit_code)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the loop handles it
            runner.run(serve(config))
    except (ConfigError, TraceError) as error:
        fail(named(str(error)))
    except KvproxyError as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED if command in {"doctor", "fit", *SIMULATING} else 0)
