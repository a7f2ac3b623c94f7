"""A program of ours runs in a session of its own; ending it signals that session's group and nothing else.

vLLM has child processes, so a signal to one pid is not enough; and the machine runs other people's
programs, so nothing is ever looked up by name.
"""

import collections
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

_LEASH = pathlib.Path(__file__).with_name("leash.py")


class OwnedProcess:
    """One program, its log file and its end.

    Start it from the main thread: it is ended by the kernel when the starting thread is gone (leash.py).
    """

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(_LEASH), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        self._group_gone = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program alone, not to its children."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the program's own end; subprocess.TimeoutExpired if it does not come."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the program and all its children at once, as a crash of the machine would."""
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._group_gone = True

    def stop(self, grace_s: float = 10) -> None:
        """Ask the program to end; after `grace_s` seconds end it and what is left of its children."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self.kill()

    def tail(self, lines: int = 15) -> str:
        return tail(self.log, lines)

    def _signal_group(self, number: signal.Signals) -> None:
        if not self._group_gone:  # its number may be another program's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def stop_all(processes: Sequence[OwnedProcess], grace_s: float = 10) -> None:
    """Stop several programs in the time that one takes."""
    for process in processes:
        process.send(signal.SIGTERM)
    end = time.monotonic() + grace_s
    for process in processes:
        process.stop(max(0.0, end - time.monotonic()))


def tail(log: pathlib.Path, lines: int = 15) -> str:
    """Return the last lines of a log, indented, or a word on why there are none."""
    try:
        with log.open(encoding="utf-8", errors="replace") as text:
            last = collections.deque(text, lines)
    except OSError as error:
        return f"    ({error.strerror})"
    return "".join(f"    {line.rstrip()}\n" for line in last).rstrip() or "    (empty)"
