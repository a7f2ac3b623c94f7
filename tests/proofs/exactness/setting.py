"""The engines, real or stand-in, and the kvproxys before them: started, killed and started again."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.simulation.api.model_files import write_model
from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import Fleet, plan
from scripts.workshop.engines.stand_in import StandInFleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.proofs.exactness.prompts import ADAPTER, MAX_MODEL_LEN, MODEL

LEASE_S = 20
START_S = 420.0  # four real engines on two busy cores
ADMIN_KEY = "for-the-proof"
TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
"""So that chats with tools are taken whatever their choice."""


def specs(*, prefill_tokens: int, decode_tokens: int, buffer_steps: int) -> list[EngineSpec]:
    """Two prefill and two decode engines with caches of so many tokens."""
    return [
        dataclasses.replace(
            spec,
            kv_tokens=prefill_tokens if spec.role == "prefill" else decode_tokens,
            max_model_len=MAX_MODEL_LEN,
            buffer_steps=buffer_steps,
            served_name=MODEL,
            flags=TOOL_FLAGS,
        )
        for spec in plan(prefill=2, decode=2, lease_s=LEASE_S, loras=(ADAPTER,))
    ]


@contextmanager
def engines(
    wanted: list[EngineSpec], logs: pathlib.Path, *, real: bool, say: Callable[[str], None]
) -> Iterator[Fleet]:
    """The engines, answering; they have ended afterwards."""
    with _real(wanted, logs, say) if real else _stand_ins(wanted, logs) as fleet:
        fleet.start()
        fleet.wait_healthy(timeout_s=START_S)
        yield fleet


def _real(wanted: list[EngineSpec], logs: pathlib.Path, say: Callable[[str], None]) -> Fleet:
    return Fleet(wanted, logs, say=say)


def _stand_ins(wanted: list[EngineSpec], logs: pathlib.Path) -> Fleet:
    model = logs / "model"  # as real engines tell where their model is
    model.mkdir(parents=True, exist_ok=True)
    write_model(model)
    words = ("--profile", "tiny-cpu", "--root", str(model))
    return StandInFleet(wanted, logs, words=words, say=lambda _: None)


class Routers:
    """The kvproxys by name; each keeps its port and its state directory over its lives."""

    def __init__(self, fleet: Fleet, state_interval_s: float) -> None:
        """`state_interval_s`: how often snapshots are written."""
        self._fleet = fleet
        self._state_interval_s = state_interval_s
        self._ports: dict[str, int] = {}
        self._running: dict[str, ProxyProcess] = {}

    def __getitem__(self, name: str) -> ProxyProcess:
        return self._running[name]

    def log(self, name: str) -> pathlib.Path:
        return self._fleet.logs / f"kvproxy-{name}.log"

    def start(self, name: str) -> ProxyProcess:
        """Start one, and do not wait for it. Call it from the main thread."""
        if name not in self._ports:
            [self._ports[name]] = free_ports(1)
        flags = ["--decision-headers", "--kv-lease-s", str(LEASE_S), "--policy", "cache_affinity"]
        flags += ["--state-dir", str(self._state(name)), "--state-interval", str(self._state_interval_s)]
        self._running[name] = ProxyProcess(
            self._ports[name],
            self.log(name),
            prefill=[spec.address for spec in self._fleet.of_role("prefill")],
            decode=[spec.address for spec in self._fleet.of_role("decode")],
            model=MODEL,
            flags=flags,
            admin_key=ADMIN_KEY,
        )
        return self._running[name]

    def _state(self, name: str) -> pathlib.Path:
        return self._fleet.logs / f"state-{name}"

    def snapshots(self, name: str, since: float) -> int:
        """How many snapshots of engines' caches it has written since a moment (seconds since the epoch)."""
        return sum(file.stat().st_mtime >= since for file in self._state(name).glob("*.snapshot"))

    def kill(self, name: str) -> None:
        """End one as a crash would."""
        self._running[name].kill()

    def stop(self) -> None:
        """End all."""
        for proxy in self._running.values():
            proxy.terminate()
        for proxy in self._running.values():
            proxy.stop()
