"""A subscription has at most one replay, which runs only while it holds one of the places of `Turns`, and
ends.
"""

import asyncio
import time

from kvevents.turns import Turns
from kvevents.wire import Wire

_PLACE_S = 3600.0
"""Seconds for which a replay waits for a place; then it counts as unanswered."""


class Replay:
    """The replay of one subscription: wanted, then running, then ended. Times are those of
    `time.monotonic`.
    """

    def __init__(
        self, wire: Wire, turns: Turns, wake: asyncio.Event, *, quiet_s: float, limit_s: float
    ) -> None:
        """`wake` is set when a place has become free. `quiet_s`, `limit_s`: as of `Subscriber`."""
        self._wire = wire
        self._turns = turns
        self._wake = wake
        self._quiet_s = quiet_s
        self._limit_s = limit_s
        self._wanted: int | None = None
        self._has_place = False
        self._quiet_at = 0.0
        self._limit_at = 0.0

    @property
    def ends_at(self) -> float:
        """When the replay is over if nothing more comes."""
        return min(self._quiet_at, self._limit_at)

    def want(self, start: int) -> None:
        """End the replay that runs, and ask for all batches from number `start` on as soon as there is a
        place.
        """
        self.stop()
        self._wanted = start
        self._quiet_at = self._limit_at = time.monotonic() + _PLACE_S
        self.begin()

    def begin(self) -> None:
        """Ask the engine now, if a replay is wanted and there is a place."""
        if self._wanted is not None and self._turns.begin_replay(self._wake):
            start, self._wanted, self._has_place = self._wanted, None, True
            now = time.monotonic()
            self._quiet_at, self._limit_at = now + self._quiet_s, now + self._limit_s
            self._wire.ask_replay(start)

    def next(self) -> list[bytes] | None:
        """The frames of the replay's next message; None if none has arrived."""
        frames = self._wire.next_replayed()
        if frames is not None:
            self._quiet_at = time.monotonic() + self._quiet_s
        return frames

    def is_over(self, now: float) -> bool:
        """Whether the replay has lasted too long, or nothing has come for too long."""
        return now >= self._limit_at or (now >= self._quiet_at and not self._wire.replay_is_ready())

    def stop(self) -> None:
        """End the replay, and give its place back."""
        self._wire.stop_replay()
        if self._wanted is not None:
            self._wanted = None
            self._turns.leave(self._wake)
        if self._has_place:
            self._has_place = False
            self._turns.end_replay()
