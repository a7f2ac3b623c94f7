"""Runs kvproxy as its command does, with a pulse on its event loop that measures the loop's longest pause.

    python watched.py FILE ARGUMENT ...

FILE holds one double, the worst pause in seconds since 0.0 was last written there. Time in which the loop's
thread was ready to run and got no CPU is left out: that is the machine's, not kvproxy's.
"""

import asyncio
import mmap
import os
import pathlib
import struct
import sys
import threading
import time

import uvloop

from proxy.cli.main import main as kvproxy

BEAT_S = 0.002
PAUSE = struct.Struct("d")


def command(file: pathlib.Path) -> list[str]:
    """What starts it, but for kvproxy's own arguments; `-P`, since a `proxy.py` stands beside this file."""
    file.write_bytes(PAUSE.pack(0.0))
    return [sys.executable, "-P", __file__, str(file)]


def worst_pause_s(file: pathlib.Path) -> float:
    """Since `forget`."""
    (seconds,) = PAUSE.unpack(file.read_bytes())
    return float(seconds)


def forget(file: pathlib.Path) -> None:
    """Begin anew."""
    with file.open("r+b") as opened:
        opened.write(PAUSE.pack(0.0))


class Pulse:
    """Beats on a loop and notes the longest gap between two beats."""

    def __init__(self, file: pathlib.Path) -> None:
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), PAUSE.size)
        # proc(5): time on a CPU, time waiting for one, in nanoseconds
        self._schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._due = self._waited = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due, self._waited = time.monotonic() + BEAT_S, self._wait_for_cpu_s()
        loop.call_later(BEAT_S, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        waited = self._wait_for_cpu_s()
        pause = time.monotonic() - self._due - (waited - self._waited)
        if pause > PAUSE.unpack_from(self._shared)[0]:
            PAUSE.pack_into(self._shared, 0, pause)
        self._due, self._waited = time.monotonic() + BEAT_S, waited
        loop.call_later(BEAT_S, self._beat, loop)

    def _wait_for_cpu_s(self) -> float:
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9


def main() -> None:
    pulse = Pulse(pathlib.Path(sys.argv[1]))
    new_loop = uvloop.new_event_loop

    def watched_loop() -> uvloop.Loop:
        loop = new_loop()
        loop.call_soon(pulse.start, loop)
        return loop

    uvloop.new_event_loop = watched_loop
    kvproxy(sys.argv[2:])


if __name__ == "__main__":
    main()
