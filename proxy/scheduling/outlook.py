"""What runs on a rank is turned into milliseconds in one place, for a policy that reads them.

Own claims are known exactly. Of what other routers send an engine's gauges tell the number of requests alone:
each of these counts as one of ours does on average, those that wait as of the last reading, and those that
are generated for as of the last ones on average.
"""

from typing import NamedTuple, Self

import msgspec

from proxy.fleet.gauges import Gauges
from proxy.latency.model import LatencyModel
from proxy.scheduling.standing import Rank
from proxy.scheduling.types import Candidate

USUAL_SHARE = 0.02
"""What a request changes of the average of all: the last fifty or so count."""

QUIET_KV_USE = 0.25
"""A cache with a smaller share in use does not fill within the second until its engine tells of it again."""

MAX_GAUGES_AGE_S = 10.0
"""Gauges that are older say nothing any more."""

USUALLY_THERE_S = 16.0
"""How long it is looked back for how many requests of others are usually there. A single reading tells what
is over before an answer is, and of contexts, which differ by far, no more than their number. Where two
kvproxies share 8 instances that do both (a trace of chats, three times its arrivals) it cost a twentieth of
the time to the first token; what is usual costs none, and where another router knows three of the eight only,
first tokens come a tenth sooner by it than without any gauges."""

FEW = 0.1
"""Fewer requests of others than this are none."""


class Ahead(msgspec.Struct, frozen=True, gc=False):
    """What a rank is predicted to have before it."""

    wait_ms: float
    """As `Candidate.wait_ms`, and so on."""
    sequences: float
    context_tokens: float
    kv_use: float


NOTHING_AHEAD = Ahead(0.0, 0.0, 0.0, 0.0)


class _Told(NamedTuple):
    """What an engine's gauges say of one of its ranks."""

    gauges: Gauges
    foreign: float
    """Requests of others, as many as usual."""
    waiting: float
    """Those of them that wait now."""
    context_tokens: float
    """The contexts of our answers there then."""
    quiet: bool
    """Whether they tell of nobody else, and of a cache that is far from full."""

    @classmethod
    def of(cls, gauges: Gauges, ranks: int, context_tokens: float, before: Self | None) -> Self:
        """What gauges say that are seen for the first time; `before`: what the last ones said."""
        now = gauges.foreign / ranks
        waiting = min(now, gauges.waiting / ranks)
        foreign = now
        if before is not None:
            passed_s = gauges.at - before.gauges.at
            foreign = before.foreign + min(passed_s / USUALLY_THERE_S, 1.0) * (now - before.foreign)
            if not now and foreign < FEW:
                foreign = 0.0
        quiet = not foreign and gauges.kv_use < QUIET_KV_USE
        return cls(gauges, foreign, waiting, context_tokens, quiet)


class Outlook:
    """Predicts; there is one for the process, if any."""

    def __init__(self, latency: LatencyModel) -> None:
        self.latency = latency
        self._told: dict[tuple[str, int], _Told] = {}
        """Of each rank what its engine told last."""
        self._claims = 0
        self._usual_work_ms = 0.0
        self._usual_context_tokens = 0.0

    def of(self, rank: Rank, now: float) -> Ahead:
        """What a rank has before it."""
        work, gauges = rank.load.work, rank.instance.gauges
        context, streams = 0.0, work.streams
        if streams:
            context = work.prompt_tokens
            step_ms = self.latency.step_ms(rank.address, streams, context)
            context += 1000 * work.generated_s(now) / step_ms
        wait_ms = work.wait_ms(now)
        if gauges is None:
            return Ahead(wait_ms, streams, context, 0.0)
        told = self._told.get(rank.at)
        if told is None or told.gauges is not gauges:
            told = self._told[rank.at] = _Told.of(gauges, len(rank.instance.ranks), context, told)
        if told.quiet:
            return Ahead(wait_ms, streams, context, 0.0)
        if now - gauges.at > MAX_GAUGES_AGE_S:
            return Ahead(wait_ms, streams, context, 0.0)
        theirs_tokens = told.foreign * self._usual_context_tokens
        kv_use = gauges.kv_use
        if (then := told.context_tokens + theirs_tokens) > 0:
            kv_use = min(kv_use * (context + theirs_tokens) / then, 1.0)
        theirs_ms = told.waiting * self._usual_work_ms - 1000 * (now - gauges.at)
        return Ahead(
            wait_ms + theirs_ms if theirs_ms > 0 else wait_ms,
            streams + told.foreign,
            context + theirs_tokens,
            kv_use,
        )

    def slot_ms(self, rank: Rank, adapter: str, now: float) -> float:
        """How long a leg that generates for an adapter waits until the engine has a slot for it; 0 if the
        engine has not told how many it has.
        """
        gauges = rank.instance.gauges
        if gauges is None or not gauges.adapter_slots:
            return 0.0
        strangers = gauges.foreign and now - gauges.at <= MAX_GAUGES_AGE_S
        others = gauges.adapters if strangers else ()
        return rank.load.adapters.wait_ms(adapter, gauges.adapter_slots, others)

    def forget(self, instance: str) -> None:
        """An instance has lost its cache or left: what its engine told says nothing any more."""
        for at in [at for at in self._told if at[0] == instance]:
            del self._told[at]

    def claimed(
        self, candidate: Candidate, uncached_tokens: float, prompt_tokens: float, *, generates: bool
    ) -> float:
        """A request was let in, and its prompt goes to a candidate: how long it is computed there, in
        milliseconds, with the steps of the answers that are generated meanwhile.

        `generates`: whether the same leg generates the answer. What others send is supposed to be like it.
        """
        latency, instance = self.latency, candidate.instance
        work_ms = latency.prefill_ms(instance, uncached_tokens, prompt_tokens)
        if generates and candidate.sequences:
            step_ms = latency.step_ms(instance, candidate.sequences, candidate.context_tokens)
            work_ms += latency.beside_ms(uncached_tokens, step_ms, candidate.wait_ms)
        self._claims += 1
        share = max(USUAL_SHARE, 1 / self._claims)
        self._usual_work_ms += share * (work_ms - self._usual_work_ms)
        self._usual_context_tokens += share * (prompt_tokens - self._usual_context_tokens)
        return work_ms
