"""Run a command that ends when the program that started it ends, even by SIGKILL.

    python leash.py COMMAND [ARGUMENT ...]

The kernel sends SIGTERM to the command when the thread that started it is gone, so start it from the main
thread. The command replaces this process: its pid, its output and its exit code are the caller's to see.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the starter is gone")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
