"""Large bodies are freed one at a time, with turns of the event loop between them, so that many that end at
once stop nothing.

Giving the memory of one back takes the system some milliseconds, in which nothing else runs.
"""

import asyncio

LARGE_BYTES = 1 << 20
"""Smaller bodies are freed at once."""

EVERY_S = 0.01


class Discarding:
    """Holds large bodies a moment longer, so that they are not all freed at once."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        """`every_s`: seconds between two that are freed."""
        self._every_s = every_s
        self._waiting: list[bytearray] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, data: bytearray) -> None:
        """Free a body soon. The caller should keep no other reference to it for long."""
        if len(data) < LARGE_BYTES:
            return
        self._waiting.append(data)
        if len(self._waiting) == 1:
            self._wait()

    def _wait(self) -> None:
        asyncio.get_running_loop().call_later(self._every_s, self._let_go)

    def _let_go(self) -> None:
        self._waiting.pop()
        if self._waiting:
            self._wait()
