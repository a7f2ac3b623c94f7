"""Several real engines side by side: every one that was started is ended, whatever happens in between.

Used as a context manager. Starting does not wait; `wait_healthy` does, with progress lines, and says which
log to read when an engine died. Call `start` and `restart` from the main thread (live/processes.py says why).
"""

import os
import pathlib
import signal
import time
import types
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from scripts.workshop.engines.engine import EngineSpec, Installation, Role, command, environment
from scripts.workshop.live.ports import free_ports, is_free
from scripts.workshop.live.processes import OwnedProcess, stop_all

_POLL_S = 0.5
_REPORT_EVERY_S = 15
_STOP_GRACE_S = 15


class EngineFailedError(RuntimeError):
    """An engine died or did not come up; the message names it, its log and the log's last lines."""


class Fleet:
    """Engines by name."""

    def __init__(
        self,
        specs: Iterable[EngineSpec],
        logs: pathlib.Path,
        *,
        install: Installation | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.logs = logs
        self._install = install or Installation.default()
        self._say = say
        self._processes: dict[str, OwnedProcess] = {}
        self._begun: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> EngineSpec:
        return self.specs[name]

    def of_role(self, role: Role) -> list[EngineSpec]:
        return [spec for spec in self.specs.values() if spec.role == role]

    def named(self, address: str) -> str:
        """Return the name of the engine at host:port."""
        return next(spec.name for spec in self.specs.values() if spec.address == address)

    def log(self, name: str) -> pathlib.Path:
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def start(self, names: Sequence[str] | None = None) -> None:
        """Start the named engines, or all, and do not wait for them."""
        if missing := self._install.missing:
            raise EngineFailedError(f"no engine is installed ({missing} is missing): run scripts/vllm_cpu.sh")
        for name in names if names is not None else self.specs:
            spec = self.specs[name]
            self._begun[name] = time.monotonic()
            self._processes[name] = OwnedProcess(
                name, command(spec, self._install), self.log(name), environment(spec, os.environ)
            )

    def wait_healthy(self, names: Sequence[str] | None = None, timeout_s: float = 240) -> None:
        """Wait until the named engines, or all, answer /health; EngineFailedError otherwise."""
        waiting = list(names if names is not None else self._processes)
        total = len(waiting)
        begun = reported = time.monotonic()
        while waiting:
            for name in list(waiting):
                if self.died(name):
                    raise self._failure(name, f"ended with exit code {self._processes[name].exit_code}")
                if is_healthy(self.specs[name]):
                    waiting.remove(name)
                    up_s = time.monotonic() - self._begun[name]
                    self._say(f"  engine {name} is up after {up_s:.0f} s ({total - len(waiting)} of {total})")
            now = time.monotonic()
            if waiting and now - begun > timeout_s:
                raise self._failure(waiting[0], f"did not come up in {timeout_s:.0f} s")
            if waiting and now - reported > _REPORT_EVERY_S:
                reported = now
                self._say(f"  waiting for {', '.join(waiting)} ({now - begun:.0f} s)")
            time.sleep(_POLL_S if waiting else 0)

    def died(self, name: str) -> bool:
        return self._processes[name].exit_code is not None

    def kill(self, name: str) -> None:
        """End an engine as a crash would: SIGKILL to the whole of it."""
        self._processes[name].kill()

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to an engine's first process, such as SIGSTOP and SIGCONT."""
        self._processes[name].send(number)

    def restart(self, name: str, timeout_s: float = 20) -> None:
        """Start an engine that has ended again, on the same ports, and do not wait for it."""
        self._processes[name].stop(_STOP_GRACE_S)
        end = time.monotonic() + timeout_s
        while not is_free(self.specs[name].port):
            if time.monotonic() > end:
                raise self._failure(name, f"left its port {self.specs[name].port} in use")
            time.sleep(_POLL_S)
        self.start([name])

    def stop(self) -> None:
        """End every engine that was started."""
        stop_all(list(self._processes.values()), _STOP_GRACE_S)

    def _failure(self, name: str, what: str) -> EngineFailedError:
        process = self._processes[name]
        return EngineFailedError(f"engine {name} {what}; its log is {process.log}:\n{process.tail()}")


def is_healthy(spec: EngineSpec) -> bool:
    try:
        with urllib.request.urlopen(f"{spec.url}/health", timeout=2) as answer:  # noqa: S310  # http on loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def plan(
    *,
    plain: int = 0,
    prefill: int = 0,
    decode: int = 0,
    lease_s: int = 30,
    loras: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    env: tuple[tuple[str, str], ...] = (),
) -> list[EngineSpec]:
    """Describe a fleet with free ports: plain engines, and prefill and decode engines joined by NIXL.

    Every engine has a hash seed of its own, as engines have that nobody aligned; `env` is for all.
    """
    counts: dict[Role, int] = {"plain": plain, "prefill": prefill, "decode": decode}
    wanted: list[tuple[Role, int]] = [(role, n) for role, count in counts.items() for n in range(count)]
    ports = iter(free_ports(4 * len(wanted)))
    return [
        EngineSpec(
            name=f"{role}-{n}",
            port=next(ports),
            role=role,
            connector=None if role == "plain" else "nixl",
            side_port=next(ports),
            events_port=next(ports),
            replay_port=next(ports),
            lease_s=lease_s,
            loras=loras,
            flags=flags,
            env=(("PYTHONHASHSEED", str(seed)), *env),
        )
        for seed, (role, n) in enumerate(wanted)
    ]
