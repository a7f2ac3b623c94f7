"""A question becomes a decision, and a decision claims and predictions: the one place in which these meet."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import msgspec

from kvevents import PrefixIndex
from proxy.caches.accuracy import Accuracy, Comparison
from proxy.caches.expected import PredictedBlocks
from proxy.config import Admission
from proxy.fleet import Claim, Fleet, Instance
from proxy.phases import Phase
from proxy.scheduling.decision import Chooser, Decision
from proxy.scheduling.legs import ByLeg
from proxy.scheduling.lengths import Need, need_of
from proxy.scheduling.pairs import ByPair
from proxy.scheduling.question import Constraints, Question
from proxy.scheduling.types import AnyPolicy, Candidate, LegPolicy, Policy, reads_prompt
from proxy.scheduling.view import USUAL_BLOCK_SIZE, Load, Viewer, own_load


class Expectation:
    """Blocks that a leg will bring to a rank; settled once."""

    __slots__ = ("_settle",)

    def __init__(self, settle: Callable[[bool], None] | None = None) -> None:
        """`settle` is told whether they were computed; None where no prompt is known, so none is expected."""
        self._settle = settle

    def settle(self, *, came: bool) -> None:
        """The leg has ended; `came`: the blocks were computed. A second call does nothing."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(came)


class Placement:
    """Answers questions with decisions and keeps the claims and predictions that follow from them."""

    def __init__(
        self,
        fleet: Fleet,
        index: PrefixIndex,
        policy: AnyPolicy,
        policy_name: str,
        *,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        limits: Admission | None = None,
        accuracy: Accuracy | None = None,
        tier_costs: Mapping[str, float] | None = None,
        loads: Callable[[Instance, Phase, int], Load] = own_load,
    ) -> None:
        """`policy` prices pairs if it can, else legs.

        `limits` says how many outstanding tokens an instance takes; None: any number. `accuracy` tells which
        ranks to trust, `loads` what runs on a rank for legs of a phase.

        `tier_costs`: what reloading a token from a slower tier costs, in computed tokens; tiers that are not
        named, and those that cost as much as computing, do not count.
        """
        self._fleet = fleet
        self._index = index
        self._chooser = _chooser(policy)
        self._policy_name = policy_name
        limits = limits or Admission()
        self._prompt_counts = bool(
            reads_prompt(policy) or limits.max_prefill_tokens or limits.max_decode_tokens
        )
        self._predicted = PredictedBlocks()
        self._accuracy = accuracy or Accuracy(index.holds)
        self._clock = clock
        self._viewer = Viewer(
            fleet,
            index,
            self._predicted,
            self._accuracy,
            limits=limits,
            tier_costs=tier_costs or {},
            loads=loads,
        )
        self._rng = rng or random.Random()  # noqa: S311  # ties between instances are no secret

    @property
    def reads_prompt(self) -> bool:
        """Whether where a request goes, or when, depends on its prompt's tokens.

        It does if the policy reads them, if there are limits of tokens, whose promise an estimate does not
        keep, and while engines have contexts of different lengths, so that a leg must go where it fits. Where
        all have the same, an engine refuses what is too long in the same words itself.

        Nothing else of a request needs them, but what tells of prompts has nothing to tell where they are not
        found out: `/explain`, the comparison of the index with what engines report (`compare`), the healing
        of partial ranks, the check of our own counts, `cached` in the access log and headers, and the blocks
        that a recorder of traffic keeps. Loads and the turns of clients then count estimates.
        """
        return self._prompt_counts or self._fleet.contexts_differ

    def decide(
        self,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
        over_limit: bool = False,
        kept: Collection[tuple[Phase, str]] = (),
    ) -> Decision:
        """Place both legs, within these `Constraints`."""
        constraints = Constraints(failed, prefill_on=prefill_on, over_limit=over_limit, kept=kept)
        view = self._viewer.look(question, self._clock(), constraints)
        prefill, decode, pairs = self._chooser.choose(view, self._rng)
        return Decision(self._policy_name, question.prompt_tokens, prefill, decode, self._chooser.unit, pairs)

    def decide_decode(
        self, question: Question, decision: Decision, *, failed: Collection[str], tried: Collection[str]
    ) -> Decision:
        """Place the decode leg anew, where there is room if anywhere; the prefill leg is done.

        `failed` instances are used only if there is no other, `tried` ones not at all.
        """
        if decision.prefill.chosen is None:
            raise RuntimeError("nothing was prefilled by a decision without a prefill instance")
        constraints = Constraints(failed, tried, over_limit=True)
        view = self._viewer.look_for_decode(question, self._clock(), constraints, decision.prefill.chosen)
        _, decode, pairs = self._chooser.choose_decode(view, self._rng)
        return msgspec.structs.replace(decision, decode=decode, pairs=pairs)

    def need(self, question: Question) -> Need:
        """The context that the legs of a request need."""
        return need_of(self._fleet, question)

    def claim(self, candidate: Candidate, phase: Phase, question: Question) -> Claim:
        """Count a leg on the candidate that was chosen for it. Raises KeyError if the instance is gone."""
        tokens = question.leg_tokens(phase, candidate.uncached_tokens)
        weight = question.leg_weight_tokens(phase, candidate.uncached_tokens)
        return self._fleet.claim(candidate.instance, candidate.rank, phase, tokens, weight)

    def expect(self, candidate: Candidate, question: Question) -> Expectation:
        """Expect the prompt's blocks on the chosen prefill candidate, until its leg ends."""
        if question.prompt is None:
            return Expectation()
        keys = self._index.keys(question.prompt, candidate.instance, candidate.rank, USUAL_BLOCK_SIZE)
        self._predicted.expect(candidate.instance, candidate.rank, keys)

        def settle(came: bool) -> None:
            self._predicted.settle(candidate.instance, candidate.rank, keys, self._clock(), came=came)

        return Expectation(settle)

    def compare(self, candidate: Candidate, question: Question) -> Comparison | None:
        """A leg goes to the candidate now: what the index said will be compared with what its engine reports.

        None if nothing was said, as the prompt is not known. Otherwise it is to be dropped in the end.
        """
        if question.prompt is None:
            return None
        prompt, at = question.prompt, (candidate.instance, candidate.rank)

        def blocks() -> tuple[int, Sequence[int]]:
            return self._viewer.block_size(*at), self._index.keys(prompt, *at, USUAL_BLOCK_SIZE)

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


def _chooser(policy: AnyPolicy) -> Chooser:
    if isinstance(policy, Policy) and type(policy).prices is not Policy.prices:
        return ByPair(policy)
    return ByLeg(
        cast("LegPolicy", policy)
    )  # maybe derived from Policy, as it was written before there were pairs
