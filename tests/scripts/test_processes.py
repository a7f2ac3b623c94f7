"""What is started is ended, with all it started, and nothing else is."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from scripts.workshop.live.ports import free_ports, is_free
from scripts.workshop.live.processes import OwnedProcess, tail

ROOT = pathlib.Path(__file__).parents[2]

PARENT = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def start(tmp_path: pathlib.Path, code: str) -> tuple[OwnedProcess, int]:
    """Start a program and return it with the number that it prints first."""
    process = OwnedProcess("test", [sys.executable, "-c", code], tmp_path / "log", os.environ)
    wait_for(lambda: process.log.read_text().endswith("\n"), "it has begun")
    return process, int(process.log.read_text())


def test_kill_ends_the_children_too(tmp_path: pathlib.Path) -> None:
    process, child = start(tmp_path, PARENT)
    assert runs(child)
    process.kill()
    assert process.exit_code == -signal.SIGKILL
    wait_for(lambda: not runs(child), "the child has ended")


def test_stop_ends_what_a_program_leaves_behind(tmp_path: pathlib.Path) -> None:
    process, child = start(tmp_path, PARENT)
    process.stop()
    assert process.exit_code == -signal.SIGTERM
    wait_for(lambda: not runs(child), "the child has ended")
    process.stop()  # a second time does nothing


def test_stop_does_not_wait_for_ever(tmp_path: pathlib.Path) -> None:
    process, _ = start(tmp_path, STUBBORN)
    process.stop(grace_s=0.2)
    assert process.exit_code == -signal.SIGKILL


def test_nothing_outlives_a_starter_that_was_killed(tmp_path: pathlib.Path) -> None:
    starter = (
        "import os, pathlib, sys, time; from scripts.workshop.live.processes import OwnedProcess;"
        f"p = OwnedProcess('x', ['sleep', '60'], pathlib.Path({str(tmp_path / 'log')!r}), os.environ);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        command = pathlib.Path(f"/proc/{pid}/cmdline")
        wait_for(lambda: command.read_bytes().startswith(b"sleep"), "the leash is on")
        process.kill()
    wait_for(lambda: not runs(pid), "what it started has ended")


def test_a_log_is_told_by_its_end(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == "    (No such file or directory)"
    log.write_bytes(b"")
    assert tail(log) == "    (empty)"
    log.write_bytes(b"one\ntwo \xff\nthree\n")
    assert tail(log, 2) == "    two \ufffd\n    three"


def test_free_ports_are_free_and_differ() -> None:
    ports = free_ports(30)
    assert len(set(ports)) == 30
    assert all(is_free(port) for port in ports)
    with pytest.raises(RuntimeError, match="free ports"):
        free_ports(60_000)
