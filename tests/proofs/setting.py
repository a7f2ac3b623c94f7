"""Stand-in engines as processes, a real kvproxy process before them, and what can be asked of both."""

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp

from scripts.workshop.bench.cpu import cpu_s, own_memory_mib
from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import plan
from scripts.workshop.engines.stand_in import StandInFleet
from scripts.workshop.live.metrics import Page, read_metrics
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.proofs.texts import MAX_MODEL_LEN

MODEL = "tiny"
ADMIN_KEY = "for-the-proof"
LEASE_S = 45
"""Longer than the decode leg of a hung engine is waited for, and its release after that."""
KV_TOKENS = 65_536
"""Of each engine: prompts stay cached for a while, and blocks are evicted all the time."""

BUFFER_STEPS = 10_000
"""Batches of events that an engine can replay; vLLM's default."""


@dataclasses.dataclass(frozen=True)
class Vitals:
    """What kvproxy's process holds at one moment."""

    at: float
    tasks: int
    sockets: int
    memory_mib: float
    """What only this process has."""
    cpu_s: float


class Setting:
    """The running fleet. All questions are bounded in time."""

    def __init__(self, fleet: StandInFleet, proxy: ProxyProcess, session: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self.proxy = proxy
        self.session = session

    @property
    def engines(self) -> list[EngineSpec]:
        return list(self.fleet.specs.values())

    async def status(self) -> dict[str, dict[str, Any]]:
        """What kvproxy says of each instance, by address."""
        async with self.session.get(f"{self.proxy.url}/status") as answer:
            answer.raise_for_status()
            return {each["instance"]: each for each in (await answer.json())["instances"]}

    async def metrics(self) -> Page:
        return await read_metrics(self.session, self.proxy.url)

    async def admin(self, what: str, spec: EngineSpec, **more: Any) -> tuple[int, str]:
        """POST /instances/`what`; the status and the words of the answer."""
        body = {"instance": spec.address, "type": spec.role} | more
        headers = {"X-API-Key": ADMIN_KEY}
        url = f"{self.proxy.url}/instances/{what}"
        async with self.session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.text()

    async def engine(self, name: str, command: dict[str, Any] | None = None) -> dict[str, Any]:
        """Command a stand-in's faults, or ask how it is; the answer tells the latter."""
        url = self.fleet.admin_url(name)
        asked = self.session.get(url) if command is None else self.session.post(url, json=command)
        async with asked as answer:
            answer.raise_for_status()
            state: dict[str, Any] = await answer.json()
            return state

    async def vitals(self) -> Vitals:
        tasks = (await self.metrics()).total("kvproxy_tasks")
        return Vitals(
            at=time.monotonic(),
            tasks=int(tasks),
            sockets=sockets(self.proxy.pid),
            memory_mib=own_memory_mib(self.proxy.pid),
            cpu_s=cpu_s(self.proxy.pid),
        )


def sockets(pid: int) -> int:
    """How many sockets a process of ours has open."""
    count = 0
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


@contextmanager
def processes(
    prefill: int,
    decode: int,
    logs: pathlib.Path,
    *,
    profile: str,
    flags: Sequence[str] = (),
) -> Iterator[tuple[StandInFleet, ProxyProcess]]:
    """Stand-ins that answer and a kvproxy that is ready; all have ended afterwards."""
    specs = [
        dataclasses.replace(spec, kv_tokens=KV_TOKENS, max_model_len=MAX_MODEL_LEN, served_name=MODEL)
        for spec in plan(prefill=prefill, decode=decode, lease_s=LEASE_S)
    ]
    words = ("--profile", profile, "--max-num-seqs", "64", "--buffer-steps", str(BUFFER_STEPS))
    with StandInFleet(specs, logs, words=words, say=lambda _: None) as fleet:
        fleet.start()
        fleet.wait_healthy(timeout_s=120)
        [port] = free_ports(1)
        with ProxyProcess(
            port,
            logs / "kvproxy.log",
            prefill=[spec.address for spec in fleet.of_role("prefill")],
            decode=[spec.address for spec in fleet.of_role("decode")],
            model=MODEL,
            flags=["--decision-headers", "--kv-lease-s", str(LEASE_S), *flags],
            admin_key=ADMIN_KEY,
        ) as proxy:
            proxy.wait_status("/ready")
            yield fleet, proxy
