"""A policy sees and returns plain values, the same in the service, in `/explain` and in simulation."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from proxy.fleet.why import Why
from proxy.phases import Phase


def no_keys() -> Sequence[int]:
    """The block keys of a prompt that is not known."""
    return ()


class Leg(msgspec.Struct, frozen=True):
    """The leg to place."""

    phase: Phase
    model: str
    prompt_tokens: int | None
    """The prompt's length; None if it is not known."""
    computes: bool = True
    """Whether the prompt is computed by this leg: by the prefill leg, or by the one leg of a request that
    cannot be split."""
    session: str | None = None
    """The session that the request belongs to; None if it names none, or if the policy does not say that it
    reads it (`reads_session`)."""
    draw: float = 0.0
    """A number from 0 to below 1, drawn for this leg alone: a policy that draws keeps no dice."""
    find_keys: Callable[[], Sequence[int]] = no_keys
    """Makes `block_keys`."""

    @property
    def block_keys(self) -> Sequence[int]:
        """The keys of the prompt's blocks of 16 tokens, whatever its engines have, from the first one on;
        each stands for all tokens up to its block's end. Empty if the prompt is not known.
        """
        return self.find_keys()


class Candidate(msgspec.Struct, frozen=True):
    """One rank of one instance, and what is known of it for this leg. All amounts are tokens."""

    instance: str
    rank: int
    usable: bool
    why: Why | None
    """Why it is not usable; None if it is."""
    cached_tokens: int | None
    """How much of the prompt it would reuse now from its main tier, by the index: whole blocks, never the
    last token. None if not known."""
    expected_tokens: int | None
    """The same, with the blocks that legs of earlier decisions are expected to bring."""
    uncached_tokens: int | None
    """What is left to compute or fetch, beside `reload_tokens`. None if nothing of the prompt is known, an
    estimate if only its beginning is."""
    load_tokens: int
    """Outstanding tokens of the instance's running legs of this phase, until they end."""
    index: str
    """How well its cache is known: `exact`, `partial` or `unknown`."""
    last_pick: int = 0
    """When it was last picked for this phase, as a running number; 0 for never."""
    trusted: bool = True
    """Whether its index is believed; if not, nothing counts as cached there."""
    doubted_tokens: int | None = None
    """The cached tokens by an index that is not trusted: only compared with what the engine reports."""
    reload_tokens: int = 0
    """Tokens behind the cached ones that only slower tiers have: reloaded instead of computed."""
    reload_cost_tokens: float = 0.0
    """What reloading them costs: as much as computing this many tokens."""
    weight_tokens: int = 0
    """What its running legs of this phase take of its limit: `load_tokens`, and the tokens that decode legs
    are expected to generate."""
    serves_all: bool = False
    """Whether its instance does both: given the prefill leg, it serves the whole request in that one leg."""
    running_legs: int = 0
    """How many legs of this phase are running there; of both where its instance does both."""
    prefill_tokens: int = 0
    """How many tokens of the prompts of these legs are still to be computed there: of each until its first
    token, or the answer of its prefill leg."""
    decode_tokens: int = 0
    """The contexts of those of these legs that generate answers, or are about to: their prompts' tokens."""


class Pair(NamedTuple):
    """A candidate for each leg; the same one twice if one instance serves the whole request."""

    prefill: Candidate
    decode: Candidate

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        return self.prefill.instance == self.decode.instance


