"""CPU time and memory of a process of ours: unlike wall time they mean the same on a busy machine."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CPU_CLOCK_SCHED = 2  # linux/posix-timers.h: which clock of a process is asked for


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, that a process with all its threads has used so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # proc(5): utime, stime


def system_cpu_s(pid: int) -> float:
    """Seconds of CPU that the kernel has used for a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return int(fields[12]) / _TICKS_PER_S


def memory_mib(pid: int) -> float:
    """Proportional memory of a process, in MiB: pages that it shares with others count in part."""
    return _kib_of(pid)["Pss"] / 1024


def own_memory_mib(pid: int) -> float:
    """The memory that only this process has, in MiB, also where the kernel has swapped it out.

    Code and libraries are not in it: how much of them counts depends on what else runs on the machine.
    """
    kib = _kib_of(pid)
    return (kib["Anonymous"] + kib["Swap"]) / 1024


def _kib_of(pid: int) -> dict[str, int]:
    """The sums over all mappings of a process, by their names in proc_pid_smaps(5)."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            for thread in pathlib.Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text(encoding="ascii").split())
    return found


def family_cpu_s(pid: int) -> float:
    """As `cpu_s`, of a process and its descendants, to the nanosecond; threads that ended count."""
    used = 0.0
    for one in family(pid):
        with contextlib.suppress(OSError):  # it ended
            used += time.clock_gettime(~one << 3 | _CPU_CLOCK_SCHED)
    return used


def machine_cpu_s() -> float:
    """Seconds of CPU that everything on this machine has used."""
    fields = pathlib.Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, *rest = map(int, fields[:8])
    return (user + nice + system + sum(rest)) / _TICKS_PER_S


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core alone, with all its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
