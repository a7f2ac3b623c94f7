"""The price of a pair is what its request is predicted to wait for its first token, and what it costs others.

For a prompt of `n` tokens, `u` of which are computed, in milliseconds:

    prefill on p, decode on d
        time   wait_p + prefill_p(u, n) + overhead + handshake + transfer + wait_d + step_d
        price  time + cache_p + decode_d
    all of it on one instance
        time   wait + prefill(u, n) + overhead + a step of the others for each part of the prompt, and half
               of the one under way if no prompt waits there
        price  time + cache + stall + decode

    cache    LOST_SHARE of the prefill: what is computed pushes something else out of that cache, which will
             be computed again some day
    stall    STALL_SHARE of the prefill, for each answer that is generated there and waits meanwhile; of an
             instance that only decodes BYPASS_SHARE
    decode   what PRICED_STEPS steps take there with this answer, and how much longer they take for each of
             the others there; and up to FULL_MS as its KV cache fills beyond FULL_FROM

A request whose prompt is not known is priced as one of its estimated length of which nothing is cached, so it
goes by load. Of many candidates for a leg the SHORTLIST best are paired. Nothing here draws, learns or waits.
"""

from collections.abc import Sequence
from operator import add, sub
from typing import NamedTuple

import msgspec

from proxy.scheduling.sides import NONE, PricedPlaces, Side, Sides
from proxy.scheduling.types import Pair, View

LOST_SHARE = 0.3
"""Between near-equal times the cache that loses less is taken. In simulated time shares from 0.1 to 1 differ
by less than a hundredth on chats; with 1 agents with long contexts end a tenth later."""

STALL_SHARE = 0.02
"""Where every instance does both, a prompt stops the answers of some instance wherever it goes, so a little
is enough to send it where few wait. From none to 0.05 the time to the first token differs by less than noise;
at none fewer requests keep their goals under load (0.79 against 0.83), and shares of 0.3 make long prompts
queue behind each other."""

BYPASS_SHARE = 0.1
"""Where there are instances for prefill, answers need not wait for a prompt. With as little as above prompts
flood the decode instances: first tokens come a tenth sooner, and whole answers a fifth later. On a trace of
chats at five times its arrivals (4p4d, its first 400 s) 0.1 means 463 ms to the first token and 8.1 s to the
last, 0.15 491 ms and 7.8 s, 0.3 585 ms and 7.6 s; without any bypass, all of it, 930 ms and 7.3 s. Where
decode is scarce (6p2d, three times) it is 346 ms at 0.1 and 355 ms at 0.3."""

PRICED_STEPS = 25.0
"""How many steps of an answer count beside the time to its first token: less than a tenth of a usual answer.
With 32 first tokens behind long contexts come 5 % later and answers end 1 % sooner (sessions of agents on 8
instances), with 20 it is the other way round; on chats at six times their arrivals the three differ by 4 %
in either."""

FULL_FROM, FULL_MS = 0.5, 5000.0
"""In a full cache sequences wait, or are computed again, for seconds. What engines tell is up to a second
old, and prompts of a tenth of a cache come meanwhile, so the price begins early and grows with the square.
With a tenth of it two decode instances fill one after the other (6p2d, three times the arrivals: the slowest
hundredth of first tokens 2519 ms, so 1944); with four times as much answers end 3 % later."""

SHORTLIST = 4
"""What is between two instances, a transfer, differs little from pair to pair: of so many that are best by
themselves one is in the best pair, or in one as good."""


# -- the formula --------------------------------------------------------------------------------------------


def _computed(
    wait_ms: Sequence[float], prefill_ms: Sequence[float], overhead_ms: Sequence[float]
) -> list[float]:
    """The prices of prefill legs."""
    return [
        wait + prefill + LOST_SHARE * prefill + overhead
        for wait, prefill, overhead in zip(wait_ms, prefill_ms, overhead_ms, strict=True)
    ]


