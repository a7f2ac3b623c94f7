"""A rank is trusted until its index has promised too much a few times; then it is built anew, at growing
intervals.

Pure: there is one state machine for each rank. It gets every hit (a leg for which the index had promised
cached blocks) and how often the index of the rank was forgotten. It says when to rebuild, never how.
"""

import enum
from collections import deque

WINDOW_HITS = 16
"""The number of latest hits that count, and of hits that a rank has to show after a rebuild."""

MISSES_TO_DISTRUST = 3
"""The number of misses among the last `WINDOW_HITS` hits that ends the trust.

One can be an eviction whose event came late, and on a starved machine two. A rank that promises too much for
every fifth prompt draws prompts away from where they are cached."""

SUSTAINED_HITS = 64
"""The number of hits in a row without a promise too much after which a rebuild counts as a success.

It is four windows, so that an index that is wrong in one hit of twenty does not begin anew each time."""

REBUILD_FIRST_S = 30.0
"""Seconds between the first rebuild that did not help and the next; each further pause is twice as long."""

MAX_REBUILD_S = 3600.0
"""The longest pause in seconds: one replay of a full buffer (10 000 batches) an hour costs nothing, and what
was wrong may have been repaired meanwhile."""


class Step(enum.StrEnum):
    """What to do about a rank, or to say about it."""

    LOST = "lost"
    """The rank is not trusted any more."""
    REPLAY = "replay"
    """Forget what is known of the rank, and have its batches replayed."""
    START_OVER = "start over"
    """Forget what is known of the rank, and begin with its next batch: a replay has led to a wrong index
    before."""
    REGAINED = "regained"
    """The rank is trusted again."""


class Trust:
    """Whether one rank's index is trusted. Times are seconds of any one monotonic clock."""

    def __init__(self, rebuild_first_s: float = REBUILD_FIRST_S) -> None:
        """`rebuild_first_s`: seconds from the first rebuild that did not help to the second."""
        self._rebuild_first_s = rebuild_first_s
        self.trusted = True
        """Whether prompts may be placed by what the index says of this rank."""
        self._recent: deque[bool] = deque(maxlen=WINDOW_HITS)
        self._right = 0  # hits in a row without a promise too much
        self._on_trial = 0  # hits that the index still has to show after a rebuild
        self._rebuilds = 0  # rebuilds since the last success
        self._last_rebuild_at = 0.0
        self._due_at: float | None = None
        self._asked = False  # a rebuild was asked for and has not begun
        self._forgotten: int | None = None  # `forgotten` at the last look

    @property
    def misses(self) -> int:
        """The number of misses among the last `WINDOW_HITS` hits."""
        return sum(self._recent)

    def rebuild_in_s(self, now: float) -> float | None:
        """Seconds until the next rebuild is due; None if none is."""
        return None if self._due_at is None else max(0.0, self._due_at - now)

    @property
    def _pause_s(self) -> float:
        """Seconds from the last rebuild to the next."""
        if not self._rebuilds:
            return 0.0
        return min(MAX_REBUILD_S, self._rebuild_first_s * 2.0 ** min(self._rebuilds - 1, 16))

    def hit(self, now: float, *, promised_too_much: bool) -> Step | None:
        """The engine has reported on a leg for which the index had promised cached blocks."""
        self._recent.append(promised_too_much)
        if not promised_too_much:
            return self._was_right()
        self._right = 0
        if not self.trusted or (not self._on_trial and self.misses < MISSES_TO_DISTRUST):
            return None
        self.trusted = False
        self._on_trial = 0
        self._due_at = max(now, self._last_rebuild_at + self._pause_s) if self._rebuilds else now
        return Step.LOST

    def _was_right(self) -> Step | None:
        self._right += 1
        self._on_trial = max(0, self._on_trial - 1)
        if self._right >= SUSTAINED_HITS:
            self._rebuilds = 0
        return self._regain() if not self.trusted and self._right >= WINDOW_HITS else None

    def look(self, now: float, *, forgotten: int, known: bool) -> Step | None:
        """What is due now. `forgotten`: how often all blocks of this rank were forgotten; `known`: its source
        is not in doubt.
        """
        if self._forgotten is None:
            self._forgotten = forgotten
        if self._forgotten != forgotten:
            return self._was_forgotten(forgotten) if known else None
        if self._due_at is None or now < self._due_at:
            return None
        self._rebuilds += 1
        self._last_rebuild_at = now
        self._due_at = now + self._pause_s
        self._asked = True
        return Step.REPLAY if self._rebuilds == 1 else Step.START_OVER

    def _was_forgotten(self, forgotten: int) -> Step | None:
        """The rank is built anew: because of a `Step`, or because its engine was replaced, which does not
        count against it.
        """
        self._forgotten = forgotten
        self._on_trial = WINDOW_HITS if self._asked else 0
        if not self._asked:
            self._rebuilds = 0
        self._asked = False
        self._recent.clear()
        return None if self.trusted else self._regain()

    def _regain(self) -> Step:
        self.trusted = True
        self._recent.clear()
        self._due_at = None
        return Step.REGAINED
