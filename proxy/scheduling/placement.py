"""`Placement` turns a question into a decision, and a decision into claims and predictions."""

import logging
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import cast

import msgspec

from kvevents import PrefixIndex, Prompt
from proxy.caches.accuracy import Accuracy, Comparison
from proxy.caches.expected import Awaited, PredictedBlocks
from proxy.config import Admission
from proxy.fleet import Claim, Fleet, Instance
from proxy.fleet.claims import Timing
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.logs import Occasionally
from proxy.phases import Phase
from proxy.request.deadlines import Goal
from proxy.scheduling.account import account_of, followed
from proxy.scheduling.bypass import Bypass, few_left, is_bypass, offered
from proxy.scheduling.decision import Choice, Chooser, Decision, Pick, checked
from proxy.scheduling.goals import Lateness
from proxy.scheduling.legs import ByLeg
from proxy.scheduling.lengths import Need, need_of
from proxy.scheduling.outlook import Outlook
from proxy.scheduling.pairs import ByPair
from proxy.scheduling.policies import POLICIES
from proxy.scheduling.question import Constraints, Question
from proxy.scheduling.sides import PlacePolicy, PricedPlaces, pair_of, prices_places, sides_of
from proxy.scheduling.terms import Terms, terms_of
from proxy.scheduling.types import (
    AnyPolicy,
    CacheLost,
    Candidate,
    Granted,
    Learner,
    LegPolicy,
    Pair,
    Policy,
    Told,
    View,
    reads_latency,
    reads_prompt,
    reads_session,
    weighs_bypass,
)
from proxy.scheduling.view import USUAL_BLOCK_SIZE, Load, Viewer, own_load

UNLEARNT_LOGGED_EVERY_S = 60.0
"""How often it is logged at most that a policy failed to learn: it may fail at every request."""

MOST_PAIRS = 1024
"""Of more pairs all are not looked at for the log: that would take more than some 5 ms of the event loop."""

log = logging.getLogger(__name__)


def _policy_decides() -> None:
    """`--bypass auto`."""


