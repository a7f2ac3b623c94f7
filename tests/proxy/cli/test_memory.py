"""What threads free serves others too, and what is large goes back: a process under load does not grow by
it."""

import platform
import subprocess
import sys

import pytest

from proxy.cli.memory import keep_tidy

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")

THREADS = """
import ctypes, sys, threading
from proxy.cli.memory import keep_tidy
if sys.argv[1] == "tidy":
    assert keep_tidy()
held, all_hold = [], threading.Barrier(5)
def hold():
    held.append([bytes(2000) for _ in range(1000)])
    all_hold.wait(20)
threads = [threading.Thread(target=hold) for _ in range(4)]
for thread in threads:
    thread.start()
all_hold.wait(20)
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""

HOLES = """
import pathlib, sys
from proxy.cli.memory import keep_tidy
if sys.argv[1] == "tidy":
    assert keep_tidy()
def resident_mib():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)
first = b"x" * (24 << 20)
del first  # what is no larger comes from the heap from now on
before, large, small = resident_mib(), [], []
for _ in range(10):
    large.append(b"x" * (4 << 20))
    small.append(bytes(2000))  # outlives it, at the heap's end
large.clear()
print(resident_mib() - before)
"""


def ends(script: str, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, how], capture_output=True, text=True, check=True, timeout=60
    )


def test_all_other_threads_share_one_region() -> None:
    assert ends(THREADS, "tidy").stderr.count("Arena") == 2
    assert ends(THREADS, "untidy").stderr.count("Arena") > 2


def test_large_memory_that_is_free_is_given_back() -> None:
    tidy, untidy = (float(ends(HOLES, how).stdout) for how in ("tidy", "untidy"))
    assert tidy < 5 < untidy


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_tidy()


def test_an_operators_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    monkeypatch.delattr("ctypes.CDLL")
    assert not keep_tidy()
