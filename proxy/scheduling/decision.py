"""A decision carries every candidate with its terms, so that it can be explained long after it was made.

One that is only to be followed carries no more than what was chosen.
"""

import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from proxy.scheduling.bypass import Bypass
from proxy.scheduling.types import Candidate, Pair, View


class Priced(msgspec.Struct, frozen=True):
    """A candidate and its cost."""

    candidate: Candidate
    cost: float | None
    """None if the candidate was not usable. If the policy prices pairs: that of the cheapest pair it is
    in."""


class Pick(msgspec.Struct, frozen=True):
    """The outcome for one leg."""

    chosen: Candidate | None
    """None if no candidate was usable, or none of them could be paired with one for the other leg."""
    candidates: Sequence[Priced] = ()
    """All of them; none where something was chosen and nobody is to be shown what else there was."""

    @property
    def possible(self) -> bool:
        """Whether some candidate was usable."""
        return self.chosen is not None or any(priced.candidate.usable for priced in self.candidates)


class PricedPairs(msgspec.Struct, frozen=True):
    """The pairs that a policy priced, and their prices in the same order."""

    pairs: Sequence[Pair] = ()
    prices: Sequence[float] = ()

    def cheapest(self, most: int) -> list[tuple[Pair, float]]:
        """The `most` cheapest pairs with their prices, the cheapest first."""
        return heapq.nsmallest(most, zip(self.pairs, self.prices, strict=True), key=lambda priced: priced[1])


class Choice(NamedTuple):
    """What was chosen from a view. Both picks are the same if one instance serves the request."""

    prefill: Pick
    decode: Pick
    pairs: PricedPairs = PricedPairs()
    """Empty if the policy prices legs."""


class Decision(msgspec.Struct, frozen=True):
    """Where a request goes. `prefill.chosen` and `decode.chosen` are the same if one leg serves it."""

    policy: str
    prompt_tokens: int | None
    prefill: Pick
    decode: Pick
    unit: str | None = None
    """What costs are counted in; None if the policy does not say."""
    pairs: PricedPairs = PricedPairs()
    bypass: Bypass | None = None
    """Why a decode instance is to serve all of a request that could have had two legs; None if none is."""
    account: Mapping[str, object] | None = None
    """What it was made of, in plain values (`account.py`); None unless it is to be logged."""

    def served_whole(self, why: Bypass) -> "Decision":
        """The same of a request that is not split, for a reason that is not the policy's."""
        account = None if self.account is None else {**self.account, "bypass": why}
        return msgspec.structs.replace(self, bypass=why, account=account)

    @property
    def admissible(self) -> bool:
        """Whether there is an instance for each leg."""
        return self.prefill.chosen is not None and self.decode.chosen is not None

    @property
    def instances(self) -> set[str]:
        """The instances that get its legs."""
        picks = (self.prefill.chosen, self.decode.chosen)
        return {chosen.instance for chosen in picks if chosen is not None}

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        prefill, decode = self.prefill.chosen, self.decode.chosen
        return prefill is not None and decode is not None and prefill.instance == decode.instance


class Chooser(Protocol):
    """Makes a choice by a policy's prices: the cheapest is taken, and of equal ones one at random.

    A price that is no number counts as infinite; a candidate of infinite price is chosen if none costs less.
    Both methods raise ValueError if the policy returns too few prices or too many.
    """

    unit: str | None
    """What prices are counted in; None if the policy does not say."""
    reads_all: bool
    """Whether its policy sees candidates that are not usable, too."""

    def choose(self, view: View, rng: random.Random) -> Choice:
        """Choose for both legs together."""
        ...

    def choose_decode(self, view: View, rng: random.Random) -> Choice:
        """Choose for the decode leg; the prefill leg is done, on the only candidate for it."""
        ...


def checked(prices: Iterable[float], count: int, of: str) -> list[float]:
    """A policy's prices as floats, infinite for NaN. Raises ValueError unless there are `count` of them.

    `of`: what was priced, for the error.
    """
    numbers = list(map(float, prices))
    if len(numbers) != count:
        raise ValueError(f"the policy gave {len(numbers)} prices for {count} {of}")
    if math.isnan(sum(numbers)):  # one of them is, or there are infinite ones of either sign
        return [math.inf if math.isnan(number) else number for number in numbers]
    return numbers


def cheapest(costs: Sequence[float], rng: random.Random) -> int:
    """Where the lowest cost is; if that is in several places, one of them drawn at random."""
    lowest = min(costs)
    if costs.count(lowest) == 1:
        return costs.index(lowest)
    return rng.choice([number for number, cost in enumerate(costs) if cost == lowest])
