"""The whole demo: whatever happens, all that it started has ended when it returns."""

import asyncio
import contextlib
import pathlib
import shutil
import signal
import time

import aiohttp

from scripts.workshop.demo.chats import CHATS
from scripts.workshop.demo.screen import Screen, Turn
from scripts.workshop.demo.session import TurnFailedError, run_session
from scripts.workshop.engines.fleet import EngineFailedError, Fleet, plan
from scripts.workshop.engines.stand_in import StandInFleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import tail
from scripts.workshop.live.proxy import ProxyFailedError, ProxyProcess

_INTERRUPTED = 128 + signal.SIGINT

_BYPASS_TOKENS = 64
"""So that both ways are seen: by itself kvproxy would have a decode engine serve each of these short chats
whole, for nothing else runs there."""

ENGINES: dict[str, tuple[type[Fleet | StandInFleet], str]] = {
    "stand-in": (StandInFleet, "stand-in engines"),
    "vllm": (Fleet, "vLLM engines, which takes about a minute"),
}
"""What can serve the chats, and what it is called while it starts."""


def run(engine: str, prefill: int, decode: int, logs: pathlib.Path) -> int:
    """Run the chats on so many engines and return the exit code. Call it from the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    screen = Screen()
    shutil.rmtree(logs, ignore_errors=True)
    try:
        turns = _demo(engine, prefill, decode, logs, screen)
    except KeyboardInterrupt:
        screen.failure("stopped; everything that was started has ended")
        return _INTERRUPTED
    except (EngineFailedError, ProxyFailedError) as error:
        screen.failure(f"error: {error}")
        return 1
    except (TurnFailedError, aiohttp.ClientError, TimeoutError) as error:
        log = logs / "kvproxy.log"
        screen.failure(f"error: {error or type(error).__name__}; kvproxy's log is {log}:\n{tail(log)}")
        return 1
    screen.table(turns)
    return _verdict(turns, screen)


def _demo(engine: str, prefill: int, decode: int, logs: pathlib.Path, screen: Screen) -> list[Turn]:
    make, what = ENGINES[engine]
    with contextlib.ExitStack() as running:
        begun = time.monotonic()
        screen.title(f"Starting {prefill} prefill and {decode} decode {what} (logs in {logs})")
        fleet = running.enter_context(make(plan(prefill=prefill, decode=decode), logs, say=screen.note))
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
                flags=["--decision-headers", "--bypass", str(_BYPASS_TOKENS)],
            )
        )
        running.callback(_no_more_interrupts)
        screen.title("Starting kvproxy in front of them")
        screen.note(f"  kvproxy {' '.join(proxy.command[1:])}")
        proxy.wait_status("/ready")
        screen.note(f"  all is ready after {time.monotonic() - begun:.0f} s")
        screen.note(
            f"  A decode engine that lacks at most {_BYPASS_TOKENS} tokens of a prompt serves it whole"
            " (--bypass); other prompts are prefilled elsewhere."
        )
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
