"""A rank is believed until its index has promised too much a few times; it is then built anew, ever more
patiently.

Pure: one state machine for each rank, told of every hit (a leg for which the index had promised cached
blocks) and of what became of the index. It says when to rebuild, never how.
"""

import enum
from collections import deque

WINDOW_HITS = 16
"""How many hits are looked back on, and how many a rank has to show after a rebuild."""

MISSES_TO_DISTRUST = 3
"""Of the last `WINDOW_HITS`. One can be an eviction whose event came late, and on a starved machine two; a
rank that promises too much for every fifth prompt draws prompts away from where they are cached."""

SUSTAINED_HITS = 64
"""After so many hits without a promise too much a rebuild is taken to have helped: four windows, so that an
index that goes wrong in one hit of twenty does not begin anew each time."""

REBUILD_FIRST_S = 30.0
"""From one rebuild that did not help to the next; then twice as long, and so on."""

MAX_REBUILD_S = 3600.0
"""A replay of a full buffer (10 000 batches) an hour is nothing; and whatever is wrong may have been
repaired."""


class Step(enum.StrEnum):
    """What to do about a rank, or to say of it."""

    LOST = "lost"
    """It is not trusted any more."""
    REPLAY = "replay"
    """Forget what is known of it and have its batches replayed."""
    START_OVER = "start over"
    """Forget what is known of it and go on from its next batch: the replay has led to a wrong index
    before."""
    REGAINED = "regained"
    """It is trusted again."""


class Trust:
    """Whether one rank's index is believed. Times are seconds of any one monotonic clock."""

    def __init__(self, rebuild_first_s: float = REBUILD_FIRST_S) -> None:
        """`rebuild_first_s`: from the first rebuild that did not help to the second."""
        self._rebuild_first_s = rebuild_first_s
        self.trusted = True
        """Whether prompts may be placed by what the index says of this rank."""
        self._recent: deque[bool] = deque(maxlen=WINDOW_HITS)
        self._right = 0  # hits since the last promise too much
        self._on_trial = 0  # hits that a rebuilt index has still to show
        self._rebuilds = 0  # since all was well
        self._last_rebuild_at = 0.0
        self._due_at: float | None = None
        self._asked = False  # for a rebuild that has not shown yet
        self._forgotten: int | None = None  # how often the index of this rank had been at the last look

    @property
    def misses(self) -> int:
        """Promises too much among the last `WINDOW_HITS` hits."""
        return sum(self._recent)

    def rebuild_in_s(self, now: float) -> float | None:
        """How long until the next rebuild is due; None if none is."""
        return None if self._due_at is None else max(0.0, self._due_at - now)

    @property
    def _pause_s(self) -> float:
        """From the last rebuild to the next."""
        if not self._rebuilds:
            return 0.0
        return min(MAX_REBUILD_S, self._rebuild_first_s * 2.0 ** min(self._rebuilds - 1, 16))

    def hit(self, now: float, *, promised_too_much: bool) -> Step | None:
        """The engine has reported on a leg for which the index had promised something."""
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
        """What is due now. `forgotten`: how often all of this rank was; `known`: its source is not in
        doubt.
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
        """It was built anew: as we asked, or because its engine was replaced, and then nothing is held
        against it.
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
