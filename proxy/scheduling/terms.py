"""The price of a pair is what its request is predicted to wait for its first token, and what it costs others.

For a prompt of `n` tokens, `u` of which are computed, in milliseconds:

    prefill on p, decode on d
        time   wait_p + prefill_p(u, n) + overhead + handshake + transfer + wait_d + step_d
        price  time + cache_p + decode_d
    all of it on one instance
        time   wait + prefill(u, n) + overhead + a step of the others for each part of the prompt
        price  time + cache + stall + decode

    cache    LOST_SHARE of the prefill: what is computed pushes something else out of that cache, which will
             be computed again some day
    stall    STALL_SHARE of the prefill, for each answer that is generated there and waits meanwhile
    decode   what PRICED_STEPS steps take there with this answer, and how much longer they take for each of
             the others there

A request whose prompt is not known is priced as one of its estimated length of which nothing is cached, so it
goes by load. Nothing here draws, learns or waits.
"""

import msgspec

from proxy.latency.model import LatencyModel
from proxy.scheduling.types import Candidate, Pair, View

LOST_SHARE = 0.3
"""Simulated agents with long contexts do best with shares from 0.3 to 1: near-ties go where less is lost."""

STALL_SHARE = 0.02
"""Prices of 0.3 and more make long prompts queue behind each other."""

PRICED_STEPS = 16.0
"""How many steps of an answer count beside the time to its first token."""


class Terms(msgspec.Struct, frozen=True):
    """What a pair is predicted to take and to cost, in milliseconds."""

    wait_ms: float
    """Until the prompts before it are computed, where it is computed."""
    prefill_ms: float
    """To compute what is not cached of it."""
    overhead_ms: float
    """What a leg takes beside that: HTTP, reading the body, tokenizing."""
    handshake_ms: float
    """Of engines that have not spoken yet."""
    transfer_ms: float
    """To fetch what the decode instance has not cached."""
    decode_wait_ms: float
    """Until the decode instance comes to it; 0 where one instance does both."""
    step_ms: float
    """The step that makes the first token; where one instance does both, the steps of others' answers between
    the parts of its prompt."""
    cache_price_ms: float
    """What is pushed out of the cache there."""
    stall_price_ms: float
    """What the answers that are generated there wait for the prefill."""
    decode_price_ms: float
    """What the steps there take with one answer more."""

    @property
    def ttft_ms(self) -> float:
        """The predicted time from the decision to the first token."""
        return (
            self.wait_ms
            + self.prefill_ms
            + self.overhead_ms
            + self.handshake_ms
            + self.transfer_ms
            + self.decode_wait_ms
            + self.step_ms
        )

    @property
    def cost_ms(self) -> float:
        """The price by which pairs are compared."""
        return self.ttft_ms + self.cache_price_ms + self.stall_price_ms + self.decode_price_ms


def terms_of(pair: Pair, view: View) -> Terms:
    """The terms of a pair of a view that has a latency model. Raises ValueError if it has none."""
    latency = view.latency
    if latency is None:
        raise ValueError("nothing is predicted for a policy that does not read it")
    n = view.estimated_tokens
    p, d = pair
    prefill_ms = _prefill_ms(latency, p, n)
    step_ms, decode_price_ms = _decoding(latency, d, n)
    cache_price_ms = LOST_SHARE * prefill_ms
    overhead_ms = latency.overhead_ms(p.instance)
    if pair.one_leg:
        return Terms(
            wait_ms=p.wait_ms,
            prefill_ms=prefill_ms,
            overhead_ms=overhead_ms,
            handshake_ms=0.0,
            transfer_ms=0.0,
            decode_wait_ms=0.0,
            step_ms=_beside_ms(latency, p, n),
            cache_price_ms=cache_price_ms,
            stall_price_ms=STALL_SHARE * p.sequences * prefill_ms,
            decode_price_ms=decode_price_ms,
        )
    return Terms(
        wait_ms=p.wait_ms,
        prefill_ms=prefill_ms,
        overhead_ms=overhead_ms,
        handshake_ms=latency.handshake_ms(p.instance, d.instance),
        transfer_ms=latency.transfer_ms(p.instance, d.instance, _uncached(d, n)),
        decode_wait_ms=d.wait_ms,
        step_ms=step_ms,
        cache_price_ms=cache_price_ms,
        stall_price_ms=0.0,
        decode_price_ms=decode_price_ms,
    )


def prices_of(view: View) -> list[float]:
    """The price of each pair of a view, as `terms_of` has it."""
    return [terms_of(pair, view).cost_ms for pair in view.pairs]


def _uncached(candidate: Candidate, prompt_tokens: int) -> int:
    return prompt_tokens if candidate.uncached_tokens is None else candidate.uncached_tokens


def _prefill_ms(latency: LatencyModel, candidate: Candidate, prompt_tokens: int) -> float:
    uncached = _uncached(candidate, prompt_tokens) + candidate.reload_cost_tokens
    return latency.prefill_ms(candidate.instance, uncached, prompt_tokens)


def _beside_ms(latency: LatencyModel, candidate: Candidate, prompt_tokens: int) -> float:
    """The steps of the answers that are generated beside the parts of a prompt."""
    if not candidate.sequences:
        return 0.0
    step_ms = latency.step_ms(candidate.instance, candidate.sequences, candidate.context_tokens)
    return latency.steps(_uncached(candidate, prompt_tokens)) * step_ms


def _decoding(latency: LatencyModel, candidate: Candidate, prompt_tokens: int) -> tuple[float, float]:
    """A step with one more answer, and the price of that."""
    instance, others = candidate.instance, candidate.sequences
    step_ms = latency.step_ms(instance, others + 1, candidate.context_tokens + prompt_tokens)
    longer_ms = step_ms - latency.step_ms(instance, others, candidate.context_tokens) if others else 0.0
    return step_ms, PRICED_STEPS * (step_ms + others * longer_ms)
