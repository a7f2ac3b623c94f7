"""A decision rests on one look at the fleet: the index is asked once, and all candidates are of the same
moment.

Where nobody is to be shown all candidates, a look goes no further than the choice needs: if some that are
well fit and have room, the policy may choose from these alone, and nothing is found out about the others.

Loads are passed in: nothing here assumes that this process sees all traffic.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from kvevents import PrefixIndex, Prompt
from proxy.caches.accuracy import Accuracy
from proxy.caches.expected import PredictedBlocks
from proxy.config import MAIN_TIER, Admission
from proxy.fleet import Fleet, Instance
from proxy.fleet.why import Why
from proxy.phases import Phase
from proxy.scheduling.eligible import eligible
from proxy.scheduling.lengths import need_of, wanted_tokens
from proxy.scheduling.outlook import NOTHING_AHEAD, Outlook
from proxy.scheduling.question import Constraints, Question
from proxy.scheduling.sides import NONE, Side, Sides
from proxy.scheduling.standing import Rank, Standing
from proxy.scheduling.types import Candidate, Pair, View, no_keys

USUAL_BLOCK_SIZE = 16
"""vLLM's default block size in tokens, assumed of an instance that has not stored a block yet."""

_NO_INSTANCE = ""
"""The address of no instance, of which the index therefore assumes the usual block size."""


class Load(NamedTuple):
    """What runs on one rank, for legs of one phase."""

    tokens: int
    """Outstanding tokens, as policies see them."""
    weight_tokens: int
    """Tokens that count against the rank's limit."""
    legs: int
    """How many legs are running."""
    prefill_tokens: int
    """Tokens of their prompts that are still to be computed."""
    decode_tokens: int
    """Tokens of the contexts of those that generate answers, or are about to."""


def own_load(instance: Instance, phase: Phase, rank: int) -> Load:
    """The load of the legs that this process has claimed."""
    load = instance.load.on(phase, rank)
    return Load(load.tokens, load.weight_tokens, load.legs, load.prefill_tokens, load.decode_tokens)


class _Look(NamedTuple):
    """Everything that is the same for all candidates of a question."""

    question: Question
    constraints: Constraints
    now: float
    wanted_tokens: int
    """A context of this length holds any of its legs."""
    length_tokens: int | None
    """As `Question.length_tokens`."""
    cached: Mapping[tuple[str, int], int]
    """Cached tokens of the prompt in the main tier by the index, by instance and rank."""
    slower: Mapping[tuple[str, int], Mapping[str, int]]
    """Tokens behind those that only slower tiers have, by instance and rank, then by tier."""
    adapter: str | None
    """The LoRA adapter that it is for, if the wait for one counts."""


class Seen(NamedTuple):
    """What `Viewer.sides` found, and where."""

    look: _Look
    prefill: Sequence[Rank]
    decode: Sequence[Rank]
    sides: Sides


