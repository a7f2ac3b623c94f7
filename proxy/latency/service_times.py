"""Invariant: a time is told only if the engine worked during all of it, on nothing but what is told with it.

A leg's own duration is no such time: it may have waited for others. What an engine took is the spacing of
departures, from the later of a leg's arrival and the end before it. Three things are put right:

* Legs that end within one step were computed together: their tokens are summed.
* A step that is full takes the first tokens of the leg behind, so the spacing of the two ends tells too much
  of the first and too little of the second. Such legs are summed as well, to MAX_CHUNKS full steps.
* A leg that found the engine idle shows what lies before the engine's work too: HTTP, tokenizing. For others
  that passed while they waited. Where an engine tells when it began (`time_to_first_token_ms` of vLLM's
  `--enable-per-request-metrics`, which counts from there), that is taken instead of the arrival.

What nobody knows to have been computed makes a time worthless: a leg that failed or was left, a prompt of
unknown tokens. Times that overlap such work are dropped. Beside requests of other routers a time may have had
some of their work in it: it is told as shared.
"""

import msgspec

MAX_CHUNKS = 4
"""Full steps after which legs are no longer summed: what the last step takes of the leg behind is then an
eighth of all on average, and the next sum lacks it."""

USUAL_CHUNK_TOKENS = 8192
"""Full steps are counted as at least so large: an engine's may be larger than is believed."""

MAX_SUMMED = 16
"""Legs that are summed at most."""

MAX_OVERHEAD_MS = 50.0
"""A leg that came earlier than this before the end of another found the engine at work, whatever is believed
of the overhead."""

MAX_SCRAPE_GAP_S = 5.0
"""How long before and after a reading of an engine's gauges foreign requests are supposed to have run."""


class Leg(msgspec.Struct, frozen=True):
    """A leg that prefilled, or was to."""

    began_at: float
    """In seconds of any clock, the same for all legs; as `ended_at`."""
    ended_at: float
    """When the answer of a prefill leg, or the first token of another, was there."""
    uncached_tokens: int | None
    """What was computed of the prompt; None if nobody knows."""
    prompt_tokens: int
    served: bool = True
    """Whether all of it was computed."""
    first_token_ms: float | None = None
    """From the step that began it to its first token, by the engine."""
    beside_ms: float = 0.0
    """What each of its steps took longer for the streams that the engine generated for meanwhile."""


class Served(msgspec.Struct, frozen=True):
    """What an engine did, and how long it took."""

    ms: float
    uncached_tokens: int
    attended: float
    """The sum of u * (2n - u) / 2 of the legs, for u uncached of n tokens."""
    idle: bool
    """Whether the engine was idle before: a leg's overhead is in the time then."""
    whole: bool = True
    """Whether no more and no less was done in the time; False if it was cut where legs may have shared a
    step."""
    shared: bool = False
    """Whether others' requests were there, whose prompts may have been computed meanwhile."""
    beside_ms: float = 0.0
    """As of the legs, on average. If the engine was idle but for streams, half of such a step is in the time
    once more: a leg waits for the end of the one under way."""


class _Ended:
    """Legs that ended in one step, or in several that are told together."""

    __slots__ = (
        "attended",
        "began_at",
        "beside",
        "ended_at",
        "idle",
        "legs",
        "shared",
        "start",
        "tokens",
        "told",
        "whole",
    )

    def __init__(self, began_at: float, *, idle: bool) -> None:
        self.began_at = self.ended_at = began_at
        self.idle = idle
        self.start = float("inf")
        """When the first of them came, or was begun if that is told of all."""
        self.told = True
        self.whole = True
        self.shared = False
        self.legs = self.tokens = 0
        self.attended = 0.0
        self.beside = 0.0
        """The sum of its legs' `beside_ms`."""

    def add(self, leg: Leg, uncached: int, start: float, *, told: bool) -> None:
        self.ended_at = max(self.ended_at, leg.ended_at)
        self.start = min(self.start, start)
        self.told &= told
        self.legs += 1
        self.tokens += uncached
        self.attended += uncached * (2 * leg.prompt_tokens - uncached) / 2
        self.beside += leg.beside_ms

    def append(self, later: "_Ended") -> None:
        self.ended_at = later.ended_at
        self.shared |= later.shared
        self.legs += later.legs
        self.tokens += later.tokens
        self.attended += later.attended
        self.beside += later.beside


