"""How long kvproxy's event loop ever stands still while streams run and engines tell of long prompts."""

import pathlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from scripts.workshop.bench.peers.bodies import BLOCK, Asked
from scripts.workshop.bench.peers.cases import KIB, STREAM_US, Case
from scripts.workshop.bench.peers.ground import Bursts, prepared
from scripts.workshop.bench.peers.ours import is_prepared
from scripts.workshop.bench.peers.rounds import Bench, WrongError, started
from scripts.workshop.bench.peers.routers import Mode, kvproxy
from scripts.workshop.live import watched

STREAMS = 256
EVENT_TOKENS = 32 << 10
EVERY_S = 0.25
STARTING_S = 1.0
SETTLED_S = 0.5
WATCHED_S = 3.0
"""All streams run: none begins any more, none ends yet."""
CHUNKS = round(1e6 * (STARTING_S + 2 * SETTLED_S + WATCHED_S) / STREAM_US)
CASE = Case(
    "pause",
    f"{STREAMS} streams of prompts that are known",
    Mode.AFFINITY,
    Asked(KIB, max_tokens=CHUNKS, stream=True, interval_us=STREAM_US),
    STREAMS,
    seconds=STARTING_S + SETTLED_S,
    spread_us=round(1e6 * STARTING_S),
)


class Pauses(NamedTuple):
    """The worst pause of each round, in milliseconds."""

    without: list[float]
    events: list[float]
    """While an event of `EVENT_TOKENS` came every `EVERY_S` seconds."""


def measure(folder: pathlib.Path, core: int, rounds: int) -> Pauses:
    """With kvproxy on this core. Raises WrongError if it does not serve all of it."""
    return Pauses(
        _worst_ms(folder / "without", core, rounds, Bursts()),
        _worst_ms(folder / "events", core, rounds, Bursts(EVENT_TOKENS, EVERY_S)),
    )


def _worst_ms(folder: pathlib.Path, core: int, rounds: int, bursts: Bursts) -> list[float]:
    folder.mkdir()
    pulse = folder / "pulse"
    with prepared(folder, [CASE], bursts) as ground:
        program = watched.command(pulse)
        router = kvproxy(ground.backend.engines, CASE.mode, tokenizer=ground.model, program=program)
        with started([router], core, ground) as processes, ThreadPoolExecutor(1) as beside:
            bench = Bench(ground, processes)
            found = []
            for _ in range(rounds):
                load = beside.submit(bench.take, router, CASE, 1.0)
                time.sleep(STARTING_S + SETTLED_S)
                watched.forget(pulse)
                time.sleep(WATCHED_S)
                found.append(1000 * watched.worst_pause_s(pulse))
                load.result()
            events = int(bursts.tokens > 0) * int(rounds * WATCHED_S / bursts.every_s)
            if not is_prepared(router, CASE.mode, ground.blocks + events * bursts.tokens // BLOCK):
                raise WrongError(f"kvproxy did not take in {events} events of {bursts.tokens} tokens")
    return found
