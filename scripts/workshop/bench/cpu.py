"""CPU time of a process of ours, from /proc: unlike wall time it means the same on a busy machine."""

import os
import pathlib

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, that a process with all its threads has used so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # proc(5): utime, stime


def memory_mib(pid: int) -> float:
    """Proportional memory of a process, in MiB."""
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(rollup.partition("Pss:")[2].split()[0]) / 1024
