"""What a policy sees and what it answers with: plain values, the same in service, in `explain` and in simulation."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from proxy.fleet.why import Why
from proxy.phases import Phase


class Leg(msgspec.Struct, frozen=True):
    """The upstream request to place."""

    phase: Phase
    model: str
    prompt_tokens: int | None
    """The prompt's length; None if it could not be tokenized in time."""


class Candidate(msgspec.Struct, frozen=True):
    """One rank of one instance, and what is known of it for this leg. All amounts are tokens."""

    instance: str
    rank: int
    usable: bool
    why: Why | None
    """Why it is not usable, or set aside because there is a better one."""
    cached_tokens: int | None
    """What the index says this prompt would reuse now without reloading it: whole blocks, never the last token. None:
    not known."""
    expected_tokens: int | None
    """The same with the blocks that decisions just made will bring."""
    uncached_tokens: int | None
    """What is left to compute or fetch, beside `reload_tokens`; None if nothing of the prompt is known, an estimate if only
    its beginning is."""
    load_tokens: int
    """Outstanding work of the instance's running legs of this phase."""
    index: str
    """How well its cache is known: `exact`, `partial` or `unknown`."""
    last_pick: int = 0
    """When it was last picked for this phase, as a running number; 0 for never."""
    trusted: bool = True
    """Whether what the index says of it is believed; where not, nothing counts as cached."""
    doubted_tokens: int | None = None
    """What the index says of one that is not trusted: compared with what the engine reports, and not counted on."""
    reload_tokens: int = 0
    """What lies only in slower tiers, behind what is cached, and need not be computed."""
    reload_cost_tokens: float = 0.0
    """What reloading that costs: as much as computing so many tokens."""
    weight_tokens: int = 0
    """What its running legs of this phase take of its limit: `load_tokens`, and what decode legs are expected to
    generate."""
    serves_all: bool = False
    """Its instance does both: given the prefill leg it serves the whole request, in that one leg."""


class View(msgspec.Struct, frozen=True):
    """The fleet as one question finds it at one moment. Of each leg all candidates, those that are not usable included."""

    model: str
    prompt_tokens: int | None
    """The prompt's length; None if it could not be tokenized in time."""
    prefill: Sequence[Candidate]
    decode: Sequence[Candidate]
    """For decode legs, and for requests that cannot be split."""
    whole: bool = False
    """The request cannot be split: a candidate for decode serves all of it."""


class Policy(Protocol):
    """How instances are picked. Implement this one method to bring a policy of your own.

    `costs` gets the usable candidates of one leg and returns one number for each; the lowest wins, equal ones
    are drawn from at random. It must not keep state or wait: it is asked by `/explain` as well.
    """

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
        """The cost of each candidate, in the candidates' order; lower is better."""
        ...
