"""The answer of `POST /explain`: where a request would go, and every candidate's terms."""

import math
from typing import Annotated

from msgspec import Meta

from kvevents import State
from proxy.fleet.why import Why
from proxy.scheduling.bypass import Bypass
from proxy.scheduling.decision import Pick, Priced
from proxy.scheduling.policies import POLICIES
from proxy.scheduling.terms import Terms
from proxy.scheduling.types import Pair
from proxy.serving.director import Explained
from proxy.shown import Address, Count, Shown, says
from proxy.tokenizing.why_unknown import WhyUnknown

MAX_PAIRS = 20
"""How many of the cheapest pairs are shown, if the policy prices pairs."""

UNITS = sorted({str(unit) for kind in POLICIES.values() if (unit := getattr(kind, "unit", None)) is not None})
"""The units of the policies that come with kvproxy; a policy of a user's own may have another."""


class CandidateShown(Shown, frozen=True, kw_only=True):
    """One rank of one instance, and what is known of it for this leg."""

    instance: Address
    rank: Count
    usable: Annotated[bool, says("The policy was asked for its price.")]
    why: Annotated[Why | None, says("Why it gets no leg; null if it could.")]
    cached_tokens: Annotated[
        int | None,
        says(
            "What this prompt would reuse there now: whole blocks, never the last token; null if not known."
        ),
    ]
    expected_tokens: Annotated[
        int | None, says("The same with the blocks that decisions just made will bring.")
    ]
    uncached_tokens: Annotated[
        int | None,
        says("What is left to compute or to fetch; null if nothing of the prompt is known."),
    ]
    reload_tokens: Annotated[Count, says("What lies only in slower tiers behind what is cached.")]
    reload_cost_tokens: Annotated[
        Annotated[float, Meta(ge=0)], says("What reloading it costs, in computed tokens.")
    ]
    load_tokens: Annotated[float, says("Outstanding tokens of the instance's running legs, until they end.")]
    prefill_tokens: Annotated[
        Count,
        says(
            "What is still to be computed of their prompts: of each until its first token, or the answer of "
            "its prefill leg."
        ),
    ]
    decode_tokens: Annotated[Count, says("The contexts of those that generate answers, or are about to.")]
    running_legs: Annotated[Count, says("How many legs run there.")]
    weight_tokens: Annotated[
        Count, says("What running legs take of --max-prefill-tokens or --max-decode-tokens.")
    ]
    cost: Annotated[
        float | None,
        says(
            "The policy's price, of the cheapest pair it is in if the policy prices pairs; null if it was "
            "not priced, or infinitely high."
        ),
    ]
    index: Annotated[State, says("How well its cache is known.")]
    trusted: Annotated[
        bool,
        says(
            "False while its index has been found wrong; nothing of the prompt then counts as cached there."
        ),
    ]


class PickShown(Shown, frozen=True, kw_only=True):
    """The outcome for one leg."""

    chosen: Annotated[str | None, says("The instance; null if there is none for the leg.")]
    chosen_rank: Count
    candidates: list[CandidateShown]


Milliseconds = Annotated[float, Meta(ge=0)]


class TermsShown(Shown, frozen=True, kw_only=True):
    """What a pair is predicted to take, and to cost others, in milliseconds."""

    ttft_ms: Annotated[Milliseconds, says("From the decision to the first token.")]
    cost_ms: Annotated[Milliseconds, says("The same with the prices: what pairs are compared by.")]
    wait_ms: Annotated[Milliseconds, says("Until the prompts before it are computed, where it is computed.")]
    prefill_ms: Annotated[Milliseconds, says("To compute what of it is not cached.")]
    overhead_ms: Annotated[Milliseconds, says("What a leg takes beside that: HTTP, reading, tokenizing.")]
    handshake_ms: Annotated[Milliseconds, says("Of engines that have not spoken yet.")]
    transfer_ms: Annotated[Milliseconds, says("To fetch what the decode instance has not cached.")]
    decode_wait_ms: Annotated[
        Milliseconds, says("Until the decode instance comes to it; 0 where one instance does both.")
    ]
    step_ms: Annotated[
        Milliseconds,
        says(
            "The step that makes the first token; where one instance does both, the steps of others' answers "
            "between the parts of its prompt."
        ),
    ]
    cache_price_ms: Annotated[Milliseconds, says("What is pushed out of the cache there.")]
    stall_price_ms: Annotated[
        Milliseconds, says("What the answers that are generated there wait for the prefill.")
    ]
    decode_price_ms: Annotated[Milliseconds, says("What the steps there take with one answer more.")]


