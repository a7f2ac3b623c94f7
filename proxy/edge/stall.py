"""A client that takes nothing of its answer is cut; one that reads slowly is waited for.

What a client does not read takes no memory here: while more than aiohttp's high-water mark is unsent, no more
is read from the engine. But the engine's work, the claim on it, and a whole unstreamed answer would be held
for as long as the client likes.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

log = logging.getLogger(__name__)

LOOKS = 4
"""How often within `stall_s` the progress of an answer is checked."""


class StallWatch:
    """Watches one answer while it is written, as a context manager; aborts the connection if the client takes
    nothing of it for `stall_s` seconds.
    """

    def __init__(self, request: web.Request, stall_s: float, stalled: Callable[[], None]) -> None:
        """`stalled` is called as the connection is aborted."""
        self._transport = request.transport
        self._writer = request.writer
        self._stalled = stalled
        self._pause_s = stall_s / LOOKS
        self._taken_bytes = 0
        self._still = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        waiting_bytes = transport.get_write_buffer_size()
        taken_bytes = self._writer.output_size - waiting_bytes
        moved = taken_bytes != self._taken_bytes or not waiting_bytes
        self._taken_bytes = taken_bytes
        self._still = 0 if moved else self._still + 1
        if self._still >= LOOKS:
            log.warning("a client took nothing of its answer for %g s: cut", self._pause_s * LOOKS)
            self._stalled()
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._look)
