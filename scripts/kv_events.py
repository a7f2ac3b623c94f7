"""The demo: starts engines and kvproxy, runs a few chats through them, ends all it started.

Run it with scripts/kv_events.sh, which sets up what it needs. Exit code 0 only if every answer came and the
cached tokens were those predicted.
"""

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import signal
import sys
import time

import aiohttp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop.checkout import LOGS
from scripts.workshop.demo.chats import CHATS
from scripts.workshop.demo.screen import Screen, Turn
from scripts.workshop.demo.session import TurnFailedError, run_session
from scripts.workshop.engines.fleet import EngineFailedError, Fleet, plan
from scripts.workshop.engines.stand_in import StandInFleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import tail
from scripts.workshop.live.proxy import ProxyFailedError, ProxyProcess

_INTERRUPTED = 130


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/kv_events.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--engine",
        choices=["stand-in", "vllm"],
        default="stand-in",
        help="what serves the chats: stand-ins, or real vLLM on the CPU (default: %(default)s)",
    )
    parser.add_argument("--prefill", type=int, default=2, metavar="N", help="prefill engines (default: 2)")
    parser.add_argument("--decode", type=int, default=2, metavar="N", help="decode engines (default: 2)")
    parser.add_argument("--logs", type=pathlib.Path, default=LOGS / "demo", metavar="DIR")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    screen = Screen()
    shutil.rmtree(args.logs, ignore_errors=True)
    try:
        turns = _demo(args, screen)
    except KeyboardInterrupt:
        screen.failure("stopped; everything that was started has ended")
        return _INTERRUPTED
    except (EngineFailedError, ProxyFailedError) as error:
        screen.failure(f"error: {error}")
        return 1
    except (TurnFailedError, aiohttp.ClientError, TimeoutError) as error:
        log = args.logs / "kvproxy.log"
        screen.failure(f"error: {error or type(error).__name__}; kvproxy's log is {log}:\n{tail(log)}")
        return 1
    screen.table(turns)
    return _verdict(turns, screen)


def _demo(args: argparse.Namespace, screen: Screen) -> list[Turn]:
    logs: pathlib.Path = args.logs
    kinds: dict[str, tuple[type[Fleet | StandInFleet], str]] = {
        "stand-in": (StandInFleet, "stand-in engines"),
        "vllm": (Fleet, "vLLM engines, which takes about a minute"),
    }
    make, what = kinds[args.engine]
    with contextlib.ExitStack() as running:
        begun = time.monotonic()
        screen.title(f"Starting {args.prefill} prefill and {args.decode} decode {what} (logs in {logs})")
        specs = plan(prefill=args.prefill, decode=args.decode)
        fleet = running.enter_context(make(specs, logs, say=screen.note))
        running.callback(_no_more_interrupts)
        fleet.start()
        fleet.wait_healthy()
        [port] = free_ports(1)
        proxy = running.enter_context(
            ProxyProcess(
                port,
                logs / "kvproxy.log",
                prefill=[spec.address for spec in fleet.of_role("prefill")],
                decode=[spec.address for spec in fleet.of_role("decode")],
                flags=["--decision-headers"],
            )
        )
        running.callback(_no_more_interrupts)
        screen.title("Starting kvproxy in front of them")
        screen.note(f"  kvproxy {' '.join(proxy.command[1:])}")
        proxy.wait_status("/ready")
        screen.note(f"  all is ready after {time.monotonic() - begun:.0f} s")
        screen.title(
            f"{len(CHATS)} chats, their turns mixed. The answers are noise; the caching is what matters."
        )
        return asyncio.run(run_session(fleet, proxy, screen))


def _no_more_interrupts() -> None:
    """From here on everything is being ended; a second Ctrl-C must not cut that short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _verdict(turns: list[Turn], screen: Screen) -> int:
    wrong = [turn for turn in turns if not turn.as_predicted]
    if wrong:
        named = ", ".join(f"{turn.who} {turn.number}" for turn in wrong)
        screen.failure(f"{len(wrong)} of {len(turns)} turns were not as predicted: {named}")
        return 1
    screen.title(f"All {len(turns)} answers came, and every one reused exactly what was predicted.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
