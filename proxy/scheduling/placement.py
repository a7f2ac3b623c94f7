"""Where a request could go and where it goes: the one place in which fleet, index and predictions meet."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from kvevents import PrefixIndex, Prompt
from proxy.caches.accuracy import Accuracy, Comparison
from proxy.caches.expected import PredictedBlocks
from proxy.config import MAIN_TIER, Admission
from proxy.fleet.instances import Claim, Fleet, Instance
from proxy.fleet.why import ASIDE, NO_ROOM, Why
from proxy.phases import Phase, Role
from proxy.scheduling.decision import Decision, Pick, pick
from proxy.scheduling.lengths import Need
from proxy.scheduling.types import Candidate, Leg, Policy

USUAL_BLOCK_SIZE = 16
"""vLLM's default, for predictions about an instance that has not stored a block yet."""


class Question(msgspec.Struct, frozen=True):
    """What placement needs to know of a request."""

    model: str
    prompt: Prompt | None
    """The prompt as the engines see it; None if it is not known."""
    estimated_tokens: int
    """Its length for load counting where it is not known."""
    whole: bool = False
    """It cannot be split into two legs."""
    prefix_only: bool = False
    """More follows what is known of the prompt."""
    answer_tokens: int = 1
    """How long its answer may become: that much room is wanted for it."""
    limited_by: str | None = None
    """The member that says so; None if nobody did."""
    generated_tokens: int = 0
    """What its answers count for in the limits of decode instances and in its client's turns (`proxy.request.weights`)."""

    @property
    def prompt_tokens(self) -> int | None:
        """The prompt's length in tokens; None if it is not known."""
        return None if self.prompt is None or self.prefix_only else len(self.prompt.token_ids)

    @property
    def length_tokens(self) -> int | None:
        """The prompt's length for what it costs to compute, estimated if only its beginning is known."""
        return self.estimated_tokens if self.prefix_only else self.prompt_tokens

    @property
    def weight_tokens(self) -> int:
        """What it weighs, all in all."""
        return (self.prompt_tokens or self.estimated_tokens) + self.generated_tokens

    @property
    def reusable_tokens(self) -> int:
        """How many tokens of what is known may be reused at most: the last one of a prompt is always computed."""
        known = 0 if self.prompt is None else len(self.prompt.token_ids)
        return known if self.prefix_only else max(0, known - 1)


class _Room(NamedTuple):
    """How strictly the limits of instances are kept for one request."""

    over_limit: bool = False
    kept: Collection[tuple[Phase, str]] = ()

    def is_kept(self, phase: Phase, instance: Instance) -> bool:
        return any(
            (each, instance.address) in self.kept
            for each in (Phase if instance.role is Role.BOTH else (phase,))
        )