class Viewer:
    """Looks at the fleet; one for the whole process."""

    def __init__(
        self,
        fleet: Fleet,
        index: PrefixIndex,
        predicted: PredictedBlocks,
        accuracy: Accuracy,
        *,
        limits: Admission,
        tier_costs: Mapping[str, float],
        loads: Callable[[Instance, Phase, int], Load] = own_load,
        keeps: bool = False,
        outlook: Outlook | None = None,
    ) -> None:
        """The arguments are those of `Placement`. `loads`: all that runs on a rank, whoever sent it there.

        `keeps`: whether candidates may be kept until a claim changes their load, since the policy reads
        neither `index` nor `trusted`, which may change meanwhile; `outlook`: predicts how long things take,
        for a policy that reads it.
        """
        self._fleet = fleet
        self._standing = Standing(fleet)
        self._index = index
        self._predicted = predicted
        self._accuracy = accuracy
        worth = sorted((cost, tier) for tier, cost in tier_costs.items() if cost < 1)
        self._tier_costs = {tier: cost for cost, tier in worth}  # the cheapest first
        self._most_tokens = {
            Phase.PREFILL: limits.max_prefill_tokens,
            Phase.DECODE: limits.max_decode_tokens,
        }
        self._limited = any(self._most_tokens.values())
        self._loads = None if loads is own_load else loads
        self._outlook = outlook
        self._keeps = keeps and self._loads is None and outlook is None

    def look(
        self, question: Question, now: float, constraints: Constraints, *, complete: bool = True
    ) -> View:
        """The candidates for both legs. There are none for prefill if the request is served whole, and none
        for decode if every usable candidate for prefill would serve it by itself.

        `complete`: whether those that are not usable must be among them.
        """
        look = self._look(question, now, constraints)
        if not complete and (view := self._glance(look)) is not None:
            return view
        prefill = () if question.whole else self._candidates(Phase.PREFILL, look)
        alone = [c.serves_all for c in prefill if c.usable]
        needless = bool(alone) and all(alone)
        decode = () if needless else self._candidates(Phase.DECODE, look)
        if not question.computes and not any(c.usable for c in decode):
            prefilling = self._candidates(Phase.PREFILL, look)
            decode = [*decode, *(c for c in prefilling if not c.serves_all)]
        return self._view(question, now, prefill, decode)

    def sides(
        self,
        question: Question,
        now: float,
        constraints: Constraints,
        *,
        alone: bool,
        left_ms: float | None,
    ) -> "Seen | None":
        """What a policy of milliseconds needs of the candidates, where that can be told of those alone that
        are as good as any; None where it cannot, or where nothing is predicted.

        `alone`: whether instances that only decode may serve the request by themselves; `left_ms`: as
        `Sides.left_ms`.
        """
        outlook = self._outlook
        failed, tried, prefill_on, over_limit, kept = constraints
        if outlook is None or self._limited or self._loads is not None:
            return None
        if failed or tried or kept or over_limit or prefill_on is not None or question.only is not None:
            return None
        look = self._look(question, now, constraints)
        if look.slower:
            return None
        first: Sequence[Rank] = ()
        then: Sequence[Rank] = ()
        if not question.whole:
            first = self._well(Phase.PREFILL, look)
            if not first:
                return None
        if not first or not all(rank.serves_all for rank in first):
            then = self._well(Phase.DECODE, look)
            if not then:
                return None
        places: Sequence[int] = ()
        if question.whole:
            places = range(len(then))
        elif alone:
            places = [place for place, rank in enumerate(then) if not rank.serves_all]
        length = question.length_tokens or question.estimated_tokens
        sides = Sides(
            outlook.latency,
            length,
            self._side(first, look, length, outlook),
            self._side(then, look, length, outlook),
            places,
            left_ms,
        )
        return Seen(look, first, then, sides)

    def candidates(self, seen: "Seen", pair: tuple[int, int]) -> Pair:
        """The candidates of a pair of places."""
        first, then = pair
        decode = None if then == NONE else self._candidate(seen.decode[then], Phase.DECODE, seen.look, None)
        if first == NONE:
            if decode is None:
                raise ValueError("a pair has one candidate at least")
            return Pair(decode, decode)
        prefill = self._candidate(seen.prefill[first], Phase.PREFILL, seen.look, None)
        return Pair(prefill, decode or prefill)

    def _side(self, ranks: Sequence[Rank], look: _Look, length: int, outlook: Outlook) -> Side:
        """What a policy of milliseconds needs of each."""
        uncached: list[float] = [length] * len(ranks)
        if (prompt := look.question.prompt) is not None:
            for place, tokens in self._reused(ranks, prompt, look):
                uncached[place] -= tokens
        of, now = outlook.of, look.now
        ahead = [of(rank, now) for rank in ranks]
        wait_ms = [each.wait_ms for each in ahead]
        if look.adapter is not None:
            wait_ms = [each + self._slot_ms(rank, look) for each, rank in zip(wait_ms, ranks, strict=True)]
        return Side(
            [rank.address for rank in ranks],
            uncached,
            (),
            wait_ms,
            [each.sequences for each in ahead],
            [each.context_tokens for each in ahead],
            [each.kv_use for each in ahead],
            [rank.serves_all for rank in ranks],
            [rank.load.last_pick for rank in ranks],
        )

    def _slot_ms(self, rank: Rank, look: _Look) -> float:
        """How long its answer waits for a slot of its adapter there; no prefill leg waits long for one."""
        if look.adapter is None or self._outlook is None or rank.limited is not Phase.DECODE:
            return 0.0
        return self._outlook.slot_ms(rank, look.adapter, look.now)

    def _reused(self, ranks: Sequence[Rank], prompt: Prompt, look: _Look) -> Iterator[tuple[int, int]]:
        """As the second of `_reuse`, of those places where that is not nothing."""
        cached, index, awaited = look.cached, self._index, self._predicted.places
        trusted, reusable = self._accuracy.trusted, look.question.reusable_tokens
        shape_of, begins, now = index.shape, self._predicted.begins, look.now
        keys_of: dict[tuple[int, int], tuple[Sequence[int], int | None]] = {}
        for place, rank in enumerate(ranks):
            at = rank.at
            there = cached.get(at, 0)
            more: Sequence[int] = ()
            if at in awaited:
                shape = shape_of(at, USUAL_BLOCK_SIZE)
                asked = keys_of.get(shape)
                if asked is None:
                    keys = index.keys(prompt, *at, USUAL_BLOCK_SIZE)
                    asked = keys_of[shape] = keys, keys[0] if len(keys) else None
                keys, first = asked
                if first is not None and begins(at, first, now):
                    more = keys
            if not there and not len(more):
                continue
            if rank.instance.index_state(rank.number) == "unknown" or not trusted(*at):
                continue
            block_size, _ = shape_of(at, USUAL_BLOCK_SIZE)
            limit = reusable // block_size * block_size
            if there < limit and len(more):
                there = max(there, block_size * self._predicted.prefix_blocks(*at, more, now))
            yield place, min(there, limit)

    def look_for_decode(
        self, question: Question, now: float, constraints: Constraints, prefilled_on: Candidate
    ) -> View:
        """The candidates for a decode leg; the prefill leg is done, on `prefilled_on`."""
        decode = self._candidates(Phase.DECODE, self._look(question, now, constraints))
        return self._view(question, now, (prefilled_on,), decode)

    def as_known_now(self, candidate: Candidate) -> Candidate:
        """A candidate that may have been kept, with what has changed meanwhile."""
        instance = self._fleet.get(candidate.instance)
        if instance is None:
            raise RuntimeError(f"{candidate.instance} was removed while a decision was made")
        index = instance.index_state(candidate.rank)
        trusted = self._accuracy.trusted(candidate.instance, candidate.rank)
        if index == candidate.index and trusted is candidate.trusted:
            return candidate
        return msgspec.structs.replace(candidate, index=index, trusted=trusted)

    def block_size(self, address: str, rank: int) -> int:
        """The block size of a rank in tokens; the usual one while it has stored no block."""
        return self._index.block_size(address, rank) or USUAL_BLOCK_SIZE

    def block_keys(self, prompt: Prompt | None) -> Sequence[int]:
        """The keys of a prompt's blocks of the usual size, which no engine need have; none if it is not
        known.
        """
        return () if prompt is None else self._index.keys(prompt, _NO_INSTANCE, 0, USUAL_BLOCK_SIZE)

    def _view(
        self,
        question: Question,
        now: float,
        prefill: Sequence[Candidate],
        decode: Sequence[Candidate],
        *,
        complete: bool = True,
    ) -> View:
        return View(
            question.model,
            question.prompt_tokens,
            prefill,
            decode,
            whole=question.whole,
            complete=complete,
            session=question.session,
            find_keys=no_keys if question.prompt is None else partial(self.block_keys, question.prompt),
            estimated_tokens=question.length_tokens or question.estimated_tokens,
            now=now,
            latency=None if self._outlook is None else self._outlook.latency,
        )

    def _look(self, question: Question, now: float, constraints: Constraints) -> _Look:
        prompt = question.prompt
        wanted, length = wanted_tokens(question), question.length_tokens
        adapter = None
        if self._outlook is not None and self._fleet.is_adapter(question.model):
            adapter = question.model
        if prompt is None:
            return _Look(question, constraints, now, wanted, length, {}, {}, adapter)
        cached = self._index.match_tier(prompt, MAIN_TIER)
        slower: Mapping[tuple[str, int], Mapping[str, int]] = {}
        if self._tier_costs and not question.whole:
            slower = self._index.match_slower(prompt, tuple(self._tier_costs), MAIN_TIER)
        return _Look(question, constraints, now, wanted, length, cached, slower, adapter)

    # -- all candidates -----------------------------------------------------------------------------------

    def _candidates(self, phase: Phase, look: _Look) -> Sequence[Candidate]:
        found: list[Candidate] = []
        need = need_of(self._fleet, look.question)
        for instance, ranks in self._standing.ranks(phase):
            why = instance.why_unusable(look.question.model)
            if why is None and not need.fits(instance):
                why = Why.TOO_LONG
            if why is None and look.question.only not in {None, instance.address}:
                why = Why.ELSEWHERE
            if why is None and instance.says_full(look.now):
                why = Why.SAYS_FULL
            found += [self._candidate(rank, phase, look, why) for rank in ranks]
        constraints = look.constraints
        if phase is Phase.DECODE and constraints.prefill_on is not None:
            constraints = constraints._replace(prefill_on=None)
        return eligible(found, self._fleet.set_aside(phase, look.now), constraints)

    # -- those that are as good as any --------------------------------------------------------------------

    def _glance(self, look: _Look) -> View | None:
        """The candidates that would be usable among all; None if that cannot be told without the others."""
        question = look.question
        failed, tried, prefill_on, over_limit, _ = look.constraints
        if failed or tried or prefill_on is not None or over_limit or question.only is not None:
            return None
        prefill: Sequence[Candidate] = ()
        needless = False
        if not question.whole:
            prefill = self._as_good_as_any(Phase.PREFILL, look)
            if not prefill:
                return None
            needless = prefill[0].serves_all and all(c.serves_all for c in prefill)
        decode = () if needless else self._as_good_as_any(Phase.DECODE, look)
        if not decode and not needless:
            return None
        return self._view(question, look.now, prefill, decode, complete=False)

    def _as_good_as_any(self, phase: Phase, look: _Look) -> Sequence[Candidate]:
        """Those that are well, fit and have room: where there are any, `eligible` leaves no others usable."""
        question, ranks = look.question, self._well(phase, look)
        may_be_full = self._limited or bool(look.constraints.kept)
        if self._keeps and not may_be_full and question.prompt is None and look.length_tokens is None:
            return [r.kept if r.kept_at == r.load.changes else self._keep(r) for r in ranks]
        found = [self._candidate(rank, phase, look, None) for rank in ranks]
        return [c for c in found if c.usable] if may_be_full else found

    def _well(self, phase: Phase, look: _Look) -> Sequence[Rank]:
        """Those that are well and fit, whether or not they have room."""
        served = self._standing.served(phase, look.question.model)
        ranks = self._standing.well(phase, served, look.now)
        if served.shortest_context < look.wanted_tokens:
            need = need_of(self._fleet, look.question)
            ranks = [rank for rank in ranks if need.fits(rank.instance)]
        return ranks

    def _keep(self, rank: Rank) -> Candidate:
        """What `_candidate` makes of one that is well, for a request of whose prompt nothing is known."""
        load = rank.load
        rank.kept_at = load.changes
        rank.kept = kept = Candidate(
            rank.address,
            rank.number,
            usable=True,
            why=None,
            cached_tokens=None,
            expected_tokens=None,
            uncached_tokens=None,
            load_tokens=load.tokens,
            index=rank.instance.index_state(rank.number),
            last_pick=load.last_pick,
            trusted=self._accuracy.trusted(rank.address, rank.number),
            weight_tokens=load.weight_tokens,
            serves_all=rank.serves_all,
            running_legs=load.legs,
            prefill_tokens=load.prefill_tokens,
            decode_tokens=load.decode_tokens,
        )
        return kept

    # -- one of them --------------------------------------------------------------------------------------

    def _candidate(self, rank: Rank, phase: Phase, look: _Look, why: Why | None) -> Candidate:
        """One rank of an instance; `why`: why the instance is not usable, None if it is, given room."""
        question, at = look.question, rank.at
        index = rank.instance.index_state(rank.number)
        trusted = self._accuracy.trusted(*at)
        reused = expected = doubted = None
        if question.prompt is not None and index != "unknown":
            reused, expected = self._reuse(at, question.prompt, look)
            if not trusted:
                doubted, reused, expected = reused, None, None
        reload, reload_cost = 0, 0.0
        if phase is Phase.PREFILL and (slower := look.slower.get(at)) is not None:
            reload, reload_cost = self._reload(slower, reused, expected)
        length = look.length_tokens
        uncached = None if length is None else length - (expected or 0) - reload
        own, loads = rank.load, self._loads
        load = own if loads is None else loads(rank.instance, phase, rank.number)
        fits = not (look.constraints.kept and _is_kept(rank, phase, look.constraints.kept))
        if fits and (most := self._most_tokens[rank.limited]):
            weight_tokens = question.leg_weight_tokens(rank.limited, uncached)
            # An idle one takes any amount.
            fits = load.weight_tokens == 0 or load.weight_tokens + weight_tokens <= most
        ahead = NOTHING_AHEAD if self._outlook is None else self._outlook.of(rank, look.now)
        return Candidate(
            rank.address,
            rank.number,
            why is None and (fits or look.constraints.over_limit),
            why if why is not None or fits else Why.FULL,
            cached_tokens=reused,
            expected_tokens=expected,
            uncached_tokens=uncached,
            load_tokens=load.tokens,
            index=index,
            last_pick=own.last_pick,
            trusted=trusted,
            doubted_tokens=doubted,
            reload_tokens=reload,
            reload_cost_tokens=reload_cost,
            weight_tokens=load.weight_tokens,
            serves_all=rank.serves_all,
            running_legs=load.legs,
            prefill_tokens=load.prefill_tokens,
            decode_tokens=load.decode_tokens,
            wait_ms=ahead.wait_ms + self._slot_ms(rank, look),
            sequences=ahead.sequences,
            context_tokens=ahead.context_tokens,
            kv_use=ahead.kv_use,
        )

    def _reuse(self, at: tuple[str, int], prompt: Prompt, look: _Look) -> tuple[int, int]:
        """Cached tokens by the index, and the same with predicted blocks."""
        cached = look.cached.get(at, 0)
        awaited = self._predicted.any(*at)
        if not cached and not awaited:
            return 0, 0
        block_size = self.block_size(*at)
        # The last token is always computed, so of a prompt that is cached whole the last block is not reused.
        limit = look.question.reusable_tokens // block_size * block_size
        there = min(cached, limit)
        if there == limit or not awaited:  # no more can be expected
            return there, there
        keys = self._index.keys(prompt, *at, USUAL_BLOCK_SIZE)
        ahead = self._predicted.prefix_blocks(*at, keys, look.now)
        return there, max(there, min(ahead * block_size, limit))

    def _reload(
        self, slower: Mapping[str, int], reused: int | None, expected: int | None
    ) -> tuple[int, float]:
        """Tokens to reload from slower tiers, less those expected in the main tier, and what that costs."""
        if reused is None or expected is None:
            return 0, 0.0
        there = sum(slower.values())
        left = max(0, there - (expected - reused))
        return left, sum(self._tier_costs[tier] * tokens for tier, tokens in slower.items()) * left / there


def _is_kept(rank: Rank, phase: Phase, kept: Collection[tuple[Phase, str]]) -> bool:
    """Whether the room of a rank's instance is kept for other requests."""
    phases = Phase if rank.serves_all else (phase,)
    return any((each, rank.address) in kept for each in phases)