def _generated(
    sequences: Sequence[float],
    step_ms: Sequence[float],
    longer_step_ms: Sequence[float],
    kv_use: Sequence[float],
) -> list[float]:
    """The prices of answers beside others, whose step becomes longer."""
    prices_ms = [
        PRICED_STEPS * (longer + others * (longer - step))
        for others, step, longer in zip(sequences, step_ms, longer_step_ms, strict=True)
    ]
    for place, use in enumerate(kv_use):
        if use > FULL_FROM:
            prices_ms[place] += FULL_MS * ((use - FULL_FROM) / (1 - FULL_FROM)) ** 2
    return prices_ms


def _stalled(sequences: float, prefill_ms: float, *, serves_all: bool) -> float:
    """The price of computing a prompt beside answers that wait meanwhile."""
    return (STALL_SHARE if serves_all else BYPASS_SHARE) * sequences * prefill_ms


# -- of one side --------------------------------------------------------------------------------------------


class _Prompt(NamedTuple):
    """Of computing the prompt by place."""

    prefill_ms: Sequence[float]
    price_ms: Sequence[float]


def _computing(sides: Sides, side: Side) -> _Prompt:
    """What computing the prompt takes and costs by place."""
    latency, names = sides.latency, side.instances
    prefill_ms = latency.prefill_ms_of(names, _tokens(side), sides.prompt_tokens)
    return _Prompt(prefill_ms, _computed(side.wait_ms, prefill_ms, latency.overhead_ms_of(names)))


class _Answer(NamedTuple):
    """Of the answer by place."""

    step_ms: Sequence[float]
    longer_step_ms: Sequence[float]
    """With this answer."""
    price_ms: Sequence[float]


def _generating(sides: Sides, side: Side) -> _Answer:
    """What an answer takes and costs by place."""
    latency, names, sequences = sides.latency, side.instances, side.sequences
    step_ms = latency.step_ms_of(names, sequences, side.context_tokens)
    longer_ms = list(map(add, step_ms, latency.longer_ms_of(names, sides.prompt_tokens)))
    return _Answer(step_ms, longer_ms, _generated(sequences, step_ms, longer_ms, side.kv_use))


def _tokens(side: Side) -> Sequence[float]:
    """What is to be computed, what is reloaded included."""
    if not side.reload_cost_tokens:
        return side.uncached_tokens
    return [
        uncached + reload
        for uncached, reload in zip(side.uncached_tokens, side.reload_cost_tokens, strict=True)
    ]


# -- of pairs -----------------------------------------------------------------------------------------------


