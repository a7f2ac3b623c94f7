"""One look at the fleet for a question: the index is asked once, at one moment, and what is decided is
decided by it.

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
"""vLLM's default, for predictions about an instance that has not stored a block yet."""


class Load(NamedTuple):
    """What runs on one rank, for legs of one phase."""

    tokens: int
    """Outstanding tokens, as policies weigh them."""
    weight_tokens: int
    """What they take of the rank's limit."""


def own_load(instance: Instance, phase: Phase, rank: int) -> Load:
    """What this process runs there."""
    return Load(instance.load_tokens(phase, rank), instance.weight_tokens(phase, rank))


class _Look(NamedTuple):
    """What is the same for all candidates of a question."""

    question: Question
    constraints: Constraints
    now: float
    need: Need
    cached: Mapping[tuple[str, int], int]
    """What the index says of the prompt, by instance and rank: tokens in the main tier."""
    slower: Mapping[tuple[str, int], Mapping[str, int]]
    """Tokens behind them that only slower tiers have, by tier."""


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
        """As `Placement`. `loads` tells what runs on a rank of an instance, whoever sent it there."""
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
        """The candidates of both legs; of a request that is served whole, those for decode alone.

        Nor are there any for decode where all that could prefill serve the request by themselves.
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
        """The same for a decode leg whose prefill leg is done."""
        decode = self._candidates(Phase.DECODE, self._look(question, now, constraints))
        return View(question.model, question.prompt_tokens, (prefilled_on,), decode)

    def block_size(self, address: str, rank: int) -> int:
        """Tokens a block of a rank; the usual number while it has stored none."""
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
        """One rank of an instance that is not usable for the reason given; None: it is, if it has room."""
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
        # What an instance that does both serves is one leg, which lasts as long as a decode leg does.
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
            last_pick=instance.load.last_pick.get((limited, rank), 0),
            trusted=trusted,
            doubted_tokens=doubted,
            reload_tokens=reload,
            reload_cost_tokens=reload_cost,
            weight_tokens=load.weight_tokens,
            serves_all=both,
        )

    def _reuse(self, instance: Instance, rank: int, look: _Look) -> tuple[int | None, int | None]:
        """Tokens the index says are reused, and those with the predicted blocks; None where not known."""
        question, prompt = look.question, look.question.prompt
        if prompt is None or instance.index_state(rank) == "unknown":
            return None, None
        block_size = self.block_size(instance.address, rank)
        # The last token is always computed, so a prompt that is cached whole still misses its last block.
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
        """Tokens to be reloaded from slower tiers, and what that costs; less what is expected to be there
        sooner.
        """
        if slower is None or reused is None or expected is None:
            return 0, 0.0
        told = sum(slower.values())
        left = max(0, told - (expected - reused))
        return left, sum(self._tier_costs[tier] * tokens for tier, tokens in slower.items()) * left / told

    def _has_room(self, phase: Phase, load: Load, weight_tokens: int) -> bool:
        """Whether a rank may be given so much more; one that is idle takes any amount."""
        most = self._most_tokens[phase]
        return not most or load.weight_tokens == 0 or load.weight_tokens + weight_tokens <= most


def _is_kept(instance: Instance, phase: Phase, kept: Collection[tuple[Phase, str]]) -> bool:
    """Whether its room is kept for others."""
    phases = Phase if instance.role is Role.BOTH else (phase,)
    return bool(kept) and any((each, instance.address) in kept for each in phases)
