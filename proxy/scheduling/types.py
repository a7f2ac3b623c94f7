"""What a policy sees and what it answers with: plain values, the same in service, in `explain` and in
simulation.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

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
    """What the index says this prompt would reuse now without reloading it: whole blocks, never the last
    token. None: not known."""
    expected_tokens: int | None
    """The same with the blocks that decisions just made will bring."""
    uncached_tokens: int | None
    """What is left to compute or fetch, beside `reload_tokens`; None if nothing of the prompt is known, an
    estimate if only its beginning is."""
    load_tokens: int
    """Outstanding work of the instance's running legs of this phase."""
    index: str
    """How well its cache is known: `exact`, `partial` or `unknown`."""
    last_pick: int = 0
    """When it was last picked for this phase, as a running number; 0 for never."""
    trusted: bool = True
    """Whether what the index says of it is believed; where not, nothing counts as cached."""
    doubted_tokens: int | None = None
    """What the index says of one that is not trusted: compared with what the engine reports, and not counted
    on."""
    reload_tokens: int = 0
    """What lies only in slower tiers, behind what is cached, and need not be computed."""
    reload_cost_tokens: float = 0.0
    """What reloading that costs: as much as computing so many tokens."""
    weight_tokens: int = 0
    """What its running legs of this phase take of its limit: `load_tokens`, and what decode legs are expected
    to generate."""
    serves_all: bool = False
    """Its instance does both: given the prefill leg it serves the whole request, in that one leg."""


class Pair(NamedTuple):
    """Where a request could go: a candidate for each leg, the same one twice where one instance serves it
    all.
    """

    prefill: Candidate
    decode: Candidate

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        return self.prefill.instance == self.decode.instance


class View:
    """The fleet as one question finds it at one moment. Not to be changed."""

    def __init__(
        self,
        model: str,
        prompt_tokens: int | None,
        prefill: Sequence[Candidate],
        decode: Sequence[Candidate],
        *,
        whole: bool = False,
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        """The prompt's length; None if it could not be tokenized in time."""
        self.prefill = prefill
        """All candidates for the prefill leg, those that are not usable included."""
        self.decode = decode
        """The same for the decode leg, and for a request that cannot be split."""
        self.whole = whole
        """The request cannot be split: a candidate for decode serves all of it."""

    @functools.cached_property
    def pairs(self) -> Sequence[Pair]:
        """Every pair of usable candidates that could serve the request."""
        decode = [candidate for candidate in self.decode if candidate.usable]
        if self.whole:
            return [Pair(candidate, candidate) for candidate in decode]
        pairs: list[Pair] = []
        for candidate in self.prefill:
            if candidate.usable:
                others = [candidate] if candidate.serves_all else decode
                pairs += [Pair(candidate, other) for other in others]
        return pairs


@runtime_checkable
class Policy(Protocol):
    """How instances are picked. Implement this to bring a policy of your own that looks at both legs
    together.

    The pair with the lowest price serves the request; equal ones are drawn from at random. A policy must not
    keep state or wait: it is asked by `/explain` as well. It may have `reads_prompt`, as `reads_prompt` here
    tells.
    """

    @property
    def unit(self) -> str:
        """What prices are counted in, for `/explain`: `tokens`, `milliseconds`."""
        ...

    def prices(self, view: View) -> Sequence[float]:
        """The price of each of `view.pairs`, in their order; lower is better."""
        ...


@runtime_checkable
class LegPolicy(Protocol):
    """A policy that prices each leg by itself; it may have a `unit` and `reads_prompt`, too.

    The prefill leg is placed first. In a large fleet that is much less to price than all pairs.
    """

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
        """The cost of each of the usable candidates for a leg, in their order; lower is better."""
        ...


AnyPolicy: TypeAlias = Policy | LegPolicy


def reads_prompt(policy: AnyPolicy) -> bool:
    """Whether a policy's prices depend on the prompt's tokens: on its length, or on what of it is cached.

    It does unless it has a member `reads_prompt` that is false. Then nobody need find them out for its sake,
    and `prompt_tokens` and what candidates tell of the prompt may be None, as where they are not known.
    """
    return bool(getattr(policy, "reads_prompt", True))
