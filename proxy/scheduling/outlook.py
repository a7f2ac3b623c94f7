"""What runs on a rank is turned into milliseconds in one place, for a policy that reads them.

Own claims are known exactly. Of what other routers send an engine's gauges tell the number of requests alone:
each of these counts as one of ours does on average.
"""

from typing import NamedTuple

from proxy.fleet.gauges import Gauges
from proxy.latency.model import LatencyModel
from proxy.scheduling.standing import Rank
from proxy.scheduling.types import Candidate

USUAL_SHARE = 0.02
"""What a request changes of the average of all: the last fifty or so count."""

MAX_GAUGES_AGE_S = 10.0
"""Gauges that are older say nothing any more."""


class Ahead(NamedTuple):
    """What a rank is predicted to have before it."""

    wait_ms: float
    """As `Candidate.wait_ms`, and so on."""
    sequences: float
    context_tokens: float
    kv_use: float


NOTHING_AHEAD = Ahead(0.0, 0.0, 0.0, 0.0)


class Outlook:
    """Predicts; there is one for the process, if any."""

    def __init__(self, latency: LatencyModel) -> None:
        self.latency = latency
        self._usual_work_ms = 0.0
        self._usual_context_tokens = 0.0

    def of(self, rank: Rank, now: float) -> Ahead:
        """What a rank has before it."""
        work = rank.load.work
        wait_ms = work.wait_ms(now)
        sequences: float = work.streams
        context: float = 0.0
        if sequences:
            context = work.prompt_tokens
            step_ms = self.latency.step_ms(rank.address, sequences, context)
            context += 1000 * work.generated_s(now) / step_ms
        gauges = rank.instance.gauges
        if gauges is None or now - gauges.at > MAX_GAUGES_AGE_S:
            return Ahead(wait_ms, sequences, context, 0.0)
        if foreign := gauges.foreign:
            wait_ms, sequences, context = self._with_others(
                rank, gauges, foreign, now, wait_ms, sequences, context
            )
        return Ahead(wait_ms, sequences, context, gauges.kv_use)

    def _with_others(
        self,
        rank: Rank,
        gauges: Gauges,
        foreign: int,
        now: float,
        wait_ms: float,
        sequences: float,
        context: float,
    ) -> tuple[float, float, float]:
        """The same with the requests of other routers, which the ranks of an instance share."""
        ranks = len(rank.instance.ranks)
        waiting = min(foreign, gauges.waiting) / ranks
        others = foreign / ranks
        theirs_ms = waiting * self._usual_work_ms - 1000 * (now - gauges.at)
        return (
            wait_ms + max(theirs_ms, 0.0),
            sequences + others,
            context + others * self._usual_context_tokens,
        )

    def claimed(self, candidate: Candidate, uncached_tokens: float, prompt_tokens: float) -> float:
        """A request was let in, and its prompt goes to a candidate: how long it is computed there, in
        milliseconds, with the steps of the answers that are generated meanwhile.

        What others send is supposed to be like it.
        """
        latency, instance = self.latency, candidate.instance
        work_ms = latency.prefill_ms(instance, uncached_tokens, prompt_tokens)
        if candidate.serves_all and candidate.sequences:
            step_ms = latency.step_ms(instance, candidate.sequences, candidate.context_tokens)
            work_ms += latency.steps(uncached_tokens) * step_ms
        self._usual_work_ms += USUAL_SHARE * (work_ms - self._usual_work_ms)
        self._usual_context_tokens += USUAL_SHARE * (prompt_tokens - self._usual_context_tokens)
        return work_ms