class Expectation:
    """The blocks that a leg is expected to bring to a rank; settled once."""

    __slots__ = ("_settle",)

    def __init__(self, settle: Callable[[bool], None] | None = None) -> None:
        """`settle` is called with whether the blocks were computed; None if none are expected."""
        self._settle = settle

    def settle(self, *, came: bool) -> None:
        """The leg has ended; `came`: the blocks were computed. A second call does nothing."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(came)


NOTHING_EXPECTED = Expectation()


class Placement:
    """Answers questions with decisions, and makes the claims and predictions that follow from them."""

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
        prompts_wanted: bool = False,
        latency: LatencyModel | None = None,
        bypass_tokens: Callable[[], int | None] = _policy_decides,
        logs: Callable[[], bool] = lambda: False,
    ) -> None:
        """`policy`: prices pairs if it can, else legs; `limits`: how many outstanding tokens a rank may have
        (None: any number); `accuracy`: which ranks are trusted; `loads`: what runs on a rank for legs of a
        phase; `prompts_wanted`: somebody else wants to know the prompts, whatever the policy reads;
        `latency`: how long engines take, None for what is believed of engines of which nothing is known
        (nothing is predicted unless the policy reads it, see `reads_latency`); `bypass_tokens`: what
        `--bypass` says now, as `Config.bypass_tokens`; `logs`: whether the next decision is to be logged.

        `tier_costs`: what reloading a token from a slower tier costs, as a share of computing it; tiers that
        are not named, or cost 1 or more, are not used.
        """
        self._fleet = fleet
        self._index = index
        self._chooser = _chooser(policy)
        self._policy_name = policy_name
        self._learner = policy if isinstance(policy, Learner) else None
        self._unlearnt = Occasionally(clock, UNLEARNT_LOGGED_EVERY_S)
        self.reads_session = reads_session(policy)
        """Whether the sessions of requests decide where they go; if not, nobody finds them out."""
        self.reads_latency = reads_latency(policy)
        """Whether what engines take decides where requests go; if not, nobody has to learn it."""
        self.latency = latency or LatencyModel(PROFILES[UNKNOWN])
        """How long engines take."""
        limits = limits or Admission()
        self._prompt_counts = bool(
            prompts_wanted or reads_prompt(policy) or limits.max_prefill_tokens or limits.max_decode_tokens
        )
        self._bypass_tokens = bypass_tokens
        self._logs = logs
        self._weighs_bypass = isinstance(self._chooser, ByPair) and weighs_bypass(policy)
        self._most_prefill_tokens = limits.max_prefill_tokens
        self._predicted = PredictedBlocks()
        self._accuracy = accuracy or Accuracy(index.holds)
        self._clock = clock
        self._outlook = Outlook(self.latency) if self.reads_latency else None
        self._quick = policy.priced if isinstance(policy, PlacePolicy) and prices_places(policy) else None
        self._viewer = Viewer(
            fleet,
            index,
            self._predicted,
            self._accuracy,
            limits=limits,
            tier_costs=tier_costs or {},
            loads=loads,
            keeps=type(policy) in POLICIES.values(),
            outlook=self._outlook,
        )
        self._rng = rng or random.Random()  # noqa: S311  # ties between instances are no secret

    @property
    def reads_prompt(self) -> bool:
        """Whether the tokens of prompts decide where or when a request goes, or are wanted for a recording.

        They decide if the policy reads them, if there are limits on tokens, which estimates would not keep,
        if those with few tokens left go whole to a decode instance (`--bypass TOKENS`), and while engines
        have contexts of different lengths, so that a leg must go where it fits. Where all contexts are the
        same, an engine itself refuses what is too long, in the same words.

        If neither, prompts need not be tokenized. Then there is nothing of them in `cached` of the access
        log and the headers, and in `RequestEnded.block_keys`; the index is not compared with what engines
        report (`compare`), partial ranks do not heal, and our token counts are not checked. Loads and the
        turns of clients count estimates.
        """
        return self._prompt_counts or self._fleet.contexts_differ or bool(self._bypass_tokens())

    def decide(
        self,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
        over_limit: bool = False,
        kept: Collection[tuple[Phase, str]] = (),
        shown: bool = True,
    ) -> Decision:
        """Place both legs. The arguments are those of `Constraints`.

        `shown`: whether somebody is to be shown every candidate; if not, a decision that is admissible may
        come without those that were not chosen. What is chosen is the same.
        """
        constraints = Constraints(failed, (), prefill_on, over_limit, kept)
        if not shown and self._quick is not None and (made := self._followed_only(question, constraints)):
            return made
        complete = shown or self._chooser.reads_all
        now = self._clock()
        view = self._viewer.look(question, now, constraints, complete=complete)
        few, bypass = self._bypass_tokens(), None
        if few or (few is None and self._weighs_bypass):
            most = 0 if over_limit else self._most_prefill_tokens
            if few is None:
                estimated = question.estimated_tokens
                view.alone = offered(view, failed, estimated_tokens=estimated, most_prefill_tokens=most)
            elif (whole := few_left(view, failed, tokens=few, most_prefill_tokens=most)) is not None:
                view, bypass = whole, Bypass.SHORT if self.is_short(question) else Bypass.CACHED
        if question.goal is not None:
            view.left_ms = 1000 * (question.goal.by - now)
        prefill, decode, pairs = self._choice(view, shown=shown)
        if not is_bypass(prefill.chosen, decode.chosen):
            bypass = None
        elif view.alone:
            bypass = Bypass.POLICY
        if not view.complete and question.prompt is None:
            prefill, decode = self._followed(prefill), self._followed(decode)
        return Decision(
            self._policy_name, question.prompt_tokens, prefill, decode, self._chooser.unit, pairs, bypass
        )

    def decide_to_follow(
        self,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
        over_limit: bool = False,
        kept: Collection[tuple[Phase, str]] = (),
    ) -> Decision:
        """As `decide`, for a decision that is followed; one that is to be logged has its account, and nothing
        else of what was not chosen.
        """
        logged = self._logs()
        looks = logged and self._may_look()
        decision = self.decide(
            question,
            failed=failed,
            prefill_on=prefill_on,
            over_limit=over_limit,
            kept=kept,
            shown=looks,
        )
        if not decision.admissible:
            return decision
        account = account_of(decision, partial(self.terms, question)) if logged else None
        if looks:
            decision = followed(decision)
        return decision if account is None else msgspec.structs.replace(decision, account=account)

    def _may_look(self) -> bool:
        """Whether a request may have all that it could be given looked at: few enough pairs, if the policy
        prices pairs.
        """
        if not isinstance(self._chooser, ByPair):
            return True
        prefill, decode = (sum(len(i.ranks) for i in self._fleet.of(phase)) for phase in Phase)
        return prefill * decode <= MOST_PAIRS

    def _choice(self, view: View, *, shown: bool) -> Choice:
        """What is chosen from a view; where nobody is to be shown the others, without all pairs."""
        if not shown and self._quick is not None and view.latency is not None:
            places = self._quick(sides_of(view))
            if places.pairs:
                pair = pair_of(view, self._cheapest(places))
                return Choice(Pick(pair.prefill), Pick(pair.decode))
        return self._chooser.choose(view, self._rng)

    def _cheapest(self, places: PricedPlaces) -> tuple[int, int]:
        """The pair of places of the lowest price; of equal ones one at random, drawn as among all pairs."""
        prices = checked(places.prices, len(places.pairs), "pairs")
        lowest = min(prices)
        if prices.count(lowest) == 1:
            return places.pairs[prices.index(lowest)]
        equal = [number for number, price in enumerate(prices) if price == lowest]
        return places.pairs[self._rng.choice(sorted(equal, key=places.order))]

    def _followed_only(self, question: Question, constraints: Constraints) -> Decision | None:
        """A decision by a policy that prices places, without candidates that were not chosen; None if it
        cannot be made so.
        """
        if self._quick is None:
            return None
        few, now = self._bypass_tokens(), self._clock()
        seen = self._viewer.sides(
            question,
            now,
            constraints,
            alone=few is None and self._weighs_bypass,
            left_ms=None if question.goal is None else 1000 * (question.goal.by - now),
        )
        if seen is None:
            return None
        known = question.prompt_tokens is not None and not question.whole
        if few and known and min(seen.sides.decode.uncached_tokens, default=math.inf) <= few:
            return None
        pair = self._viewer.candidates(seen, self._cheapest(self._quick(seen.sides)))
        prefill, decode = Pick(pair.prefill), Pick(pair.decode)
        bypass = Bypass.POLICY if not question.whole and is_bypass(pair.prefill, pair.decode) else None
        return Decision(
            self._policy_name,
            question.prompt_tokens,
            prefill,
            decode,
            self._chooser.unit,
            bypass=bypass,
        )

    def is_short(self, question: Question) -> bool:
        """Whether a prompt is so short that any decode instance may serve the request whole, whatever is
        cached there (`--bypass TOKENS`).
        """
        length = question.prompt_tokens
        return length is not None and not question.whole and length <= (self._bypass_tokens() or 0)

    def decide_decode(
        self, question: Question, decision: Decision, *, failed: Collection[str], tried: Collection[str]
    ) -> Decision:
        """Place the decode leg again after the prefill leg is done; with room if any instance has some.

        `failed` instances are used only if there is no other, `tried` ones not at all.
        """
        if decision.prefill.chosen is None:
            raise RuntimeError("nothing was prefilled by a decision without a prefill instance")
        constraints = Constraints(failed, tried, over_limit=True)
        view = self._viewer.look_for_decode(question, self._clock(), constraints, decision.prefill.chosen)
        _, decode, pairs = self._chooser.choose_decode(view, self._rng)
        return msgspec.structs.replace(decision, decode=decode, pairs=pairs)

    def _followed(self, pick: Pick) -> Pick:
        """A pick whose candidate may have been kept, as it is to be followed."""
        if pick.chosen is None:
            return pick
        chosen = self._viewer.as_known_now(pick.chosen)
        return pick if chosen is pick.chosen else Pick(chosen)

    def need(self, question: Question) -> Need:
        """The context that the legs of a request need."""
        return need_of(self._fleet, question)

    def claim(
        self, candidate: Candidate, phase: Phase, question: Question, *, computes: bool = False
    ) -> Claim:
        """Claim the candidate that was chosen for a leg. Raises KeyError if the instance was removed.

        `computes`: whether a decode leg computes the prompt too, as the only leg of its request.
        """
        tokens = question.leg_tokens(phase, candidate.uncached_tokens)
        weight, prefill = tokens, tokens
        if phase is Phase.DECODE:
            weight += question.generated_tokens
            prefill = question.leg_tokens(Phase.PREFILL, candidate.uncached_tokens) if computes else 0
        timing = None
        if (outlook := self._outlook) is not None:
            work_ms = 0.0
            generates = phase is Phase.DECODE
            if prefill:
                length = question.length_tokens or question.estimated_tokens
                work_ms = outlook.claimed(candidate, prefill, length, generates=generates)
            adapter = question.model if self._fleet.is_adapter(question.model) else None
            timing = Timing(
                self._clock,
                work_ms,
                question.streams or not generates,
                adapter,
                question.prompt_count,
                question.sequences,
            )
        return self._fleet.claim(candidate.instance, candidate.rank, phase, tokens, weight, prefill, timing)

    def terms(self, question: Question, pair: Pair) -> Terms | None:
        """What a pair of candidates for a question is predicted to take and to cost, with what is known of
        latencies now; None for a policy that does not read them.
        """
        if self._outlook is None:
            return None
        tokens = question.length_tokens or question.estimated_tokens
        view = View(
            question.model, question.prompt_tokens, (), (), estimated_tokens=tokens, latency=self.latency
        )
        return terms_of(pair, view)

    def lateness(self, question: Question, decision: Decision) -> Lateness | None:
        """When the first token of an admissible decision is predicted, and when it is wanted; None if either
        is not known.
        """
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        if question.goal is None or prefill is None or decode is None:
            return None
        terms = self.terms(question, Pair(prefill, decode))
        if terms is None:
            return None
        return Lateness(terms.ttft_ms, self._left_ms(question.goal), question.goal.ms)

    def _left_ms(self, goal: Goal) -> float:
        return 1000 * (goal.by - self._clock())

    def granted(self, question: Question, decision: Decision) -> None:
        """A request is let in by this decision: a policy that keeps a history learns of it. Nothing is raised
        here, whatever the policy does.
        """
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        if self._learner is None or prefill is None or decode is None:
            return
        keys = self._viewer.block_keys(question.prompt)
        self._teach(Granted(question.model, question.session, keys, prefill, decode))

    def _teach(self, told: Told) -> None:
        if self._learner is None:
            return
        try:
            self._learner.learn(told)
        except Exception:
            if self._unlearnt.count():
                log.exception("the policy %s did not learn what happened", self._policy_name)

    def expect(self, candidate: Candidate, question: Question) -> Expectation:
        """Expect the prompt's blocks on the chosen prefill candidate, until its leg ends."""
        if question.prompt is None:
            return NOTHING_EXPECTED
        keys = self._index.keys(question.prompt, candidate.instance, candidate.rank, USUAL_BLOCK_SIZE)
        awaited = self._predicted.expect(candidate.instance, candidate.rank, keys)
        return Expectation(partial(self._settled, awaited)) if awaited is not None else NOTHING_EXPECTED

    def _settled(self, awaited: Awaited, came: bool) -> None:
        self._predicted.settle(awaited, self._clock(), came=came)

    def compare(self, candidate: Candidate, question: Question) -> Comparison | None:
        """Record what the index predicts for a leg that is sent now, to be compared with its engine's report.

        None if the prompt is not known. A comparison MUST be dropped in the end, answered or not.
        """
        prompt, instance, rank = question.prompt, candidate.instance, candidate.rank
        if prompt is None:
            return None
        block_size, learned = self._index.block_size(instance, rank), None
        keys = self._index.keys(prompt, instance, rank, USUAL_BLOCK_SIZE)
        if block_size is None:
            block_size, learned = USUAL_BLOCK_SIZE, partial(self._blocks, prompt, instance, rank)
        said = candidate.cached_tokens if candidate.trusted else candidate.doubted_tokens
        return self._accuracy.begin(
            instance,
            rank,
            index=candidate.index,
            predicted_tokens=said or 0,
            block_size=block_size,
            keys=keys,
            learned=learned,
            goes_on=question.prefix_only,
        )

    def _blocks(self, prompt: Prompt, instance: str, rank: int) -> tuple[int, Sequence[int]]:
        """The tokens of a block there, as far as is known now, and the prompt's keys of such blocks."""
        keys = self._index.keys(prompt, instance, rank, USUAL_BLOCK_SIZE)
        return self._viewer.block_size(instance, rank), keys

    def forget(self, address: str) -> None:
        """Drop what was predicted for an instance that lost its cache or left."""
        self._predicted.forget(address)
        if self._outlook is not None:
            self._outlook.forget(address)
        self._teach(CacheLost(address))
        if self._fleet.get(address) is None:
            self._accuracy.forget(address)


def _chooser(policy: AnyPolicy) -> Chooser:
    if isinstance(policy, Policy) and type(policy).prices is not Policy.prices:
        return ByPair(policy)
    # It may still be derived from Policy: older ones priced legs and were.
    return ByLeg(cast("LegPolicy", policy))
