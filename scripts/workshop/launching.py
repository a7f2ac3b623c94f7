"""Launchers share these steps before their one call: options, signals, folders, seeds, the console."""

import argparse
import pathlib
import random
import shutil
import signal
import sys

from rich.console import Console

_TERMINATED = 128 + signal.SIGTERM


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the first paragraph of a launcher's docstring."""
    return argparse.ArgumentParser(description=(text or "").partition("\n\n")[0])


def end_on_sigterm() -> None:
    """Make SIGTERM an exception, so that all that was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))


def emptied(logs: pathlib.Path) -> pathlib.Path:
    """Return the folder, made anew."""
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    return logs


def seed(given: int | None) -> int:
    """Return the given seed, or a random one."""
    return random.SystemRandom().randrange(1_000_000) if given is None else given


def console(piped_width: int) -> Console:
    """Return where tables are printed: as wide as the terminal, or as said where there is none."""
    return Console(width=None if sys.stdout.isatty() else piped_width)
