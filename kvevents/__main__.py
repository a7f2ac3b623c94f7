"""`python -m kvevents HOST:PORT` writes each change of an engine's cache as a line, as it happens."""

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from kvevents.subscriber import Subscriber
from kvevents.tail import Tail
from kvevents.wire import SourceAddress

_QUIET_S = 3.0
_MAX_PORT = 65_535


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Output:
    """Standard output until nobody reads it any more; then `on_closed` is called once."""

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self._closed = False

    def write(self, line: str) -> None:
        if self._closed:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # The interpreter flushes standard output when it exits, which would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._closed = True
            self._on_closed()


def endpoint(text: str) -> str:
    """`HOST:PORT` or `tcp://HOST:PORT` as a ZeroMQ endpoint. Raises ArgumentTypeError, which names the
    remedy.
    """
    remedy = f"{text!r} is no address; write HOST:PORT, for example 127.0.0.1:5557"
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not colon or not re.fullmatch(r"[\w.*-]+|\[[0-9A-Fa-f:.%]+\]", host, re.ASCII):
        raise argparse.ArgumentTypeError(remedy)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= _MAX_PORT:
        raise argparse.ArgumentTypeError(remedy)
    return f"tcp://{host}:{int(port)}"


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    parser = _Parser(
        prog="python -m kvevents",
        description="Show a vLLM engine's KV-cache events as they happen, with running totals.",
    )
    parser.add_argument("endpoint", metavar="HOST:PORT", type=endpoint, help="where the engine publishes")
    parser.add_argument(
        "--replay",
        metavar="HOST:PORT",
        type=endpoint,
        help="its replay endpoint: starts with what came before",
    )
    parser.add_argument("--topic", default="", help="only topics that begin so")
    parser.add_argument("--bind", action="store_true", help="the engine connects to us")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 and one line if they make no sense together."""
    options = parser().parse_args(arguments)
    if "*" in options.endpoint and not options.bind:
        parser().error(
            "argument HOST:PORT: a host of * can only be bound; name the engine's host, or add --bind"
        )
    if options.replay and "*" in options.replay:
        parser().error("argument --replay: a host of * cannot be asked; name the engine's host")
    return options


async def follow(options: argparse.Namespace) -> None:
    """Write events until SIGINT or SIGTERM, or until nobody reads the output any more."""
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    output = _Output(done.set)
    tail = Tail(output.write, as_json=options.json, colour=colour)
    address = SourceAddress(0, options.endpoint, options.replay, options.topic, options.bind)
    subscriber = Subscriber(options.endpoint, address, tail, tail)
    if not options.json:
        replay = f", replay from {options.replay}" if options.replay else ", no replay"
        output.write(f"following {options.endpoint}{replay}")
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(subscriber.run(), name="follow the events")
        complaint = tasks.create_task(_say_if_quiet(subscriber, tail, options), name="say if all is quiet")
        await done.wait()
        tail.ended = True
        following.cancel()
        complaint.cancel()
    tail.totals()


async def _say_if_quiet(subscriber: Subscriber, tail: Tail, options: argparse.Namespace) -> None:
    await asyncio.sleep(_QUIET_S)
    if tail.batches:
        return
    if subscriber.connected:
        topic = f" and that its topic begins with {options.topic!r}" if options.topic else ""
        check = f"connected; check that the engine gets prompts longer than a block{topic}"
    elif options.bind:
        check = "no engine has connected; check the endpoint in its --kv-events-config"
    else:
        check = (
            "not connected; check that the engine is up, and that its --kv-events-config has"
            ' "enable_kv_cache_events": true and this endpoint'
        )
    print(f"nothing heard for {_QUIET_S:.0f} s: {check}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command; the exit code."""
    options = parsed(sys.argv[1:])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        asyncio.run(follow(options))
    except KeyboardInterrupt:  # before the signal handler was in place
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
