"""Memory, CPU and latency of a kvproxy that learns what many engines with full caches hold, while requests go
on.
"""

import asyncio
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field

from scripts.workshop.bench.cpu import cpu_s
from scripts.workshop.bench.load import Outcome, post, read_answer
from scripts.workshop.bench.many_publishers import RUN, batches
from scripts.workshop.checkout import ROOT
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.proxy import ProxyProcess

REPLAYED = 0.8
LIVE_PER_S = 1500.0
REQUESTS_PER_S = 20.0
PROMPT_TOKENS = 1000
LOAD_S = 900.0
REST_S = 10.0


@dataclass(slots=True)
class Phase:
    """What happened while it loaded, or afterwards."""

    outcome: Outcome = field(default_factory=Outcome)
    cpu: float = 0.0


def run(sources: int, blocks: int) -> None:
    """Print a table for so many publishers with so many blocks each. Call it from the main thread."""
    ports = free_ports(3 * sources + 1)
    (front, *rest) = ports
    http, events, replays = rest[::3], rest[1::3], rest[2::3]
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as made:
        logs = pathlib.Path(made)
        feeds = [f"{e}:{r}" for e, r in zip(events, replays, strict=True)]
        told = ["--blocks", str(blocks), "--replayed", str(REPLAYED), "--live-per-s", str(LIVE_PER_S)]
        publishers = OwnedProcess(
            "publishers",
            [sys.executable, "-m", "scripts.workshop.bench.many_publishers", *told, *feeds],
            logs / "publishers",
            env,
        )
        engines = OwnedProcess(
            "engines",
            [
                sys.executable,
                "-m",
                "scripts.workshop.bench.many_engines",
                *(f"{p}:{f}" for p, f in zip(http, feeds, strict=True)),
            ],
            logs / "engines",
            env,
        )
        addresses = [f"127.0.0.1:{port}" for port in http]
        half = len(addresses) // 2
        try:
            with ProxyProcess(
                front,
                logs / "kvproxy",
                prefill=addresses[:half],
                decode=addresses[half:],
                flags=["--connector", "shared", "--policy", "cache_affinity", "--log-level", "warning"],
            ) as proxy:
                proxy.wait_status("/ready", timeout_s=120)
                asyncio.run(_measure(proxy, sources, batches(blocks) * RUN))
        finally:
            for process in (engines, publishers):
                process.stop()


async def _measure(proxy: ProxyProcess, sources: int, blocks: int) -> None:
    begun, cpu = time.monotonic(), cpu_s(proxy.pid)
    loading = Phase()
    async with asyncio.TaskGroup() as tasks:
        loaded = asyncio.Event()
        tasks.create_task(_requests(proxy, loading, loaded))
        known = 0
        while known < sources * blocks and time.monotonic() - begun < LOAD_S:
            await asyncio.sleep(1)
            known = await asyncio.to_thread(_known_blocks, proxy)
        loaded.set()
    seconds = time.monotonic() - begun
    loading.cpu = cpu_s(proxy.pid) - cpu
    rest, over = Phase(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_requests(proxy, rest, over))
        await asyncio.sleep(REST_S)
        over.set()
    memory = _memory_mb(proxy.pid)
    print(f"| {sources} sources x {blocks} blocks | |\n| --- | --- |")
    print(f"| blocks known, of those published | {known} of {sources * blocks} |")
    print(f"| memory of kvproxy, and the most it was | {memory['VmRSS']:.0f}, {memory['VmHWM']:.0f} MB |")
    print(
        f"| to load them | {seconds:.0f} s, {loading.cpu:.0f} s of CPU: "
        f"{1e6 * loading.cpu / max(1, known):.1f} us a block |"
    )
    for name, phase in (("while they load", loading), ("afterwards", rest)):
        outcome = phase.outcome
        took = ", ".join(f"{outcome.percentile_ms(share):.0f}" for share in (0.5, 0.9, 0.99))
        print(
            f"| a request {name}: median, 90 %, 99 % | {took} ms"
            f" ({outcome.requests} answered, {len(outcome.failures)} failed) |"
        )
    for failure in {*loading.outcome.failures, *rest.outcome.failures}:
        print(failure, file=sys.stderr)


async def _requests(proxy: ProxyProcess, phase: Phase, over: asyncio.Event) -> None:
    """Send new prompts at a steady pace, however long the answers take."""
    rng = random.Random(1)  # noqa: S311  # prompts
    async with asyncio.TaskGroup() as tasks:
        while not over.is_set():
            prompt = [rng.randrange(150_000) for _ in range(PROMPT_TOKENS)]
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0}
            tasks.create_task(_request(proxy, json.dumps(body).encode(), phase.outcome))
            await asyncio.sleep(1.0 / REQUESTS_PER_S)


async def _request(proxy: ProxyProcess, body: bytes, outcome: Outcome) -> None:
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    begun = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(post("/v1/completions", body))
        answer = await read_answer(reader)
        writer.close()
    except (OSError, EOFError) as error:
        outcome.failures.append(repr(error))
        return
    outcome.latencies_s.append(time.perf_counter() - begun)
    if answer.failure is not None:
        outcome.failures.append(answer.failure)


def _known_blocks(proxy: ProxyProcess) -> int:
    with urllib.request.urlopen(proxy.url + "/metrics", timeout=60) as answer:  # noqa: S310  # http on loopback
        lines = answer.read().decode().splitlines()
    return sum(
        int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("kvproxy_index_blocks{")
    )


def _memory_mb(pid: int) -> dict[str, float]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    return {name: int(fields[name][0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}
