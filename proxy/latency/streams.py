"""Invariant: what a rank generated and computed between two moments is known from sums over time, to which
each leg adds when it begins to stream and when it ends.

The sums are kept at the moments at which they bend, older ones at fewer of them, so that a stretch of any age
can be asked for. Between two moments they are straight lines.
"""

from array import array
from bisect import bisect_right
from typing import NamedTuple

MAX_MOMENTS = 256
"""Once there are so many, every other one of the older half is forgotten."""


class Sums:
    """Two sums over time."""

    __slots__ = ("_at", "_one", "_other")

    def __init__(self) -> None:
        self._at, self._one, self._other = array("d"), array("d"), array("d")

    def __len__(self) -> int:
        return len(self._at)

    def add(self, at: float, one: float, other: float) -> None:
        """They are higher by so much at a moment than at the last, which was not later."""
        times, ones, others = self._at, self._one, self._other
        if not times:
            one = other = 0.0
        else:
            if len(times) >= MAX_MOMENTS:
                half = MAX_MOMENTS // 2
                for each in (times, ones, others):
                    each[:half] = each[:half:2]
            one += ones[-1]
            other += others[-1]
        times.append(at)
        ones.append(one)
        others.append(other)

    def until(self, at: float) -> tuple[float, float]:
        """Their values at a moment."""
        times, ones, others = self._at, self._one, self._other
        index = bisect_right(times, at)
        if index == 0:
            return 0.0, 0.0
        one, other = ones[index - 1], others[index - 1]
        if index == len(times):
            return one, other
        share = (at - times[index - 1]) / (times[index] - times[index - 1])
        return one + share * (ones[index] - one), other + share * (others[index] - other)


class Stretch(NamedTuple):
    """What a rank did between two moments."""

    sequences: float
    """For which it generated, on average."""
    context_tokens: float
    """Of all of them together, on average."""
    prefill_ms: float
    """That it spent on prompts, as is predicted."""


class Streams:
    """The streams of one rank of an engine. Moments are seconds, and come in order."""

    __slots__ = (
        "_began_with",
        "_each",
        "_foreign",
        "_grown",
        "_now",
        "_ours",
        "_prefill",
        "_since",
        "_sums",
        "computed_until",
        "step_ms",
        "transfers_at",
    )

    def __init__(self) -> None:
        self._since: float | None = None
        """When the first stream began."""
        self._now: float | None = None
        self._ours = self._foreign = 0
        """How many streams of this process run, and of others."""
        self._began_with = 0
        """The contexts with which ours began."""
        self._grown = 0.0
        """By how much these are longer by now."""
        self._each = Sums()
        """Of what a stream was believed to generate; the other is not used."""
        self._sums = Sums()
        """Of streams and of their contexts, times seconds."""
        self._prefill = Sums()
        """Of milliseconds of prefill; the other is not used."""
        self.step_ms = 1.0
        """What a step was predicted to take as the last stream began."""
        self.transfers_at = float("-inf")
        """When the next transfer is to be learned."""
        self.computed_until = float("-inf")
        """When the last prompt was computed."""

    @property
    def sequences(self) -> int:
        """How many streams run, others' included."""
        return self._ours + self._foreign

    @property
    def context_tokens(self) -> float:
        """Of all of them together, what they have generated so far included. Others' are as long as ours."""
        if not self._ours:
            return 0.0
        return (self._began_with + self._grown) * (1 + self._foreign / self._ours)

    @property
    def is_used(self) -> bool:
        """Whether there was ever a stream."""
        return self._since is not None

    def has(self, began_at: float) -> bool:
        """Whether a stream that began then is one of those that run."""
        return self._since is not None and began_at >= self._since and self._ours > 0

    def began(self, at: float, context_tokens: int, step_ms: float, sequences: int = 1) -> None:
        """A stream has brought its first token, or several streams have, with such a context each. `step_ms`:
        how long a token of each has taken since the moment before.
        """
        self.passes(at, step_ms)
        self._ours += sequences
        if self._since is None:
            self._since = at
        self._began_with += sequences * context_tokens

    def ended(
        self, at: float, context_tokens: int, began_at: float, step_ms: float, sequences: int = 1
    ) -> None:
        """A stream has ended that began then with such a context, or several have. By as much as they were
        believed to grow all are shorter.
        """
        self.passes(at, step_ms)
        self._ours -= sequences
        self._began_with -= sequences * context_tokens
        grown = self._each.until(at)[0] - self._each.until(began_at)[0]
        self._grown = max(self._grown - sequences * grown, 0.0) if self._ours else 0.0

    def foreign(self, at: float, sequences: int, step_ms: float) -> None:
        """So many streams of others run there from now on."""
        if sequences != self._foreign:
            self.passes(at, step_ms)
            self._foreign = sequences

    def passes(self, at: float, step_ms: float) -> None:
        """It is so late by now: `between` tells no more than up to here."""
        seconds = 0.0 if self._now is None else at - self._now
        if seconds > 0 or self._now is None:
            contexts = self.context_tokens
            each = seconds * 1000 / step_ms
            self._each.add(at, each, 0.0)
            self._grown += self._ours * each
            halfway = (contexts + self.context_tokens) / 2
            self._sums.add(at, (self._ours + self._foreign) * seconds, halfway * seconds)
            self._now = at

    def computed(self, began_at: float, at: float, ms: float) -> None:
        """A prompt that came at `began_at` is computed; it is predicted to take so long."""
        start = max(began_at, self.computed_until, at - ms / 1000)
        if start < at:
            self._prefill.add(start, 0.0, 0.0)
            self._prefill.add(at, (at - start) * 1000, 0.0)
            self.computed_until = at

    def quiet_since(self, at: float) -> bool:
        """Whether nothing was generated since a moment."""
        return not self.sequences and (self._now is None or self._now <= at)

    def between(self, since: float, until: float) -> Stretch:
        """What it did between two moments."""
        seconds = until - since
        if seconds <= 0:
            return Stretch(self.sequences, self.context_tokens, 0.0)
        sequences, contexts = self._sums.until(until)
        sequences_before, contexts_before = self._sums.until(since)
        return Stretch(
            (sequences - sequences_before) / seconds,
            (contexts - contexts_before) / seconds,
            self._prefill.until(until)[0] - self._prefill.until(since)[0],
        )
