"""A source that publishes nothing is asked at intervals whether it is still the process that is known.

Pure: times are passed in, in seconds of any one clock.
"""

import math

PROBE_AGAIN_S = 1.0
"""Seconds after which a source is asked that could not be asked now, because other replays have all
places."""


class ProbeClock:
    """When the source of one subscription is asked again although nothing seems to be missing."""

    def __init__(self, *, probe_s: float, settle_s: float, again_s: float = PROBE_AGAIN_S) -> None:
        """`probe_s`, `settle_s`: as of `Subscriber`. `again_s`: when a probe that was put off is due."""
        self._probe_s = probe_s
        self._settle_s = settle_s
        self._again_s = again_s
        self.due_at = 0.0
        """When to ask next."""
        self.unheard = 0
        """How many replays of this connection in a row brought batches that were never heard live."""
        self._settle_at: float | None = None  # None until a replay of this connection was complete

    def link_changed(self) -> None:
        """The handshake with a publisher succeeded, or the publisher is gone."""
        self._settle_at = None
        self.unheard = 0

    def heard_live(self, now: float, *, incomplete: bool) -> None:
        """A live batch came. It puts the next probe off, unless the source is `incomplete`."""
        self.unheard = 0
        if not incomplete:
            self.due_at = now + self._probe_s
            self._settle_at = math.inf

    def replay_ended(self, now: float, *, batches: int, complete: bool) -> bool:
        """A replay has ended. Returns whether it brought batches that should have been heard live.

        Up to the first complete replay of a connection none counts: its batches were published before the
        connection.
        """
        late = self._settle_at is not None and batches > 0
        if late:
            self.unheard += 1
        if complete and self._settle_at is None:
            self._settle_at = now + self._settle_s
        self.due_at = now + self._probe_s
        if self._settle_at is not None:
            self.due_at = min(self.due_at, self._settle_at)
        return late

    def begin_probe(self, now: float) -> bool:
        """The source is asked now. Returns whether the connection is so young that batches may be on their
        way.
        """
        self.due_at = now + self._probe_s
        settling = self._settle_at is not None and now >= self._settle_at
        if settling:
            self._settle_at = math.inf
        return settling

    def put_off(self, now: float) -> None:
        """The source cannot be asked now: ask it again soon."""
        self.due_at = now + self._again_s