class View:
    """The fleet as one question finds it at one moment. Policies MUST NOT change it."""

    def __init__(
        self,
        model: str,
        prompt_tokens: int | None,
        prefill: Sequence[Candidate],
        decode: Sequence[Candidate],
        *,
        whole: bool = False,
        alone: Sequence[Candidate] = (),
        complete: bool = True,
        session: str | None = None,
        find_keys: Callable[[], Sequence[int]] = no_keys,
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        """The prompt's length; None if it is not known."""
        self.prefill = prefill
        """All candidates for the prefill leg, those that are not usable included."""
        self.decode = decode
        """All candidates for the decode leg, or for a request that cannot be split."""
        self.whole = whole
        """Whether one leg serves the request, because it cannot be split or is not to be: a candidate for
        decode serves all of it."""
        self.alone = alone
        """The usable candidates for decode, of instances that do not both, that may serve the request by
        themselves beside the pairs of two instances: each computes the prompt itself then. Only for a policy
        that weighs that (`weighs_bypass`)."""
        self.complete = complete
        """Whether candidates that are not usable are included; for policies that price pairs they are."""
        self.session = session
        """As `Leg.session`."""
        self.find_keys = find_keys

    @property
    def block_keys(self) -> Sequence[int]:
        """As `Leg.block_keys`."""
        return self.find_keys()

    @property
    def bypass(self) -> bool:
        """Whether `pairs` ends with pairs of a decode candidate with itself: those of `alone`, in order."""
        return bool(self.alone)

    @functools.cached_property
    def pairs(self) -> Sequence[Pair]:
        """Every pair of usable candidates that could serve the request: of each candidate for prefill with
        each for decode, and then of each that may serve it alone with itself.
        """
        decode = [candidate for candidate in self.decode if candidate.usable]
        if self.whole:
            return [Pair(candidate, candidate) for candidate in decode]
        pairs: list[Pair] = []
        for candidate in self.prefill:
            if candidate.usable:
                others = [candidate] if candidate.serves_all else decode
                pairs += [Pair(candidate, other) for other in others]
        return pairs + [Pair(candidate, candidate) for candidate in self.alone]


@runtime_checkable
class Policy(Protocol):
    """A policy that prices pairs: implement this to weigh where one leg goes by where the other does.

    The pair with the lowest price serves the request; of equal ones, one at random. A policy MUST NOT change
    here or wait, since `/explain` asks it as well; it may be a `Learner`. It may have members `reads_prompt`,
    `reads_session` and `weighs_bypass` (see the functions of these names).
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
    """A policy that prices each leg by itself. It may have a member `unit`, and those of a `Policy` but
    `weighs_bypass`, which is about pairs.

    The prefill leg is placed first. In a large fleet this is much less to price than all pairs.
    """

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> Sequence[float]:
        """The cost of each of the usable candidates for a leg, in their order; lower is better."""
        ...


AnyPolicy: TypeAlias = Policy | LegPolicy


class Granted(NamedTuple):
    """A request was let in: its legs go to these candidates."""

    model: str
    session: str | None
    """As `Leg.session`."""
    block_keys: Sequence[int]
    """As `Leg.block_keys`; valid after the call, too."""
    prefill: Candidate
    """Where the prompt is computed."""
    decode: Candidate
    """Where the answer is generated; the same candidate if one instance serves the whole request."""


class CacheLost(NamedTuple):
    """An instance has nothing cached any more, or has left the fleet."""

    instance: str


Told: TypeAlias = Granted | CacheLost


@runtime_checkable
class Learner(Protocol):
    """A policy that keeps a history. It may change in `learn` alone, never in `costs` or `prices`, which
    `/explain` asks as well.
    """

    def learn(self, told: Told) -> None:
        """Something has happened. What is raised here is logged, and harms no request."""
        ...


def reads_session(policy: AnyPolicy) -> bool:
    """Whether a policy has a true member `reads_session`; else nobody finds out the sessions of requests."""
    return bool(getattr(policy, "reads_session", False))


def weighs_bypass(policy: AnyPolicy) -> bool:
    """Whether a policy that prices pairs has a true member `weighs_bypass`: it knows that a decode candidate
    that is paired with itself computes the prompt, and is given such pairs (`View.alone`).
    """
    return bool(getattr(policy, "weighs_bypass", False))


def reads_prompt(policy: AnyPolicy) -> bool:
    """Whether a policy's prices depend on the prompt's tokens: on its length, or on what of it is cached.

    They do unless the policy has a member `reads_prompt` that is false. For such a policy prompts need not be
    tokenized: `prompt_tokens` and the members of candidates about the prompt may then be None. A class that
    sets prices of its own says so itself: what the class that it extends says is of other prices.
    """
    for owner in (policy, *type(policy).__mro__):
        members = getattr(owner, "__dict__", {})
        if "reads_prompt" in members:
            return bool(getattr(policy, "reads_prompt", True))
        if owner is not policy and not _PRICES.isdisjoint(members):
            return True
    return True


_PRICES = frozenset({"costs", "prices"})
"""The methods by which policies price legs, and pairs."""


def reads_latency(policy: AnyPolicy) -> bool:
    """Whether a policy has a true member `reads_latency`; else nobody learns how long engines take."""
    return bool(getattr(policy, "reads_latency", False))
