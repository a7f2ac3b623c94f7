"""A decision rests on one look at the fleet: the index is asked once, and all candidates are of the same
moment.

Loads are passed in: nothing here assumes that this process sees all traffic.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from kvevents import PrefixIndex
from proxy.caches.accuracy import Accuracy
from proxy.caches.expected import PredictedBlocks
from proxy.config import MAIN_TIER, Admission
from proxy.fleet import Fleet, Instance
from proxy.fleet.why import Why
from proxy.phases import Phase, Role
from proxy.scheduling.eligible import eligible
from proxy.scheduling.lengths import Need, need_of
from proxy.scheduling.question import Constraints, Question
from proxy.scheduling.types import Candidate, View

USUAL_BLOCK_SIZE = 16
"""vLLM's default block size in tokens, assumed of an instance that has not stored a block yet."""


class Load(NamedTuple):
    """What runs on one rank, for legs of one phase."""

    tokens: int
    """Outstanding tokens, as policies see them."""
    weight_tokens: int
    """Tokens that count against the rank's limit."""


def own_load(instance: Instance, phase: Phase, rank: int) -> Load:
    """The load of the legs that this process has claimed."""
    return Load(instance.load_tokens(phase, rank), instance.weight_tokens(phase, rank))


class _Look(NamedTuple):
    """Everything that is the same for all candidates of a question."""

    question: Question
    constraints: Constraints
    now: float
    need: Need
    cached: Mapping[tuple[str, int], int]
    """Cached tokens of the prompt in the main tier by the index, by instance and rank."""
    slower: Mapping[tuple[str, int], Mapping[str, int]]
    """Tokens behind those that only slower tiers have, by instance and rank, then by tier."""


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
    ) -> None:
        """The arguments are those of `Placement`. `loads`: all that runs on a rank, whoever sent it there."""
        self._fleet = fleet
        self._index = index
        self._predicted = predicted
        self._accuracy = accuracy
        worth = sorted((cost, tier) for tier, cost in tier_costs.items() if cost < 1)
        self._tier_costs = {tier: cost for cost, tier in worth}  # the cheapest first
        self._most_tokens = {
            Phase.PREFILL: limits.max_prefill_tokens,
            Phase.DECODE: limits.max_decode_tokens,
        }
        self._loads = loads

    def look(self, question: Question, now: float, constraints: Constraints) -> View:
        """The candidates for both legs. There are none for prefill if the request is served whole, and none
        for decode if every usable candidate for prefill would serve it by itself.
        """
        look = self._look(question, now, constraints)
        prefill = () if question.whole else self._candidates(Phase.PREFILL, look)
        alone = [c.serves_all for c in prefill if c.usable]
        needless = bool(alone) and all(alone)
        decode = () if needless else self._candidates(Phase.DECODE, look)
        return View(question.model, question.prompt_tokens, prefill, decode, whole=question.whole)

    def look_for_decode(
        self, question: Question, now: float, constraints: Constraints, prefilled_on: Candidate
    ) -> View:
        """The candidates for a decode leg; the prefill leg is done, on `prefilled_on`."""
        decode = self._candidates(Phase.DECODE, self._look(question, now, constraints))
        return View(question.model, question.prompt_tokens, (prefilled_on,), decode)

    def block_size(self, address: str, rank: int) -> int:
        """The block size of a rank in tokens; the usual one while it has stored no block."""
        return self._index.block_size(address, rank) or USUAL_BLOCK_SIZE

    def _look(self, question: Question, now: float, constraints: Constraints) -> _Look:
        prompt, need = question.prompt, need_of(self._fleet, question)
        if prompt is None:
            return _Look(question, constraints, now, need, {}, {})
        match = self._index.match(prompt)
        cached = {(s.instance, s.rank): tokens for s, tokens in match.items() if s.tier == MAIN_TIER}
        slower: Mapping[tuple[str, int], Mapping[str, int]] = {}
        if self._tier_costs and not question.whole:
            slower = self._index.match_slower(prompt, tuple(self._tier_costs), MAIN_TIER)
        return _Look(question, constraints, now, need, cached, slower)

    def _candidates(self, phase: Phase, look: _Look) -> Sequence[Candidate]:
        found: list[Candidate] = []
        for instance in self._fleet.of(phase):
            why = instance.why_unusable(look.question.model)
            if why is None and not look.need.fits(instance):
                why = Why.TOO_LONG
            if why is None and instance.says_full(look.now):
                why = Why.SAYS_FULL
            found += [self._candidate(instance, rank, phase, look, why) for rank in instance.ranks]
        constraints = look.constraints
        if phase is Phase.DECODE and constraints.prefill_on is not None:
            constraints = constraints._replace(prefill_on=None)
        return eligible(found, self._fleet.set_aside(phase, look.now), constraints)

    def _candidate(
        self, instance: Instance, rank: int, phase: Phase, look: _Look, why: Why | None
    ) -> Candidate:
        """One rank of an instance; `why`: why the instance is not usable, None if it is, given room."""
        question, at = look.question, (instance.address, rank)
        reused, expected = self._reuse(instance, rank, look)
        trusted, doubted = self._accuracy.trusted(*at), None
        if not trusted:
            doubted, reused, expected = reused, None, None
        length = question.length_tokens
        slower = look.slower.get(at) if phase is Phase.PREFILL else None
        reload, reload_cost = self._reload(slower, reused, expected)
        uncached = None if length is None else length - (expected or 0) - reload
        both = instance.role is Role.BOTH
        # An instance that does both serves the request in one leg, which weighs as much as a decode leg.
        limited = Phase.DECODE if both else phase
        load = self._loads(instance, phase, rank)
        kept = _is_kept(instance, phase, look.constraints.kept)
        fits = not kept and self._has_room(limited, load, question.leg_weight_tokens(limited, uncached))
        return Candidate(
            instance=instance.address,
            rank=rank,
            usable=why is None and (fits or look.constraints.over_limit),
            why=why if why is not None or fits else Why.FULL,
            cached_tokens=reused,
            expected_tokens=expected,
            uncached_tokens=uncached,
            load_tokens=load.tokens,
            index=instance.index_state(rank),
            last_pick=instance.load.on(phase, rank).last_pick,
            trusted=trusted,
            doubted_tokens=doubted,
            reload_tokens=reload,
            reload_cost_tokens=reload_cost,
            weight_tokens=load.weight_tokens,
            serves_all=both,
        )

    def _reuse(self, instance: Instance, rank: int, look: _Look) -> tuple[int | None, int | None]:
        """Cached tokens by the index, and the same with predicted blocks; None if they are not known."""
        question, prompt = look.question, look.question.prompt
        if prompt is None or instance.index_state(rank) == "unknown":
            return None, None
        block_size = self.block_size(instance.address, rank)
        # The last token is always computed, so of a prompt that is cached whole the last block is not reused.
        limit = question.reusable_tokens // block_size * block_size
        there = min(look.cached.get((instance.address, rank), 0), limit)
        if there == limit:  # no more can be expected
            return there, there
        keys = self._index.keys(prompt, instance.address, rank, USUAL_BLOCK_SIZE)
        ahead = self._predicted.prefix_blocks(instance.address, rank, keys, look.now)
        return there, max(there, min(ahead * block_size, limit))

    def _reload(
        self, slower: Mapping[str, int] | None, reused: int | None, expected: int | None
    ) -> tuple[int, float]:
        """Tokens to reload from slower tiers, less those expected in the main tier, and what that costs."""
        if slower is None or reused is None or expected is None:
            return 0, 0.0
        there = sum(slower.values())
        left = max(0, there - (expected - reused))
        return left, sum(self._tier_costs[tier] * tokens for tier, tokens in slower.items()) * left / there

    def _has_room(self, phase: Phase, load: Load, weight_tokens: int) -> bool:
        """Whether a rank has room for `weight_tokens` more; an idle one takes any amount."""
        most = self._most_tokens[phase]
        return not most or load.weight_tokens == 0 or load.weight_tokens + weight_tokens <= most


def _is_kept(instance: Instance, phase: Phase, kept: Collection[tuple[Phase, str]]) -> bool:
    """Whether the room of an instance is kept for other requests."""
    phases = Phase if instance.role is Role.BOTH else (phase,)
    return bool(kept) and any((each, instance.address) in kept for each in phases)
