"""A request is answered by one complete attempt or by an error, and an attempt gives back all that it took.

The director runs the life of one request: tokens, decision, prefill leg, decode leg, and another attempt if
that one failed. It sends through the `Client` it is given, and knows nothing of aiohttp. Nothing reaches
kvproxy's own client before the `Reply` begins, and a `Reply` begins with bytes that an engine has produced:
every failure before that can be retried.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import msgspec

from proxy.admission import ENGINES_FULL, Gate
from proxy.config import Rules
from proxy.connectors.base import Connector
from proxy.connectors.plans import AtOnce, InTurn, Pair, Plan, Whole
from proxy.errors import BadRequestError, RequestError
from proxy.fair_queue import ANONYMOUS
from proxy.fleet import Fleet
from proxy.happenings import (
    Bypassed,
    EngineFull,
    LegsDecided,
    PromptUnknown,
    Refused,
    Retried,
    RetryRefused,
    Tell,
)
from proxy.headers import Headers
from proxy.phases import Phase, Role
from proxy.request.deadlines import Goal
from proxy.request.generation import GenerationRequest
from proxy.request.weights import generated_tokens, sequences
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question
from proxy.scheduling.terms import Terms
from proxy.scheduling.types import Pair as CandidatePair
from proxy.serving.attempts import Attempts
from proxy.serving.ends import Ends
from proxy.serving.exchange import Call, Foreseen, Known, Reply
from proxy.serving.handover.at_once import AtOnceHandover
from proxy.serving.handover.in_turn import InTurnHandover
from proxy.serving.handover.releases import Releases
from proxy.serving.healing import Healing
from proxy.serving.learning import Learning
from proxy.serving.legs.decode import DecodeLegs
from proxy.serving.legs.leg import AttemptFailedError, Legs, Reason
from proxy.serving.legs.prefill import PrefillLegs
from proxy.serving.lists import serve_list
from proxy.serving.placed import Placed
from proxy.serving.ports import Client, Tokenizer, Watch
from proxy.serving.retry_budget import RetryBudget, backoff_s
from proxy.serving.unserved import too_long, unanswered
from proxy.serving.waits import WAITS, Waits
from proxy.tasks import TaskOwner
from proxy.tokenizing import UNREAD, Tokenized


class Director:
    """Serves requests; one for the whole process."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        gate: Gate,
        connector: Connector,
        tokenizer: Tokenizer,
        client: Client,
        watch: Watch,
        tell: Tell,
        tasks: TaskOwner,
        clock: Callable[[], float],
        lease_s: float,
        rules: Rules,
        healing: Healing,
        waits: Waits = WAITS,
        rng: random.Random | None = None,
    ) -> None:
        self._fleet = fleet
        self._placement = placement
        self._gate = gate
        self._connector = connector
        self._tokenizer = tokenizer
        self._watch = watch
        self._tell = tell
        self._tasks = tasks
        self._clock = clock
        self._budget_wait_s = waits.budget_wait_s
        self._lease_s = lease_s
        self._rules = rules
        self._budget = RetryBudget(lambda: rules.retries.budget)
        self._rng = rng or random.Random()  # noqa: S311  # pauses are no secret
        releases = Releases(fleet, client, tell, clock, waits)
        grace_s = waits.abandoned_prefill_s
        self._in_turn = InTurnHandover(releases, tasks, clock, grace_s=grace_s)
        self._at_once = AtOnceHandover(releases, tasks, grace_s=grace_s)
        tell_streams = tell if placement.reads_latency else None
        self._legs = Legs(fleet, client, watch, clock, tell_streams=tell_streams)
        self._learning = Learning(fleet, tokenizer, watch, tell, clock)
        self._prefill = PrefillLegs(
            legs=self._legs,
            releases=releases,
            tell=tell,
            tasks=tasks,
            clock=clock,
            rules=rules,
            learning=self._learning,
            healing=healing,
        )
        self._decode = DecodeLegs(
            fleet=fleet,
            placement=placement,
            legs=self._legs,
            tell=tell,
            tasks=tasks,
            clock=clock,
            rules=rules,
            healing=healing,
            learning=self._learning,
        )

    async def explain(
        self,
        request: GenerationRequest,
        headers: Headers,
        session: str | None = None,
        goal: Goal | None = None,
    ) -> "Explained":
        """Where the request would go now, and what is known of its prompt.

        Claims nothing, and sends at most a question to a tokenizer. `session` and `goal`: as of
        `Question`.

        Raises BadRequestError for a list of prompts if each of them is placed by itself.
        """
        if self._splits(request):
            raise BadRequestError("each prompt of a list is placed by itself: ask for one", param="prompt")
        if isinstance(self._connector.plan(request), Whole):
            request = msgspec.structs.replace(request, whole=True)
        tokenized = await self._tokenizer.tokenize(request, headers, ANONYMOUS)
        question = self._question(request, tokenized, session, goal)
        decision = self._placement.decide(question)
        return Explained(decision, tokenized, session, partial(self._placement.terms, question))

    async def serve(self, call: Call, avoid: Collection[str] = ()) -> Reply:
        """Serve a request; the instances in `avoid` get its legs only if no others can.

        Raises RequestError. May be cancelled at any moment, as when the client leaves.
        """
        kept = Ends()
        call.ticket.keep()
        kept.add(call.ticket.let_go)
        try:
            reply = await self._serve(call, avoid, kept)
        except BaseException:
            kept.close()
            raise
        reply.also_ends(kept)
        return reply

    async def _serve(self, call: Call, avoid: Collection[str], kept: Ends) -> Reply:
        """As `serve`; `kept` lasts as long as the reply does."""
        if self._splits(call.request):
            return await serve_list(
                call,
                self.serve,
                self._tasks,
                self._tell,
                self._budget,
                self._rules.retries.max_attempts,
            )
        plan = self._connector.plan(call.request)
        if isinstance(plan, Whole) or (plan.one_prompt and call.request.prompt_count > 1):
            # One leg serves it all, and none of the retries may make two of it.
            whole = msgspec.structs.replace(call.request, whole=True)
            call = msgspec.structs.replace(call, request=whole)
        asked = await self._asked(call)
        self._budget.begin()
        kept.add(self._budget.end)
        return await self._served(call, plan, asked, avoid)

    async def _asked(self, call: Call) -> "_Asked":
        """The question of where a request goes, with its prompt's tokens if they decide that.

        Raises RequestError for a prompt that fits nowhere.
        """
        if not call.request.dialect.has_prompt:
            question = self._question(call.request, UNREAD, call.session, call.goal)
            return _Asked(question, UNREAD.kind, only_measured=False)
        reads = self._placement.reads_prompt
        if reads:
            tokenized = await self._tokenizer.tokenize(call.request, call.headers, call.ticket.client)
        else:
            tokenized = await self._tokenizer.measure(call.request, call.ticket.client)
        if tokenized.why_unknown is not None:
            self._tell(PromptUnknown(tokenized.why_unknown))
        if tokenized.excess is not None:
            self._tell(Refused("too_long"))
            raise too_long(self._fleet, call.request, tokenized.excess)
        question = self._question(call.request, tokenized, call.session, call.goal, call.only)
        return _Asked(question, tokenized.kind, only_measured=not reads)

    async def _served(self, call: Call, plan: Plan, asked: "_Asked", avoid: Collection[str]) -> Reply:
        """The reply of the first attempt that does not fail; if all fail, the last answer an engine gave.

        Raises RequestError if no engine gave one.
        """
        question = asked.question
        attempts = Attempts(self._rules.retries.max_attempts, avoid)
        try:
            while True:
                try:
                    admitted = await self._gate.admit(
                        call.ticket, question, failed=attempts.avoid, prefill_on=attempts.prefill_on
                    )
                except RequestError as error:
                    if (attempts.reply is None and attempts.failure is None) or error.reason == ENGINES_FULL:
                        raise
                    break
                if asked.only_measured and self._placement.reads_prompt:
                    admitted.close()  # engines have changed since it was asked: it may not fit there
                    asked = await self._asked(call)
                    question = asked.question
                    continue
                question = admitted.question
                placed = Placed(
                    admitted,
                    self._placement,
                    plan,
                    kind=asked.kind,
                    lease_s=self._lease_s,
                    avoid=attempts.avoid,
                )
                try:
                    try:
                        reply = await self._attempt(call, placed, attempts.last)
                    finally:
                        placed.close()
                except AttemptFailedError as failure:
                    attempts.failed_by(failure)
                    if failure.reason is Reason.FULL:
                        self._tell(EngineFull(failure.phase, failure.instance))
                        call.ticket.turn_away(failure.instance, self._clock(), failure.after_s)
                    call.trace.failed.append(f"{failure.instance}:{failure.reason}")
                else:
                    if reply.status == 200 and attempts.last is not None:
                        served_by = reply.decision.instances if reply.decision is not None else set()
                        self._watch.others_served(attempts.to_blame(self._legs.dead) - served_by)
                    return reply
                self._give_back(attempts)
                if call.upload is not None and call.upload.has_begun:
                    break  # it cannot be sent again
                if not await self._another(attempts):
                    break
        finally:
            self._give_back(attempts)
        if attempts.reply is not None:
            return attempts.reply
        raise unanswered(self._fleet, question.model, attempts.failure)

    def _give_back(self, attempts: Attempts) -> None:
        """An attempt is over: give the budget back that it has taken. A second call does nothing."""
        if attempts.is_paid:
            attempts.is_paid = False
            self._budget.give_back()

    async def _another(self, attempts: Attempts) -> bool:
        """Whether to try again; returns when it is time to.

        A retry is free and begins at once if it leaves an instance that has died, or that fails while others
        do not: it adds no load anywhere. So it is if the instance is full or lacks the model: it did no work.
        Any other retry takes from the budget, after a pause in which the instance may turn out to be dead;
        `_give_back` MUST follow.
        """
        failure = attempts.last
        if attempts.free:
            return True
        if attempts.exhausted or failure is None or failure.reason is Reason.NOT_HERE:
            return False
        if attempts.leave(self._legs.to_leave(failure)):
            return True
        if not attempts.may_pay:
            return False
        until = self._clock() + self._budget_wait_s
        for pauses in itertools.count(attempts.paid):
            await asyncio.sleep(backoff_s(pauses, self._rng))
            if attempts.leave(self._legs.to_leave(failure)):
                return True
            if self._budget.take():
                attempts.paid += 1
                attempts.is_paid = True
                return True
            if self._clock() >= until:
                break
            self._legs.suspect(failure)
        self._tell(RetryRefused(failure.phase))
        return False

    async def _attempt(self, call: Call, placed: Placed, last: AttemptFailedError | None) -> Reply:
        """The reply of one attempt, after one that ended like `last`. Raises AttemptFailedError."""
        call.trace.attempts += 1
        if last is None:
            self._tell(LegsDecided(self._clock() - call.started_at - call.ticket.waited_s))
            if (prompt := placed.question.prompt) is not None:
                call.trace.prompt = Known(len(prompt.token_ids), prompt.block_keys())
        else:
            self._tell(Retried(last.phase, last.instance, last.reason))
        call.trace.prefill_s = call.trace.prefill_usage = None
        call.trace.placed = self._foreseen(placed) if self._foresees(placed) else None
        self._legs.check_there(placed)
        if placed.one_leg:
            if (bypass := placed.decision.bypass) is not None:
                self._tell(Bypassed(placed.decode.instance, bypass))
            return await self._decode.run_whole(call, placed)
        match placed.plan:
            case InTurn() as plan:
                end = await self._in_turns(call, placed, plan)
            case AtOnce() as plan:
                end = await self._both(call, placed, plan)
            case Whole():
                raise RuntimeError("a request that is served whole was given two instances")
        if isinstance(end, AttemptFailedError):
            raise end
        return end

    def _foresees(self, placed: Placed) -> bool:
        """Whether somebody wants to know how long an attempt takes to its first token."""
        return self._placement.reads_latency or placed.decision.account is not None

    def _foreseen(self, placed: Placed) -> Foreseen:
        terms = self._placement.terms(placed.question, CandidatePair(placed.prefill, placed.decode))
        return Foreseen(placed.decision, self._clock(), None if terms is None else terms.ttft_ms)

    async def _in_turns(self, call: Call, placed: Placed, plan: InTurn) -> Reply | AttemptFailedError:
        prefill = self._prefill.begin(call, placed, plan.legs.prefill_body, plan.legs.read_handoff)
        decode = partial(self._decode.run, call, placed, plan.legs)
        return await self._in_turn.run(call, plan, placed.hold, prefill, decode, placed.tried)

    async def _both(self, call: Call, placed: Placed, plan: AtOnce) -> Reply | AttemptFailedError:
        first, second = placed.prefill, placed.decode
        attempt_id = f"{call.leg_id}-{call.trace.attempts}"
        pair = Pair(first.instance, second.instance, first.rank, second.rank, attempt_id)
        call = msgspec.structs.replace(call, leg_id=plan.legs.request_id(pair))
        body = plan.legs.decode_body(call.request.body, pair)
        prefill_body = partial(plan.legs.prefill_body, pair=pair)
        prefill = self._prefill.begin(call, placed, prefill_body, plan.legs.read_handoff)
        decode = self._decode.begin(call, placed, body)
        end = await self._at_once.run(placed.crossing, prefill, decode, drop=_drop)
        if isinstance(end, Reply) and not prefill.done():
            rest = Ends()
            rest.add(lambda: self._at_once.leave(prefill))
            end.also_ends(rest)
        return end

    def _splits(self, request: GenerationRequest) -> bool:
        """Whether each prompt of a request gets legs of its own: engines hand over blocks of one prompt."""
        if request.prompt_count == 1 or request.whole or not self._connector.plan(request).one_prompt:
            return False
        prefill = self._fleet.of(Phase.PREFILL)
        return not prefill or any(i.role is not Role.BOTH for i in prefill)

    def _question(
        self,
        request: GenerationRequest,
        tokenized: Tokenized,
        session: str | None,
        goal: Goal | None,
        only: str | None = None,
    ) -> Question:
        limit = request.answer_limit
        limited_by, answer_tokens = limit or (None, request.usual_answer_tokens)
        prompt = tokenized.prompt
        known = 0 if prompt is None or tokenized.prefix_only else len(prompt.token_ids)
        room = self._fleet.max_model_len - known
        expected = self._rules.admission.expected_answer_tokens
        return Question(
            request.model,
            prompt,
            tokenized.estimated_tokens or request.estimated_tokens,
            request.whole,
            prefix_only=tokenized.prefix_only,
            answer_tokens=answer_tokens,
            limited_by=limited_by,
            generated_tokens=generated_tokens(request, limit, room, expected),
            session=session,
            streams=request.stream,
            prompt_count=request.prompt_count,
            sequences=sequences(request),
            goal=goal,
            computes=request.dialect.computes,
            only=only,
        )


class Explained(NamedTuple):
    """Where a request would go, and why."""

    decision: Decision
    tokenized: Tokenized
    session: str | None
    terms: Callable[[CandidatePair], Terms | None]
    """The terms of a pair of candidates; None if the policy predicts nothing."""


class _Asked(NamedTuple):
    """What placement is asked about a request."""

    question: Question
    kind: str
    """The kind of the prompt, as the tokenizer names it."""
    only_measured: bool
    """The prompt's tokens decided nothing when it was asked, so they were not found out."""


def _drop(end: Reply | AttemptFailedError) -> None:
    """Close a reply that nobody waits for any more."""
    if isinstance(end, Reply):
        end.close()
