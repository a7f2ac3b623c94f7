"""kvproxy's own CPU per request and per streamed chunk: each load goes to an engine directly and through
kvproxy, in turns.
"""

import asyncio
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from scripts.workshop.bench.cpu import cpu_s, memory_mib
from scripts.workshop.bench.load import Outcome, post
from scripts.workshop.bench.load import run as load
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.proxy import ProxyProcess

STAND_IN = [sys.executable, "-m", "proxy.simulation", "--host", "127.0.0.1", "--blocks", "65536"]


@dataclass(frozen=True, slots=True)
class Engines:
    """What to measure with, by role; without any address stand-ins are started."""

    model: str
    prefill: list[str]
    decode: list[str]
    both: list[str]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    name: str
    body: dict[str, object]
    concurrency: int
    legs: int
    per_chunk: bool = False
    share: float = 1.0
    """Of the requests asked for: streams are long."""


def cases(model: str) -> list[Case]:
    """Sizes as in other proxies' figures: about 1 KB and 32 KB of prompt, and many streams at once."""
    short, long = list(range(1000, 1200)), list(range(1000, 4000)) * 2
    text = "the quick brown fox jumps over the lazy dog " * 22
    one = {"model": model, "max_tokens": 1, "temperature": 0}
    return [
        Case("unary, one leg, 1 KB token ids", one | {"prompt": short}, 32, 1),
        Case("unary, prefill + decode, 1 KB token ids", one | {"prompt": short}, 32, 2),
        Case("unary, prefill + decode, 1 KB text", one | {"prompt": text}, 32, 2),
        Case("unary, prefill + decode, 30 KB token ids", one | {"prompt": long}, 16, 2, share=0.25),
        Case(
            "stream of 200 chunks, 64 at once",
            one | {"prompt": short, "max_tokens": 200, "ignore_eos": True, "stream": True},
            64,
            2,
            per_chunk=True,
            share=0.05,
        ),
    ]


@contextlib.contextmanager
def setting(
    engines: Engines, flags: Sequence[str], logs: pathlib.Path
) -> Iterator[dict[int, tuple[str, ProxyProcess]]]:
    """By number of legs: an engine to ask directly, and a kvproxy in front of what serves such requests."""
    with contextlib.ExitStack() as stack:

        def stand_in(name: str) -> str:
            [port] = free_ports(1)
            command = [*STAND_IN, "--port", str(port), "--model", engines.model]
            process = OwnedProcess(name, command, logs / f"{name}.log", {})
            stack.callback(process.stop)
            return f"127.0.0.1:{port}"

        given = bool(engines.both or engines.prefill or engines.decode)
        fleets: dict[int, dict[str, list[str]]] = {}
        if engines.both or not given:
            fleets[1] = {"both": engines.both or [stand_in("both")]}
        if (engines.prefill and engines.decode) or not given:
            fleets[2] = {
                "prefill": engines.prefill or [stand_in("prefill")],
                "decode": engines.decode or [stand_in("decode")],
            }
        ready = {}
        for legs, fleet in fleets.items():
            [port] = free_ports(1)
            proxy = stack.enter_context(
                ProxyProcess(
                    port,
                    logs / f"kvproxy-{legs}.log",
                    prefill=fleet.get("prefill", ()),
                    decode=fleet.get("decode", ()),
                    both=fleet.get("both", ()),
                    model=engines.model,
                    flags=["--bypass", "off", *flags],  # two legs are measured where there are two
                )
            )
            proxy.wait_status("/ready")
            ready[legs] = (fleet["both" if legs == 1 else "decode"][0], proxy)
        yield ready


def measure(address: str, case: Case, count: int) -> Outcome:
    request = post("/v1/completions", json.dumps(case.body).encode())
    outcome = asyncio.run(load(address, [request] * count, case.concurrency))
    if outcome.failures:
        sys.exit(f"{case.name} at {address}: {len(outcome.failures)} failed, such as {outcome.failures[0]}")
    return outcome


def row(case: Case, engine: str, proxy: ProxyProcess, requests: int, rounds: int) -> list[str]:
    count = max(case.concurrency, round(requests * case.share))
    through = proxy.url.removeprefix("http://")
    cost_us, direct_ms, through_ms, direct_rate, through_rate = [], [], [], [], []
    for number in range(rounds + 1):
        direct = measure(engine, case, count)
        before = cpu_s(proxy.pid)
        routed = measure(through, case, count)
        used_s = cpu_s(proxy.pid) - before
        if number == 0:
            continue  # the first round warms up
        units = routed.chunks if case.per_chunk else routed.requests
        cost_us.append(1e6 * used_s / units)
        direct_ms.append(direct.percentile_ms(0.5))
        through_ms.append(routed.percentile_ms(0.5))
        direct_rate.append(direct.requests / direct.seconds)
        through_rate.append(routed.requests / routed.seconds)
    middle = statistics.median
    return [
        case.name,
        f"{middle(cost_us):.0f} per {'chunk' if case.per_chunk else 'request'}",
        f"{middle(direct_rate):.0f}",
        f"{middle(through_rate):.0f}",
        f"{middle(direct_ms):.1f}",
        f"{middle(through_ms):.1f}",
    ]


def run(engines: Engines, requests: int, rounds: int, flags: Sequence[str], console: Console) -> None:
    """Print a table: a row for each case that these engines can serve, with the medians of so many rounds.

    `flags` go to kvproxy serve. Call it from the main thread; SystemExit if a request fails.
    """
    table = Table("load", "kvproxy CPU us", "requests/s direct", "through", "p50 ms direct", "through")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as logs, setting(engines, flags, pathlib.Path(logs)) as ready:
        for case in cases(engines.model):
            if case.legs in ready:
                print(f"  {case.name} ...", file=sys.stderr, flush=True)
                table.add_row(*row(case, *ready[case.legs], requests, rounds))
        memory = max(memory_mib(proxy.pid) for _, proxy in ready.values())
    console.print(table)
    print(f"kvproxy memory {memory:.0f} MiB; {time.monotonic() - begun:.0f} s in all")
