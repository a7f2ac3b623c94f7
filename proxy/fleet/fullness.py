"""A full engine gets no more legs for a moment, then one more than it had; whether it takes that one decides
how many follow.

Pure: times are passed in. An engine that answers a leg with 503 or 429 while it lives has no room for it.
That is no failure, and it shows how many legs fit: as many of ours as ran there at that moment. So a
`Fullness` is a window on the legs of one instance, as TCP's is on the bytes of a connection:

* After the engine said that it is full, a pause begins. During it a leg goes there only in place of one that
  has ended; none at all if the engine itself said when to come back (`Retry-After`).
* Then the window is one leg wider. Each leg that the engine takes widens it further, by 1, 2, 4 and so on, so
  that waiting requests do not come all at once; a leg that it refuses closes it again. The engine takes a leg
  by beginning to answer, or by not refusing it for `unrefused_s`: refusals are quick, while an answer that is
  not streamed begins only when all of it is generated.
* An engine that has taken MAX_STEP legs more has no window any longer.

Only legs that were sent and have not ended prove anything of the room. Legs that are claimed there while
their prompt is prefilled elsewhere will need room too, so they are counted; but their prefill may hang. So
while no leg tries the window, one fewer of them is counted after every `unrefused_s`, so that others can.
"""

import email.utils
import math

FULL = frozenset({429, 503})
"""The statuses with which engines, and gateways in front of them, say that they are full: vLLM answers 503
(`--max-num-queued-reqs`, `--max-num-queued-tokens`), others 429."""

PAUSE_FIRST_S = 0.1
MAX_PAUSE_S = 2.0
"""The first and the longest pause of an engine that does not say when to come back: each time in a row it is
twice as long. Room comes when any leg ends, maybe another client's, of which kvproxy hears nothing; trying
costs one leg, and for a decode engine a prefill leg, too."""

MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 5.0
"""The least and the most that a `Retry-After` counts for. Gateways name a minute where a leg ends every
second."""

UNREFUSED_S = 0.5
"""A leg that is not refused for this long after it was sent counts as taken: vLLM refuses before it looks at
the prompt."""

MAX_STEP = 32
"""An engine is no longer full once its window has grown by more than this."""

FORGOTTEN_S = 30.0
"""An engine that said it is full is no longer taken to be full after this time, if no leg has tried it and
none is claimed there: pauses are much shorter."""


class Fullness:
    """What is known of the room of one instance. Times are seconds of one monotonic clock."""

    def __init__(self, unrefused_s: float = UNREFUSED_S) -> None:
        self._unrefused_s = unrefused_s
        self.legs = 0
        """How many legs were sent there and have not ended."""
        self.sequences = 0
        """How many sequences these are for the engine, which counts each answer of a leg."""
        self.all_sequences = 0
        """How many were ever sent there."""
        self.is_known = False
        """Whether the engine has a window that may still count: a quick look for every decision."""
        self._most: int | None = None
        self._step = 1
        self._in_a_row = 0
        self._says_when = False
        self._said_at = self._until = self._quiet_at = -math.inf
        self._tried_at: float | None = None
        """When the leg that tries the window was sent; None if none does."""

    def sent(self, now: float, sequences: int = 1) -> bool:
        """A leg for so many sequences is sent to the engine. True if it tries the window: from now on the
        lapse of time may widen it.
        """
        self.legs += 1
        self.sequences += sequences
        self.all_sequences += sequences
        if self._most is None or self._tried_at is not None or now < self._until or self.legs <= self._most:
            return False
        self._tried_at = now
        return True

    def ended(self, sequences: int = 1) -> None:
        """A leg for so many sequences that was sent to the engine has ended."""
        self.legs -= 1
        self.sequences -= sequences

    def said(self, now: float, legs: int, sent_at: float, come_back_s: float | None = None) -> None:
        """The engine refused a leg that was sent at `sent_at`, while it ran `legs` others of ours.

        `come_back_s`: its `Retry-After` in seconds, None if it gave none.
        """
        if sent_at >= self._until:
            self._in_a_row += 1  # else the leg was on its way when another was refused
        if come_back_s is not None:
            self._until = now + min(max(come_back_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
            self._says_when = True
        elif now >= self._until:
            doubled = 2.0 ** min(max(0, self._in_a_row - 1), 10)
            self._until, self._says_when = now + min(MAX_PAUSE_S, PAUSE_FIRST_S * doubled), False
        self.is_known = True
        self._most, self._step, self._said_at, self._tried_at = legs, 1, now, None
        self._quiet_at = self._until

    def took(self, legs: int, sent_at: float) -> bool:
        """The engine took a leg that was sent at `sent_at`; it runs `legs` of ours, this one included.

        True if there may be room for more now.
        """
        if self._most is None or sent_at <= self._said_at:
            return False
        self._in_a_row = 0
        if legs <= self._most:
            return False
        self._most, self._step, self._tried_at = legs, self._step * 2, None
        self._quiet_at = max(self._quiet_at, sent_at)
        if self._step > MAX_STEP:
            self.forget()
        return True

    def forget(self) -> None:
        """The engine is another process, or has shown that it has room: it has no window."""
        self.is_known = False
        self._most = None
        self._step = 1
        self._in_a_row = 0
        self._said_at = self._until = self._quiet_at = -math.inf
        self._tried_at = None

    def room(self, now: float, legs: int) -> bool:
        """Whether one more leg may go there, beside `legs` of ours that are claimed there, sent or not."""
        most = self.most(now, awaited=legs > self.legs)
        if most is None:
            return True
        if now < self._until:
            return not self._says_when and legs < most
        unsent = max(0, legs - self.legs)
        return legs - min(unsent, self._uncounted(now)) < most + self._step_at(now)

    def most(self, now: float, *, awaited: bool = False) -> int | None:
        """How many of our legs the engine had room for, as far as that still counts; None for any number.

        `awaited`: whether a leg is claimed there that was not sent yet, and will try the window.
        """
        untried = self._tried_at is None and not awaited
        if (untried and now - self._said_at >= FORGOTTEN_S) or self._step_at(now) > MAX_STEP:
            return None
        return self._most

    def left_s(self, now: float) -> float:
        """How many seconds its pause still lasts; 0 if it is over."""
        return max(0.0, self._until - now)

    def widens_in_s(self, now: float, *, awaited: bool = False) -> float | None:
        """Seconds until the window is wider by the lapse of time alone; None if it will not be. `awaited`:
        see `most`.
        """
        if now < self._until:
            return self._until - now
        if self.most(now) is None:
            return None
        if self._tried_at is not None:
            return self._tried_at + (self._steps(now) + 1) * self._unrefused_s - now
        if awaited:
            return self._quiet_at + (self._uncounted(now) + 1) * self._unrefused_s - now
        return self._said_at + FORGOTTEN_S - now

    def _steps(self, now: float) -> int:
        return 0 if self._tried_at is None else max(0, int((now - self._tried_at) / self._unrefused_s))

    def _uncounted(self, now: float) -> int:
        """How many legs that are claimed there and were not sent are no longer counted."""
        return 0 if self._tried_at is not None else max(0, int((now - self._quiet_at) / self._unrefused_s))

    def _step_at(self, now: float) -> float:
        return self._step * 2.0 ** min(self._steps(now), 10)


def retry_after_s(value: str | None, wall_now: float) -> float | None:
    """The seconds that a `Retry-After` asks to wait, by its number or its date (RFC 9110, 10.2.3); None if it
    has neither. `wall_now`: seconds since 1970.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - wall_now)
    except (ValueError, TypeError, OverflowError):
        return None
