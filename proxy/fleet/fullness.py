"""A full engine is left alone for a moment, then given one leg more than it had; what it takes decides how
many follow.

Pure: times are passed in. An engine that answers a leg with 503 or 429 while it lives has no room for it.
That says nothing against it, and something for whoever waits: so many of our legs it had at that moment, and
one more was too much. So one `Fullness` is a window on the legs of one instance, as TCP's is on the bytes of
a connection:

* For a moment after it said so it gets a leg only in place of one that has ended; none at all if it said
  itself when to come back.
* Then one leg more. Each that it takes makes the window wider, by 1, 2, 4 and so on, so that those who wait
  do not come all at once; one that it does not take closes it again. It takes a leg by beginning to answer,
  or by not refusing it for a while: refusing is quick, and answers that are not streamed begin when all is
  generated.
* An engine that has taken all for a while has no window.

What it had, and what it took, are legs that were sent and have not ended: those that are meant for it and are
still prefilled elsewhere prove nothing of its room. They do take of it, but their prefill may hang: while
none tries the window, every `unrefused_s` one of them less is counted, so that others get a chance to.
"""

import email.utils
import math

FULL = frozenset({429, 503})
"""The statuses by which engines, and gateways before them, say so: vLLM answers 503 (`--max-num-queued-reqs`,
`--max-num-queued-tokens`), others 429."""

PAUSE_FIRST_S = 0.1
MAX_PAUSE_S = 2.0
"""How long the moment is of an engine that does not say when to come back: twice as long each time in a row.
Room comes when a leg ends, which may be other clients' and is not told; asking again costs one leg, of a
decode engine a prefill leg, too."""

MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 5.0
"""What a `Retry-After` is taken for at least and at most. Gateways name a minute where a leg ends every
second."""

UNREFUSED_S = 0.5
"""So long after it was sent a leg counts as taken: vLLM refuses before it looks at the prompt."""

MAX_STEP = 32
"""An engine that has taken so many more legs than it had when it was full is not full any more."""

FORGOTTEN_S = 30.0
"""So long after it last said so, too, if none tried it: moments are shorter. One that is prefilled all the
while will."""


class Fullness:
    """What one instance has said of its room. Times are seconds of any one monotonic clock."""

    def __init__(self, unrefused_s: float = UNREFUSED_S) -> None:
        self._unrefused_s = unrefused_s
        self.legs = 0
        """Legs that were sent there and have not ended."""
        self._most: int | None = None
        self._step = 1
        self._in_a_row = 0
        self._told = False
        self._said_at = self._until = self._quiet_at = -math.inf
        self._tried_at: float | None = None
        """When the first leg more was sent, of those it has not answered."""

    def sent(self, now: float) -> bool:
        """A leg is sent to it. Tells whether the lapse of time means something from now on: it is more than
        it had.
        """
        self.legs += 1
        if self._most is None or self._tried_at is not None or now < self._until or self.legs <= self._most:
            return False
        self._tried_at = now
        return True

    def ended(self) -> None:
        """A leg that was sent to it has ended."""
        self.legs -= 1

    def said(self, now: float, legs: int, sent_at: float, told_s: float | None = None) -> None:
        """It had no room for a leg sent at `sent_at`, beside `legs` others of ours. `told_s`: its
        `Retry-After`.
        """
        if sent_at >= self._until:
            self._in_a_row += 1  # else it was on its way when another was refused
        if told_s is not None:
            self._until, self._told = now + min(max(told_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S), True
        elif now >= self._until:
            doubled = 2.0 ** min(max(0, self._in_a_row - 1), 10)
            self._until, self._told = now + min(MAX_PAUSE_S, PAUSE_FIRST_S * doubled), False
        self._most, self._step, self._said_at, self._tried_at = legs, 1, now, None
        self._quiet_at = self._until

    def took(self, legs: int, sent_at: float) -> bool:
        """It has begun to answer a leg sent at `sent_at`; `legs` of ours are there, this one included.

        Tells whether there may be room for more now.
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

    @property
    def is_known(self) -> bool:
        """Whether it has said anything that may still count: a quick look for every decision."""
        return self._most is not None

    def forget(self) -> None:
        """It is another process, or has shown that it has room."""
        self._most = None
        self._step = 1
        self._in_a_row = 0
        self._said_at = self._until = self._quiet_at = -math.inf
        self._tried_at = None

    def room(self, now: float, legs: int) -> bool:
        """Whether one more leg may go there, beside `legs` of ours that were sent or are meant for it."""
        most = self.most(now, awaited=legs > self.legs)
        if most is None:
            return True
        if now < self._until:
            return not self._told and legs < most
        unsent = max(0, legs - self.legs)
        return legs - min(unsent, self._uncounted(now)) < most + self._step_at(now)

    def most(self, now: float, *, awaited: bool = False) -> int | None:
        """How many of our legs it had room for, as far as is known; None: for any number.

        `awaited`: one that will try it is meant for it and was not sent yet.
        """
        untried = self._tried_at is None and not awaited
        if (untried and now - self._said_at >= FORGOTTEN_S) or self._step_at(now) > MAX_STEP:
            return None
        return self._most

    def left_s(self, now: float) -> float:
        """How long the moment still lasts; 0 if it is over."""
        return max(0.0, self._until - now)

    def widens_in_s(self, now: float, *, awaited: bool = False) -> float | None:
        """How long until there may be more room, if nothing happens; None if there will not be. `awaited` as
        in `most`.
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
        """How many legs that are meant for it and were not sent do not count any more."""
        return 0 if self._tried_at is not None else max(0, int((now - self._quiet_at) / self._unrefused_s))

    def _step_at(self, now: float) -> float:
        return self._step * 2.0 ** min(self._steps(now), 10)


def retry_after_s(value: str | None, wall_now: float) -> float | None:
    """The seconds a `Retry-After` asks to wait: it has a number, or a date (RFC 9110 10.2.3). None if it has
    neither.
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