class Placement:
    """Answers questions with decisions and keeps the claims and predictions that follow from them."""

    def __init__(
        self,
        fleet: Fleet,
        index: PrefixIndex,
        policy: Policy,
        policy_name: str,
        *,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        limits: Admission | None = None,
        accuracy: Accuracy | None = None,
        tier_costs: Mapping[str, float] | None = None,
    ) -> None:
        """`limits` says how many outstanding tokens an instance takes; None: any number. `accuracy` tells whom of the
        ranks to trust.

        `tier_costs`: what reloading a token from a slower tier costs, in computed tokens; tiers that are not named,
        and those that cost as much as computing, do not count.
        """
        self._fleet = fleet
        self._index = index
        self._policy = policy
        self._policy_name = policy_name
        self._predicted = PredictedBlocks()
        self._accuracy = accuracy or Accuracy(index.holds)
        self._clock = clock
        worth = sorted((cost, tier) for tier, cost in (tier_costs or {}).items() if cost < 1)
        self._tier_costs = {tier: cost for cost, tier in worth}  # the cheapest first
        limits = limits or Admission()
        self._most_tokens = {
            Phase.PREFILL: limits.max_prefill_tokens,
            Phase.DECODE: limits.max_decode_tokens,
        }
        self._rng = rng or random.Random()  # noqa: S311  # ties between instances are no secret

    def decide(
        self,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
        over_limit: bool = False,
        kept: Collection[tuple[Phase, str]] = (),
    ) -> Decision:
        """Place both legs. `failed` instances are used only if there is no other; `prefill_on` is preferred.

        Before one that failed twice (a Counter tells) one that says it is full is waited for.

        Instances without room for the leg, and those `kept` for others, are not used; with `over_limit` they are
        if there is no other. Those that say themselves that they are full are not used in any case.
        """
        room = _Room(over_limit, kept)
        prefill = self._pick(Phase.PREFILL, question, failed, room, prefer=prefill_on)
        chosen = prefill.chosen
        instance = self._fleet.get(chosen.instance) if chosen is not None else None
        if question.whole or (instance is not None and instance.role is Role.BOTH):
            return self._one_leg(question, failed, room, prefill)
        decode = self._pick(Phase.DECODE, question, failed, room)
        return Decision(self._policy_name, question.prompt_tokens, prefill, decode)

    def decide_decode(
        self, question: Question, decision: Decision, *, failed: Collection[str], tried: Collection[str]
    ) -> Decision:
        """Place the decode leg anew, where there is room if anywhere; the prefill leg has been done.

        `failed` instances are used only if there is no other, `tried` ones not at all.
        """
        decode = self._pick(Phase.DECODE, question, failed, _Room(over_limit=True), never=tried)
        return msgspec.structs.replace(decision, decode=decode)

    def _one_leg(self, question: Question, failed: Collection[str], room: "_Room", prefill: Pick) -> Decision:
        """One instance serves it all: the one picked for prefill if it does both, else a decode instance."""
        both = prefill.chosen is not None and not question.whole
        only = prefill if both else self._pick(Phase.DECODE, question, failed, room)
        return Decision(self._policy_name, question.prompt_tokens, only, only)

    def _pick(
        self,
        phase: Phase,
        question: Question,
        failed: Collection[str],
        room: "_Room",
        prefer: str | None = None,
        never: Collection[str] = (),
    ) -> Pick:
        candidates = [
            _set_aside(c, Why.FAILED) if c.usable and c.instance in never else c
            for c in self._candidates(phase, question, room)
        ]
        leg = Leg(phase, question.model, question.prompt_tokens)
        aside = self._fleet.set_aside(phase, self._clock())

        def gravity(candidate: Candidate) -> tuple[int, bool]:
            why = aside.get(candidate.instance)
            if candidate.why is Why.SAYS_FULL:  # no better than one that starts slowly and has room
                why = why or ASIDE[0]
            return 0 if why is None else 1 + ASIDE.index(why), candidate.why in NO_ROOM

        def least_grave(some: list[Candidate]) -> list[Candidate]:
            least = min(map(gravity, some), default=None)
            return [c for c in some if gravity(c) == least]

        # A full one counts: what is worse than it is not used while there is reason to wait for room there.
        there = [c for c in candidates if c.usable or c.why in NO_ROOM]
        best = [c for c in candidates if c.usable and c.instance == prefer and gravity(c) == (0, False)]
        best = best or least_grave([c for c in there if c.instance not in failed])
        if all(
            c.why is Why.SAYS_FULL for c in best
        ):  # one that failed once and is well is worth more than a wait
            times = Counter(failed)
            best = least_grave([c for c in there if times[c.instance] < 2]) or least_grave(there)
        if best:
            kept = {c.instance for c in best}
            candidates = [
                c
                if c.instance in kept or c.why is Why.SAYS_FULL or not (c.usable or c.why is Why.FULL)
                else _set_aside(c, aside.get(c.instance, c.why or Why.FAILED))
                for c in candidates
            ]
        return pick(self._policy, leg, candidates, self._rng)

    def _candidates(self, phase: Phase, question: Question, room: "_Room") -> list[Candidate]:
        prompt = question.prompt
        match = self._index.match(prompt) if prompt is not None else {}
        cached = {(s.instance, s.rank): tokens for s, tokens in match.items() if s.tier == MAIN_TIER}
        slower: dict[tuple[str, int], dict[str, int]] = {}
        if prompt is not None and phase is Phase.PREFILL and self._tier_costs:
            slower = self._index.match_slower(prompt, tuple(self._tier_costs), MAIN_TIER)
        found = []
        need = self.need(question)
        now = self._clock()
        for instance in self._fleet.of(phase):
            why = instance.why_unusable(question.model)
            if why is None and not need.fits(instance):
                why = Why.TOO_LONG
            if why is None and instance.says_full(now):
                why = Why.SAYS_FULL
            for rank in instance.ranks:
                reused, expected = self._reuse(instance, rank, question, cached)
                trusted, doubted = self._accuracy.trusted(instance.address, rank), None
                if not trusted:
                    doubted, reused, expected = reused, None, None
                length = question.length_tokens
                reload, reload_cost = self._reload(slower.get((instance.address, rank)), reused, expected)
                uncached = None if length is None else length - (expected or 0) - reload
                # What an instance that does both serves is one leg, which lasts as long as a decode leg does.
                limited = Phase.DECODE if instance.role is Role.BOTH else phase
                weight = _leg_weight(limited, uncached, question)
                fits = not room.is_kept(phase, instance) and self._has_room(instance, rank, limited, weight)
                found.append(
                    Candidate(
                        instance=instance.address,
                        rank=rank,
                        usable=why is None and (fits or room.over_limit),
                        why=why if why is not None or fits else Why.FULL,
                        cached_tokens=reused,
                        expected_tokens=expected,
                        uncached_tokens=uncached,
                        load_tokens=instance.load_tokens(phase, rank),
                        index=instance.index_state(rank),
                        last_pick=instance.last_pick.get((phase, rank), 0),
                        trusted=trusted,
                        doubted_tokens=doubted,
                        reload_tokens=reload,
                        reload_cost_tokens=reload_cost,
                        weight_tokens=instance.weight_tokens(phase, rank),
                    )
                )
        return found

    def need(self, question: Question) -> Need:
        """The context that the legs of a request need."""
        return Need(
            self._fleet,
            question.model,
            question.prompt_tokens,
            question.answer_tokens,
            question.limited_by,
            whole=question.whole,
        )

    def _reuse(
        self,
        instance: Instance,
        rank: int,
        question: Question,
        cached: dict[tuple[str, int], int],
    ) -> tuple[int | None, int | None]:
        """Tokens the index says are reused, and those with the predicted blocks; None where not known."""
        prompt = question.prompt
        if prompt is None or instance.index_state(rank) == "unknown":
            return None, None
        block_size = self._block_size(instance.address, rank)
        keys = self._index.keys(prompt, instance.address, rank, USUAL_BLOCK_SIZE)
        ahead = self._predicted.prefix_blocks(instance.address, rank, keys, self._clock())
        # The last token is always computed, so a prompt that is cached whole still misses its last block.
        limit = question.reusable_tokens // block_size * block_size
        now = min(cached.get((instance.address, rank), 0), limit)
        return now, max(now, min(ahead * block_size, limit))

    def _reload(
        self, slower: Mapping[str, int] | None, reused: int | None, expected: int | None
    ) -> tuple[int, float]:
        """Tokens to be reloaded from slower tiers, and what that costs; less what is expected to be there sooner."""
        if slower is None or reused is None or expected is None:
            return 0, 0.0
        told = sum(slower.values())
        left = max(0, told - (expected - reused))
        return left, sum(self._tier_costs[tier] * tokens for tier, tokens in slower.items()) * left / told

    def _has_room(self, instance: Instance, rank: int, phase: Phase, weight: int) -> bool:
        """Whether a rank may be given so much more; one that is idle takes any amount."""
        most = self._most_tokens[phase]
        there = instance.weight_tokens(phase, rank) if most else 0
        return there == 0 or there + weight <= most

    def _block_size(self, address: str, rank: int) -> int:
        return self._index.block_size(address, rank) or USUAL_BLOCK_SIZE

    def claim(self, candidate: Candidate, phase: Phase, question: Question) -> Claim:
        """Count a leg on the candidate that was chosen for it. Raises KeyError if the instance is gone."""
        tokens = _leg_tokens(phase, candidate.uncached_tokens, question)
        weight = _leg_weight(phase, candidate.uncached_tokens, question)
        return self._fleet.claim(candidate.instance, candidate.rank, phase, tokens, weight)

    def expect(self, candidate: Candidate, question: Question) -> Callable[[bool], None]:
        """Predict the prompt's blocks on the chosen prefill candidate.

        Call what is returned when the leg has ended, with whether the blocks were computed.
        """
        if question.prompt is None:
            return lambda _came: None
        keys = self._index.keys(question.prompt, candidate.instance, candidate.rank, USUAL_BLOCK_SIZE)
        self._predicted.expect(candidate.instance, candidate.rank, keys)

        def settle(came: bool) -> None:
            self._predicted.settle(candidate.instance, candidate.rank, keys, self._clock(), came=came)

        return settle

    def compare(self, candidate: Candidate, question: Question) -> Comparison | None:
        """A leg goes to the candidate now: what the index said will be compared with what its engine reports.

        None if nothing was said, as the prompt is not known. Otherwise it is to be dropped in the end.
        """
        if question.prompt is None:
            return None
        prompt, at = question.prompt, (candidate.instance, candidate.rank)

        def blocks() -> tuple[int, Sequence[int]]:
            return self._block_size(*at), self._index.keys(prompt, *at, USUAL_BLOCK_SIZE)

        block_size, keys = blocks()
        said = candidate.cached_tokens if candidate.trusted else candidate.doubted_tokens
        return self._accuracy.begin(
            candidate.instance,
            candidate.rank,
            index=candidate.index,
            predicted_tokens=said or 0,
            block_size=block_size,
            keys=keys,
            learned=blocks if self._index.block_size(*at) is None else None,
            goes_on=question.prefix_only,
        )

    def forget(self, address: str) -> None:
        """Drop what was predicted for an instance that lost its cache or left."""
        self._predicted.forget(address)
        if self._fleet.get(address) is None:
            self._accuracy.forget(address)


def _leg_tokens(phase: Phase, uncached: int | None, question: Question) -> int:
    """What a leg adds to the outstanding tokens of its instance, which policies weigh against those cached there.

    Answers add nothing: nobody knows their length, and a guess would move prompts away from their caches.
    """
    if phase is Phase.PREFILL and uncached is not None:
        return uncached
    return question.prompt_tokens or question.estimated_tokens


def _leg_weight(phase: Phase, uncached: int | None, question: Question) -> int:
    """What a leg takes of the limit of its instance."""
    tokens = _leg_tokens(phase, uncached, question)
    return tokens + question.generated_tokens if phase is Phase.DECODE else tokens


def _set_aside(candidate: Candidate, why: Why) -> Candidate:
    return msgspec.structs.replace(candidate, usable=False, why=why)