class PairShown(Shown, frozen=True, kw_only=True):
    """Where both legs could go."""

    prefill: Annotated[str, says("The instance of the prefill leg.")]
    prefill_rank: Count
    decode: Annotated[str, says("The same as `prefill` where one instance serves the whole request.")]
    decode_rank: Count
    cost: Annotated[float | None, says("The policy's price; null if that is infinite.")]
    terms: Annotated[
        TermsShown | None, says("What the price is made of; null of a policy that predicts no milliseconds.")
    ]


class ExplanationShown(Shown, frozen=True, kw_only=True):
    """Where a request would go now, and why."""

    prompt_tokens: Annotated[
        int | None,
        says("The prompt's length; null if it is not known, or only up to its first image or sound."),
    ]
    known_tokens: Annotated[Count, says("How much of the prompt is known.")]
    why_unknown: Annotated[
        WhyUnknown | None,
        says("Why nothing of the prompt is known, as `kvproxy_unknown_prompts_total` counts it."),
    ]
    unknown_members: Annotated[
        list[str],
        says("Members of the request that shape the prompt, or may, in a way that is not known here."),
    ]
    ignored_members: Annotated[
        list[str],
        says(
            "Members that no engine is known to read: the prompt is taken to be the same without. Names "
            "longer than 48 characters are cut, at most 32 are shown (`68 more`), and `another` stands for "
            "what is no plain name."
        ),
    ]
    policy: Annotated[str, says("--policy, or the class of one that was given from Python.")]
    unit: Annotated[
        str | None,
        says(
            "What costs are counted in: `tokens`, `legs`, `picks` (round robin), `places` (sessions), "
            "`draws` (random), `milliseconds`, or what a policy of one's own says; null if it does not."
        ),
        Meta(examples=UNITS),
    ]
    session: Annotated[
        str | None,
        says(
            "The session that the request names (`--session-header`, `prompt_cache_key` or `user`); null if "
            "it names none. It decides under a policy that reads it alone."
        ),
    ]
    prefill: PickShown
    decode: PickShown
    bypass: Annotated[
        Bypass | None,
        says(
            "Why a decode instance would serve all of it (--bypass): `short` or `cached`, few tokens are "
            "left to compute there; `policy`, that is cheaper. Null for two legs, or an instance that does "
            "both."
        ),
    ]
    pairs: Annotated[
        list[PairShown],
        Meta(max_length=MAX_PAIRS),
        says("The cheapest pairs, cheapest first, if the policy prices pairs; else empty."),
    ]


def explanation_shown(explained: Explained) -> ExplanationShown:
    """The answer for a decision and what is known of its prompt."""
    decision, tokenized = explained.decision, explained.tokenized
    prompt, members = tokenized.prompt, tokenized.members
    return ExplanationShown(
        prompt_tokens=decision.prompt_tokens,
        known_tokens=0 if prompt is None else len(prompt.token_ids),
        why_unknown=tokenized.why_unknown,
        unknown_members=list(members.unknown),
        ignored_members=list(members.ignored),
        policy=decision.policy,
        unit=decision.unit,
        session=explained.session,
        prefill=_pick(decision.prefill),
        decode=_pick(decision.decode),
        bypass=decision.bypass,
        pairs=[
            _pair(pair, price, explained.terms(pair)) for pair, price in decision.pairs.cheapest(MAX_PAIRS)
        ],
    )


def _finite(price: float | None) -> float | None:
    """A price as JSON can have it: None if it is infinite."""
    return price if price is not None and math.isfinite(price) else None


def _pair(pair: Pair, price: float, terms: Terms | None) -> PairShown:
    return PairShown(
        prefill=pair.prefill.instance,
        prefill_rank=pair.prefill.rank,
        decode=pair.decode.instance,
        decode_rank=pair.decode.rank,
        cost=_finite(price),
        terms=None if terms is None else _terms(terms),
    )


def _terms(terms: Terms) -> TermsShown:
    return TermsShown(**{name: getattr(terms, name) for name in TermsShown.__struct_fields__})


def _pick(pick: Pick) -> PickShown:
    chosen = pick.chosen
    return PickShown(
        chosen=None if chosen is None else chosen.instance,
        chosen_rank=0 if chosen is None else chosen.rank,
        candidates=[_candidate(priced) for priced in pick.candidates],
    )


def _candidate(priced: Priced) -> CandidateShown:
    c = priced.candidate
    return CandidateShown(
        instance=c.instance,
        rank=c.rank,
        usable=c.usable,
        why=c.why,
        cached_tokens=c.cached_tokens,
        expected_tokens=c.expected_tokens,
        uncached_tokens=c.uncached_tokens,
        reload_tokens=c.reload_tokens,
        reload_cost_tokens=c.reload_cost_tokens,
        load_tokens=c.load_tokens,
        prefill_tokens=c.prefill_tokens,
        decode_tokens=c.decode_tokens,
        running_legs=c.running_legs,
        weight_tokens=c.weight_tokens,
        cost=_finite(priced.cost),
        index=State(c.index),
        trusted=c.trusted,
    )
