"""What a policy of milliseconds needs of candidates stands side by side, whatever was found out about them.

A decision that is only followed needs no more of most candidates than these figures; one that is shown makes
them of its candidates. So both are priced by one formula, and come to the same choice.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self, runtime_checkable

from proxy.latency.model import LatencyModel
from proxy.scheduling.types import Candidate, Pair, View

NONE = -1
"""The place of no candidate: of a leg that the other one's candidate serves as well."""


class Side(NamedTuple):
    """Candidates for one leg, by place. All are usable."""

    instances: Sequence[str]
    uncached_tokens: Sequence[float]
    """What is left to compute or to fetch; the whole prompt if nothing is known of it."""
    reload_cost_tokens: Sequence[float]
    """As of candidates; empty if there are no slower tiers."""
    wait_ms: Sequence[float]
    sequences: Sequence[float]
    context_tokens: Sequence[float]
    kv_use: Sequence[float]
    serves_all: Sequence[bool]
    last_pick: Sequence[int]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], prompt_tokens: int) -> Self:
        """The same of candidates."""
        return cls(
            [c.instance for c in candidates],
            [prompt_tokens if c.uncached_tokens is None else c.uncached_tokens for c in candidates],
            [c.reload_cost_tokens for c in candidates],
            [c.wait_ms for c in candidates],
            [c.sequences for c in candidates],
            [c.context_tokens for c in candidates],
            [c.kv_use for c in candidates],
            [c.serves_all for c in candidates],
            [c.last_pick for c in candidates],
        )

    def __len__(self) -> int:
        return len(self.instances)


class Sides(NamedTuple):
    """Both legs of a question."""

    latency: LatencyModel
    prompt_tokens: int
    """The prompt's length; an estimate if it is not known."""
    prefill: Side
    """Empty if the request cannot be split."""
    decode: Side
    alone: Sequence[int]
    """The places of candidates for decode that may serve the request by themselves."""
    left_ms: float | None = None
    """In how many milliseconds its client wants the first token; None if it does not say."""


class PricedPlaces(NamedTuple):
    """Pairs of places, for prefill and for decode, and their prices."""

    pairs: Sequence[tuple[int, int]]
    """One of both is NONE if the candidate at the other one serves the whole request."""
    prices: Sequence[float]
    ttft_ms: Sequence[float] = ()
    """When the first token is predicted; empty unless the client says when it wants it."""

    def order(self, number: int) -> tuple[float, int]:
        """Where the pair of that number is among all pairs of a view, as `View.pairs` has them."""
        first, then = self.pairs[number]
        return (math.inf if first == NONE else first), then


@runtime_checkable
class PlacePolicy(Protocol):
    """A `Policy` that needs no more of candidates than `Sides` have."""

    def priced(self, sides: Sides) -> PricedPlaces:
        """The price of each pair that is worth a look, as `prices` has it."""
        ...


def prices_places(policy: PlacePolicy) -> bool:
    """Whether `priced` is of the same class as `prices`, or of a later one: a class that only has other
    prices is asked for these.
    """
    for owner in type(policy).__mro__:
        members = owner.__dict__
        if "priced" in members:
            return True
        if "prices" in members:
            return False
    return False


def sides_of(view: View) -> Sides:
    """Of the usable candidates of a view. Raises ValueError if it has no latency model."""
    if view.latency is None:
        raise ValueError("nothing is predicted for a policy that does not read it")
    n = view.estimated_tokens
    prefill, decode = _usable(view)
    places = {(c.instance, c.rank): place for place, c in enumerate(decode)}
    return Sides(
        view.latency,
        n,
        Side.of(prefill, n),
        Side.of(decode, n),
        range(len(decode)) if view.whole else [places[c.instance, c.rank] for c in view.alone],
        view.left_ms,
    )


def pair_of(view: View, pair: tuple[int, int]) -> Pair:
    """The candidates of a view at a pair of places of `sides_of`."""
    prefill, decode = _usable(view)
    first, then = pair
    p = decode[then] if first == NONE else prefill[first]
    return Pair(p, p if then == NONE else decode[then])


def prices_of(places: PricedPlaces, view: View) -> list[float]:
    """The price of each pair of a view; infinite for those that are not worth a look."""
    prefill, decode = _usable(view)
    found: dict[tuple[str, int, str, int], float] = {}
    for (first, then), price in zip(places.pairs, places.prices, strict=True):
        p = decode[then] if first == NONE else prefill[first]
        d = p if then == NONE else decode[then]
        found[p.instance, p.rank, d.instance, d.rank] = price
    return [found.get((p.instance, p.rank, d.instance, d.rank), math.inf) for p, d in view.pairs]


def _usable(view: View) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
    """By place, for prefill and for decode."""
    prefill = [] if view.whole else [c for c in view.prefill if c.usable]
    return prefill, [c for c in view.decode if c.usable]