class ServiceTimes:
    """Of one engine: legs in the order of their ends become what the engine took."""

    def __init__(self, chunk_tokens: int) -> None:
        """`chunk_tokens`: as many tokens fill a step."""
        self._chunk_tokens = chunk_tokens
        self._max_tokens = MAX_CHUNKS * max(chunk_tokens, USUAL_CHUNK_TOKENS)
        self._before: _Ended | None = None
        self._step: _Ended | None = None
        """The legs of the last step. What they shared with those before is known when all have ended."""
        self._last_end = float("-inf")
        self._unknown_until = self._foreign_until = float("-inf")
        self._scraped_at: float | None = None

    def ended(
        self, leg: Leg, *, step_ms: float, overhead_ms: float, others: int | None = None
    ) -> list[Served]:
        """What is known now that a leg has ended. A time may be told only with the ends of later legs.

        `step_ms`: ends closer to each other are of one step. `overhead_ms`: as it is believed to be.
        `others`: how many other legs run on this engine now, if known; if none, nothing is waited for.
        """
        uncached, prompt = leg.uncached_tokens, leg.prompt_tokens
        if not leg.served or uncached is None or not 0 <= uncached <= prompt or leg.ended_at < leg.began_at:
            self.unknown(leg.began_at, leg.ended_at)
            return []
        told = leg.first_token_ms is not None and leg.first_token_ms > 0
        start = max(leg.began_at, leg.ended_at - (leg.first_token_ms or 0) / 1000) if told else leg.began_at
        found: list[Served] = []
        step = self._step
        if step is not None and start < step.ended_at and leg.ended_at - step.ended_at <= step_ms / 1000:
            step.add(leg, uncached, start, told=told)
        else:
            found += self._close(step_ms / 1000)
            # It ends when it would have on an idle engine, or its own work after the end before it.
            idle = not told and start + min(overhead_ms, MAX_OVERHEAD_MS) / 1000 > self._last_end
            began_at = start if idle else max(start, self._last_end)
            if began_at >= self._unknown_until:
                self._step = _Ended(began_at, idle=idle)
                self._step.shared = began_at < self._foreign_until
                self._step.add(leg, uncached, start, told=told)
        self._last_end = max(self._last_end, leg.ended_at)
        if others == 0:
            found += self._close(step_ms / 1000)
            found += self._tell()
        return found

    def _close(self, step_s: float) -> list[Served]:
        """The last step is over: its legs are told with those before, or those before are told."""
        before, step, self._step = self._before, self._step, None
        if step is None:
            return self._tell()
        if before is not None and self._shared(before, step, step_s):
            if before.tokens < self._max_tokens and before.legs < MAX_SUMMED:
                before.append(step)
                return []
            before.whole = step.whole = False
        found = self._tell()
        self._before = step
        return found

    def _shared(self, before: _Ended, step: _Ended, step_s: float) -> bool:
        """Whether some of a step may have been computed in the one before."""
        if step.told:
            return step.start < before.ended_at - step_s
        return step.start < before.ended_at and before.tokens + step.tokens > self._chunk_tokens

    def _tell(self) -> list[Served]:
        group, self._before = self._before, None
        if group is None or group.ended_at <= group.began_at:
            return []
        ms = (group.ended_at - group.began_at) * 1000
        beside_ms = group.beside / group.legs
        return [Served(ms, group.tokens, group.attended, group.idle, group.whole, group.shared, beside_ms)]

    def unknown(self, began_at: float, until: float) -> None:
        """The engine may have worked between these times on what nobody knows."""
        self._drop(began_at, until)
        self._unknown_until = max(self._unknown_until, until)

    def gauges(self, at: float, *, requests: int, own: int) -> None:
        """What an engine told at a time: `requests` run or wait there, `own` of them are of this router.

        `own` MUST count every leg that was there at any moment of the question.
        """
        gap = (
            MAX_SCRAPE_GAP_S
            if self._scraped_at is None
            else min(max(at - self._scraped_at, 0.0), MAX_SCRAPE_GAP_S)
        )
        self._scraped_at = at
        if requests > own:
            for ended in (self._before, self._step):
                if ended is not None and _overlaps(ended, at - gap, at):
                    ended.shared = True
            self._foreign_until = at + 2 * gap
        else:
            self._foreign_until = min(self._foreign_until, at)

    def _drop(self, began_at: float, until: float) -> None:
        before, step = self._before, self._step
        if step is not None and _overlaps(step, began_at, until):
            self._step = None
            if before is not None and step.start < before.ended_at:  # which may have some of its work
                self._before = None
        if before is not None and _overlaps(before, began_at, until):
            self._before = None


def _overlaps(ended: _Ended, began_at: float, until: float) -> bool:
    return ended.ended_at > began_at and ended.began_at < until
