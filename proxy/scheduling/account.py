"""An account of a decision has its terms and what came next, in plain values, and is of bounded size.

It has no prompt, no session and no client: only instances, lengths and prices. It is made at the moment of
the decision, while all that was to choose from is there.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from proxy.scheduling.decision import Decision, Pick, PricedPairs
from proxy.scheduling.terms import Terms
from proxy.scheduling.types import Candidate, Pair

RUNNERS_UP = 3
"""So many of those that were not chosen are told: of pairs, or for each leg."""

DIGITS = 3
"""Digits behind the point of what is told."""


def account_of(decision: Decision, terms: Callable[[Pair], Terms | None]) -> Mapping[str, object]:
    """The account of an admissible decision that has all its candidates; `terms`: those of a pair."""
    prefill, decode = decision.prefill.chosen, decision.decode.chosen
    if prefill is None or decode is None:
        raise ValueError("nothing was chosen")
    pair = Pair(prefill, decode)
    account: dict[str, object] = {
        "policy": decision.policy,
        "unit": decision.unit,
        "prompt_tokens": decision.prompt_tokens,
        "cached_tokens": prefill.cached_tokens,
        "uncached_tokens": prefill.uncached_tokens,
        **_named(pair),
        "bypass": decision.bypass,
    }
    if decision.pairs.pairs:
        account |= {
            "cost": _rounded(_price_of(pair, decision.pairs)),
            "terms": _terms(terms(pair)),
            "runners_up": [
                {**_named(other), "cost": _rounded(cost), "terms": _terms(terms(other))}
                for other, cost in decision.pairs.cheapest(RUNNERS_UP + 1)
                if not _same(other, pair)
            ][:RUNNERS_UP],
        }
    elif not decision.prefill.candidates:
        told = terms(pair)
        account |= {
            "cost": None if told is None else _rounded(told.cost_ms),
            "terms": _terms(told),
            "runners_up": None,
        }
    else:
        legs = {"prefill": decision.prefill}
        if decision.decode is not decision.prefill:
            legs["decode"] = decision.decode
        account |= {
            "cost": {leg: _rounded(_cost(pick)) for leg, pick in legs.items()},
            "terms": None,
            "runners_up": {leg: _others(pick) for leg, pick in legs.items()},
        }
    return account


def followed(decision: Decision) -> Decision:
    """A decision with nothing but what was chosen."""
    return msgspec.structs.replace(
        decision,
        prefill=Pick(decision.prefill.chosen),
        decode=Pick(decision.decode.chosen),
        pairs=PricedPairs(),
    )


def _named(pair: Pair) -> dict[str, object]:
    return {
        "prefill": pair.prefill.instance,
        "prefill_rank": pair.prefill.rank,
        "decode": pair.decode.instance,
        "decode_rank": pair.decode.rank,
    }


def _price_of(pair: Pair, priced: PricedPairs) -> float | None:
    together = zip(priced.pairs, priced.prices, strict=True)
    return next((price for each, price in together if _same(each, pair)), None)


def _same(one: Pair, other: Pair) -> bool:
    return one.prefill is other.prefill and one.decode is other.decode


def _terms(terms: Terms | None) -> dict[str, float] | None:
    if terms is None:
        return None
    told = {name: getattr(terms, name) for name in ("ttft_ms", "cost_ms", *terms.__struct_fields__)}
    return {name: round(value, DIGITS) for name, value in told.items()}


def _cost(pick: Pick) -> float | None:
    return next((priced.cost for priced in pick.candidates if priced.candidate is pick.chosen), None)


def _others(pick: Pick) -> Sequence[dict[str, object]]:
    others: list[tuple[float, Candidate]] = [
        (priced.cost, priced.candidate)
        for priced in pick.candidates
        if priced.cost is not None and priced.candidate is not pick.chosen
    ]
    return [
        {
            "instance": candidate.instance,
            "rank": candidate.rank,
            "cost": _rounded(cost),
            "cached_tokens": candidate.cached_tokens,
        }
        for cost, candidate in heapq.nsmallest(RUNNERS_UP, others, key=lambda each: each[0])
    ]


def _rounded(price: float | None) -> float | None:
    """A price as JSON can have it."""
    return round(price, DIGITS) if price is not None and math.isfinite(price) else None
