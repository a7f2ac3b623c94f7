"""A source that publishes nothing is asked at intervals whether it is still the process that is known. Pure:
times are passed in.
"""

import math

PROBE_AGAIN_S = 1.0
"""A source that could not be asked because others have all places for replays is asked after that time."""


class ProbeClock:
    """When the source of one subscription is asked again although nothing seems to be missing."""

    def __init__(self, *, probe_s: float, settle_s: float, again_s: float = PROBE_AGAIN_S) -> None:
        """`probe_s`, `settle_s`: as `Subscriber` has them. `again_s`: when what was put off is due."""
        self._probe_s = probe_s
        self._settle_s = settle_s
        self._again_s = again_s
        self.due_at = 0.0
        """When to ask next."""
        self.unheard = 0
        """Replays of this connection in a row that brought batches which had never been heard live."""
        self._settle_at: float | None = None  # None until a replay of this connection was whole

    def link_changed(self) -> None:
        """A publisher has shaken hands, or is gone."""
        self._settle_at = None
        self.unheard = 0

    def heard_live(self, now: float, *, incomplete: bool) -> None:
        """A live batch came, which puts the next probe off unless the source is still to be completed."""
        self.unheard = 0
        if not incomplete:
            self.due_at = now + self._probe_s
            self._settle_at = math.inf

    def replay_ended(self, now: float, *, batches: int, complete: bool) -> bool:
        """Whether it brought batches that should have been heard live; those of a connection's first are no
        news.
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
        """The source is asked now. Whether the connection is so young that batches may be on their way all
        the same.
        """
        self.due_at = now + self._probe_s
        settling = self._settle_at is not None and now >= self._settle_at
        if settling:
            self._settle_at = math.inf
        return settling

    def put_off(self, now: float) -> None:
        """The source cannot be asked now; try again soon."""
        self.due_at = now + self._again_s
