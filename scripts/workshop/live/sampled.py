"""Runs kvproxy as its command does, and tells which of its rooms the time goes to, or which call how often.

    python sampled.py samples|calls FILE ARGUMENT ...

Between SIGUSR1 and SIGUSR2 it looks, at the second it writes FILE: JSON, a number for each room. A room is a
folder of proxy/, or a library; what a function takes counts for the innermost room that it was called from.
The event loop's own time, which no Python function sees, counts for the room whose turn comes next.
"""

import functools
import json
import pathlib
import signal
import sys
from collections import Counter
from enum import StrEnum
from types import FrameType
from typing import Any

from proxy.cli.main import main as kvproxy

EVERY_S = 0.002
"""Of CPU time, between two looks; the kernel may make it a tick, 4 ms on most machines."""
LOOP = "event loop"
AIOHTTP = "aiohttp"
SHARED = "files beside the rooms"
_PROXY = pathlib.Path(sys.modules["proxy"].__file__ or "").parent
_KVEVENTS = "kvevents"
_AROUND_THE_LOOP = "cli"
"""The room whose function the event loop runs in."""
_OF_AIOHTTP = frozenset({"aiohttp", "multidict", "yarl", "propcache", "frozenlist", "aiosignal"})


class What(StrEnum):
    """What is told."""

    SAMPLES = "samples"
    """Looks that found the room at work."""
    CALLS = "calls"
    """Python functions called, and coroutines resumed."""


def command(what: What, file: pathlib.Path) -> list[str]:
    """What starts it, but for kvproxy's own arguments; `-P`, since a `proxy.py` stands beside this file."""
    return [sys.executable, "-P", __file__, what, str(file)]


@functools.cache
def room_of(file: str) -> str | None:
    """The room of a source file; None for what is none, such as Python's own library."""
    path = pathlib.Path(file)
    if path.is_relative_to(_PROXY):
        inside = path.relative_to(_PROXY).parts
        if inside[0] == _AROUND_THE_LOOP:
            return None
        return inside[0] if len(inside) > 1 else SHARED
    if path.parent.name == _KVEVENTS:
        return _KVEVENTS
    return AIOHTTP if _OF_AIOHTTP.intersection(path.parts) else None


def innermost(frame: FrameType | None) -> str:
    """The room at work."""
    while frame is not None:
        if (room := room_of(frame.f_code.co_filename)) is not None:
            return room
        frame = frame.f_back
    return LOOP


class Watcher:
    """Looks between two signals."""

    def __init__(self, what: What, file: pathlib.Path) -> None:
        self._what = what
        self._file = file
        self._found: Counter[str] = Counter()

    def listen(self) -> None:
        """Obey signals from now on."""
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)
        signal.signal(signal.SIGPROF, self._look)

    def _begin(self, _number: int, _frame: FrameType | None) -> None:
        self._found.clear()
        if self._what is What.SAMPLES:
            signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        else:
            sys.setprofile(self._called)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        self._found[innermost(frame)] += 1

    def _called(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            self._found[innermost(frame)] += 1

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.setprofile(None)
        made = self._file.with_suffix(".new")
        made.write_text(json.dumps(self._found), "utf-8")
        made.replace(self._file)


def main() -> None:
    Watcher(What(sys.argv[1]), pathlib.Path(sys.argv[2])).listen()
    kvproxy(sys.argv[3:])


if __name__ == "__main__":
    main()
