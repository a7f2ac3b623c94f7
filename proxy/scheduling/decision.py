"""A decision carries every candidate with its terms, so that it can be explained long after it was made."""

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from proxy.scheduling.types import Candidate, Pair, View


class Priced(msgspec.Struct, frozen=True):
    """A candidate and its cost; no cost if it was not usable."""

    candidate: Candidate
    cost: float | None
    """Of a policy that prices pairs: that of the cheapest pair it is in."""


class Pick(msgspec.Struct, frozen=True):
    """The outcome for one leg."""

    chosen: Candidate | None
    """None if no candidate was usable, or none together with one for the other leg."""
    candidates: Sequence[Priced]

    @property
    def possible(self) -> bool:
        """Whether some candidate was usable."""
        return self.chosen is not None or any(priced.candidate.usable for priced in self.candidates)


class PricedPairs(msgspec.Struct, frozen=True):
    """What a policy asked for each pair."""

    pairs: Sequence[Pair] = ()
    prices: Sequence[float] = ()

    def cheapest(self, most: int) -> list[tuple[Pair, float]]:
        """The `most` cheapest pairs with their prices, the cheapest first."""
        return heapq.nsmallest(most, zip(self.pairs, self.prices, strict=True), key=lambda priced: priced[1])


class Choice(NamedTuple):
    """What is chosen from a view. Both picks are the same where one instance serves the request."""

    prefill: Pick
    decode: Pick
    pairs: PricedPairs = PricedPairs()
    """Empty if the policy prices legs."""


class Decision(msgspec.Struct, frozen=True):
    """Where a request goes. `prefill.chosen` and `decode.chosen` are the same for one that is served in one
    leg.
    """

    policy: str
    prompt_tokens: int | None
    prefill: Pick
    decode: Pick
    unit: str | None = None
    """What costs are counted in; None if the policy does not tell."""
    pairs: PricedPairs = PricedPairs()

    @property
    def admissible(self) -> bool:
        """Whether both legs have somewhere to go."""
        return self.prefill.chosen is not None and self.decode.chosen is not None

    @property
    def instances(self) -> set[str]:
        """Where it sends legs."""
        picks = (self.prefill.chosen, self.decode.chosen)
        return {chosen.instance for chosen in picks if chosen is not None}

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        prefill, decode = self.prefill.chosen, self.decode.chosen
        return prefill is not None and decode is not None and prefill.instance == decode.instance


class Chooser(Protocol):
    """A policy at work: takes the cheapest of what there is, ties at random.

    A price that is no number counts as infinitely high; what costs that is taken if nothing costs less. Both
    methods raise ValueError if the policy answers with too few prices or too many.
    """

    unit: str | None
    """What prices are counted in; None if the policy does not tell."""

    def choose(self, view: View, rng: random.Random) -> Choice:
        """Where a request goes, both legs together."""
        ...

    def choose_decode(self, view: View, rng: random.Random) -> Choice:
        """The same where the one candidate for prefill has done its leg."""
        ...


def checked(prices: Iterable[float], count: int, of: str) -> list[float]:
    """A policy's prices as numbers. Raises ValueError if there is not one for each of `count` candidates or
    pairs.
    """
    numbers = [math.inf if math.isnan(price) else float(price) for price in prices]
    if len(numbers) != count:
        raise ValueError(f"the policy gave {len(numbers)} prices for {count} {of}")
    return numbers