class _Pairs:
    """The pairs that are worth a look, as they are found."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._times = sides.left_ms is not None
        """Whether it matters when the first token comes."""
        self._pairs: list[tuple[int, int]] = []
        self._prices: list[float] = []
        self._ttft_ms: list[float] = []

    @property
    def found(self) -> PricedPlaces:
        """All of them."""
        return PricedPlaces(self._pairs, self._prices, self._ttft_ms)

    def whole(
        self, side: Side, answer: _Answer, prompt: _Prompt, places: Sequence[int], *, first: bool
    ) -> None:
        """All of the request on the candidates at some places; `first`: which are those for prefill."""
        beside_ms = self._sides.latency.beside_ms
        prefill_ms, computing = prompt
        step_ms, _, answering = answer
        prices, uncached, serves_all = self._prices, side.uncached_tokens, side.serves_all
        wait_ms = side.wait_ms
        for place in places:
            price = computing[place] + answering[place]
            if others := side.sequences[place]:
                price += beside_ms(uncached[place], step_ms[place], wait_ms[place])
                price += _stalled(others, prefill_ms[place], serves_all=serves_all[place])
            prices.append(price)
        self._pairs += [(place, NONE) if first else (NONE, place) for place in places]
        if self._times:
            for place, price in zip(places, prices[-len(places) :], strict=True):
                all_ms, others = prefill_ms[place], side.sequences[place]
                stalled_ms = _stalled(others, all_ms, serves_all=serves_all[place])
                self._ttft_ms.append(price - LOST_SHARE * all_ms - stalled_ms - answering[place])

    def apart(self, prompt: _Prompt, answer: _Answer, apart: Sequence[int]) -> None:
        """The best of those that only compute prompts with the best of those that generate."""
        prefill, decode = self._sides.prefill, self._sides.decode
        computing = prompt.price_ms
        generating = [
            wait + longer + price
            for wait, longer, price in zip(
                decode.wait_ms, answer.longer_step_ms, answer.price_ms, strict=True
            )
        ]
        firsts = _best(prefill, computing, apart)
        names, fetched = decode.instances, decode.uncached_tokens
        fetch_ms_of = self._sides.latency.fetch_ms_of
        fetch_ms = fetch_ms_of(prefill.instances[firsts[0]], names, fetched)
        thens = _best(decode, list(map(add, generating, fetch_ms)), range(len(decode)))
        there, left = [names[then] for then in thens], [fetched[then] for then in thens]
        best = [generating[then] for then in thens]
        for first in firsts:
            leg_ms, fetch_ms = computing[first], fetch_ms_of(prefill.instances[first], there, left)
            prices = [leg_ms + each + fetch for each, fetch in zip(best, fetch_ms, strict=True)]
            self._pairs += [(first, then) for then in thens]
            self._prices += prices
            if self._times:
                lost_ms = LOST_SHARE * prompt.prefill_ms[first]
                others_ms = [lost_ms + answer.price_ms[then] for then in thens]
                self._ttft_ms += map(sub, prices, others_ms)


def priced(sides: Sides) -> PricedPlaces:
    """The pairs that are worth a look, with their prices."""
    pairs = _Pairs(sides)
    prefill, decode = sides.prefill, sides.decode
    both = [place for place, serves_all in enumerate(prefill.serves_all) if serves_all]
    prompt = _computing(sides, prefill)
    if both:
        pairs.whole(prefill, _generating(sides, prefill), prompt, both, first=True)
    if not len(decode):
        return pairs.found
    answer = _generating(sides, decode)
    if len(both) < len(prefill):
        apart: Sequence[int] = range(len(prefill))
        if both:
            apart = [place for place in apart if not prefill.serves_all[place]]
        pairs.apart(prompt, answer, apart)
    if sides.alone:
        pairs.whole(decode, answer, _computing(sides, decode), sides.alone, first=False)
    return pairs.found


def _best(side: Side, prices: Sequence[float], places: Sequence[int]) -> Sequence[int]:
    """Those of the lowest prices, the lowest first; of equal ones those that were picked longest ago."""
    picks = side.last_pick
    if len(places) > SHORTLIST:
        most = sorted([prices[place] for place in places])[SHORTLIST - 1]
        places = [place for place in places if prices[place] <= most]
    ranked = sorted([(prices[place], picks[place], place) for place in places])
    return [place for _, _, place in ranked[:SHORTLIST]]


# -- to be shown --------------------------------------------------------------------------------------------


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
    the parts of its prompt, and before it."""
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
    latency, n = view.latency, view.estimated_tokens
    if latency is None:
        raise ValueError("nothing is predicted for a policy that does not read it")
    p, d = pair
    one, others = pair.one_leg, d.sequences
    uncached = n if p.uncached_tokens is None else p.uncached_tokens
    prefill_ms = latency.prefill_ms(p.instance, uncached + p.reload_cost_tokens, n)
    longer_ms = latency.step_ms(d.instance, others + 1, d.context_tokens + n)
    step_ms = latency.step_ms(d.instance, others, d.context_tokens) if others else longer_ms
    beside_ms = latency.beside_ms(uncached, step_ms, p.wait_ms) if others else 0.0
    fetched = n if d.uncached_tokens is None else d.uncached_tokens
    return Terms(
        wait_ms=p.wait_ms,
        prefill_ms=prefill_ms,
        overhead_ms=latency.overhead_ms(p.instance),
        handshake_ms=0.0 if one else latency.handshake_ms(p.instance, d.instance),
        transfer_ms=0.0 if one else latency.transfer_ms(p.instance, d.instance, fetched),
        decode_wait_ms=0.0 if one else d.wait_ms,
        step_ms=beside_ms if one else longer_ms,
        cache_price_ms=LOST_SHARE * prefill_ms,
        stall_price_ms=_stalled(others, prefill_ms, serves_all=p.serves_all) if one else 0.0,
        decode_price_ms=_generated([others], [step_ms], [longer_ms], [d.kv_use])[0],
    )
