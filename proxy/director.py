"""A request is answered by one complete attempt or by an error, and whatever an attempt took it gives back.

The director runs the life of one request: tokens, decision, prefill leg, decode leg. It sends through the
client it is given, and knows nothing of aiohttp. Nothing has reached the client of kvproxy while it runs:
its `Reply` begins with bytes the decode engine has really produced, so every failure before can be retried.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from proxy.admission import Gate
from proxy.collaborators import Accounts, Answer, Client, Tokenizer, Watch
from proxy.config import Role
from proxy.connectors.base import Connector
from proxy.custody import Hold, HoldState
from proxy.errors import (
    BadRequestError,
    ConnectFailedError,
    EngineFailedError,
    LegError,
    NoSocketError,
    RequestError,
    UnavailableError,
)
from proxy.exchange import Call, Reply, as_unary, chain, error_status, first_event
from proxy.generation import GenerationRequest
from proxy.headers import DATA_PARALLEL_RANK, REQUEST_ID, Headers
from proxy.instances import Fleet
from proxy.placement import Placement, Question
from proxy.prompt_lists import serve_list
from proxy.releases import Releases
from proxy.scheduling.decision import Decision
from proxy.scheduling.types import Candidate, Phase
from proxy.tasks import TaskOwner
from proxy.tokenizing import Tokenized

MAX_ATTEMPTS = 3
"""One failure is an accident, two may be, a third says that trying on makes it worse."""

ABANDONED_PREFILL_GRACE_S = 5.0
"""How long a prefill leg whose client left may still finish. Closing it while it finishes would strand its blocks
unseen, for what is released is named only in its answer; a leg that takes longer is most likely still queued or
computing, where closing it frees everything at once."""

RETRY_AFTER_S = "1"


class _AttemptFailedError(Exception):
    """One attempt is over; nothing has reached the client."""

    def __init__(
        self,
        phase: Phase,
        instance: str,
        reply: Reply | None = None,
        cause: LegError | None = None,
        prefill_on: str | None = None,
    ) -> None:
        super().__init__(f"{phase} on {instance} failed")
        self.phase = phase
        self.instance = instance
        self.reply = reply  # the engine's own words, if it had any
        self.cause = cause
        self.prefill_on = prefill_on  # where the prompt is cached by now


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
        accounts: Accounts,
        tasks: TaskOwner,
        clock: Callable[[], float],
        lease_s: float,
    ) -> None:
        self._fleet = fleet
        self._placement = placement
        self._gate = gate
        self._connector = connector
        self._tokenizer = tokenizer
        self._client = client
        self._watch = watch
        self._accounts = accounts
        self._tasks = tasks
        self._clock = clock
        self._lease_s = lease_s
        self._releases = Releases(fleet, connector, client, accounts, clock)

    async def explain(self, request: GenerationRequest, headers: Headers) -> Decision:
        """Where the request would go now. Takes and sends nothing but a question to a tokenizer.

        Raises BadRequestError for a list of prompts if each of them is placed by itself.
        """
        if self._splits(request):
            raise BadRequestError("each prompt of a list is placed by itself: ask for one", param="prompt")
        question, _ = await self._question(request, headers)
        return self._placement.decide(question)

    async def serve(self, call: Call) -> Reply:
        """Serve a request. Raises RequestError; may be cancelled at any moment when the client has gone."""
        if self._connector.holds and call.request.prompt_count > 1:
            if self._splits(call.request):
                return await serve_list(call, self.serve, self._tasks, self._accounts)
            # One leg serves it all, and none of the retries may make two of it: one hold is told of, not several.
            whole = msgspec.structs.replace(call.request, whole=True)
            call = msgspec.structs.replace(call, request=whole)
        question, tokenized = await self._question(call.request, call.headers)
        if tokenized.why_unknown is not None:
            self._accounts.tokens_unknown(tokenized.why_unknown)
        failed: set[str] = set()
        last: _AttemptFailedError | None = None
        for _ in range(MAX_ATTEMPTS):
            # What is let in takes its claims below before anything else runs: nothing is awaited between.
            try:
                question, decision = await self._gate.admit(
                    call.ticket, question, failed=failed, prefill_on=last.prefill_on if last else None
                )
            except RequestError:
                if last is None:
                    raise
                break
            if last is None:
                self._accounts.decided(self._clock() - call.started_at - call.ticket.waited_s)
            else:
                self._accounts.retried(last.phase, last.instance)
            try:
                if decision.one_leg:
                    reply = await self._one_leg(call, question, decision)
                else:
                    reply = await self._two_legs(call, question, decision, tokenized.kind)
            except _AttemptFailedError as failure:
                last = failure
                failed.add(failure.instance)
            else:
                if reply.status == 200:
                    self._watch.outdone(failed - _instances(reply.decision))
                return reply
        if last is None:
            raise RuntimeError("a request was neither let in nor refused")
        if last.reply is not None:
            return last.reply
        if isinstance(last.cause, NoSocketError):
            raise UnavailableError(
                f"kvproxy can open no more connections ({last.cause.words})",
                headers={"Retry-After": RETRY_AFTER_S},
            )
        raise EngineFailedError(f"no engine answered: {last.cause.words if last.cause else last}")

    def _splits(self, request: GenerationRequest) -> bool:
        """Whether each prompt of a request goes its own way: an engine hands over the blocks of one prompt only."""
        several = request.prompt_count > 1 and self._connector.holds and not request.whole
        return several and any(i.role is not Role.BOTH for i in self._fleet.of(Phase.PREFILL))

    async def _question(self, request: GenerationRequest, headers: Headers) -> tuple[Question, Tokenized]:
        tokenized = await self._tokenizer.tokenize(request, headers)
        question = Question(request.model, tokenized.prompt, request.estimated_tokens, request.whole)
        return question, tokenized

    async def _one_leg(self, call: Call, question: Question, decision: Decision) -> Reply:
        chosen = _chosen(decision, Phase.DECODE)
        settle = self._placement.expect(chosen, question)
        came = False
        try:
            with ExitStack() as stack:
                self._claim(stack, chosen, Phase.DECODE, question)
                answer = await self._send(call, chosen, call.request.body.encoded())
                stack.callback(answer.close)
                reply = await self._begun(answer, decision, stack, hold=None)
                came = reply.status == 200
                return reply
        except LegError as error:
            self._leg_failed(error)
            raise _AttemptFailedError(Phase.DECODE, chosen.instance, cause=error) from error
        finally:
            settle(came)

    async def _two_legs(self, call: Call, question: Question, decision: Decision, kind: str) -> Reply:
        with ExitStack() as stack:
            # Claimed before the prefill leg, so that the decisions of a burst see each other's decode legs.
            try:
                self._claim(stack, _chosen(decision, Phase.DECODE), Phase.DECODE, question)
            except LegError as error:
                raise _AttemptFailedError(Phase.DECODE, error.instance, cause=error) from error
            prefilled = await self._prefill(call, question, decision, kind)
            if isinstance(prefilled, Reply):
                return prefilled
            if isinstance(prefilled, _AttemptFailedError):
                raise prefilled
            hold = prefilled if self._connector.holds else None
            tried: list[str] = []
            try:
                return await self._decode(call, question, decision, prefilled, tried, stack)
            finally:
                if hold is not None:
                    if hold.ended:
                        self._releases.ended(hold)
                    else:
                        release = self._releases.release(call, hold, tried)
                        self._tasks.create(release, name=f"release {call.leg_id}")

    # -- the prefill leg ----------------------------------------------------------------------------------

    async def _prefill(
        self, call: Call, question: Question, decision: Decision, kind: str
    ) -> Hold | Reply | _AttemptFailedError:
        """Run the prefill leg as a task of its own, so that it survives its client long enough to be cleaned up."""
        chosen = _chosen(decision, Phase.PREFILL)
        claims = ExitStack()
        try:
            self._claim(claims, chosen, Phase.PREFILL, question)
        except LegError as error:
            return _AttemptFailedError(Phase.PREFILL, chosen.instance, cause=error)
        settle = self._placement.expect(chosen, question)
        leg = self._tasks.create(
            self._prefill_leg(call, question, decision, kind, claims, settle), name=f"prefill {call.leg_id}"
        )
        try:
            return await asyncio.shield(leg)
        except asyncio.CancelledError:
            if not leg.cancelled():
                self._tasks.create(self._abandon_prefill(call, leg), name=f"abandon prefill {call.leg_id}")
            raise

    async def _abandon_prefill(
        self, call: Call, leg: "asyncio.Task[Hold | Reply | _AttemptFailedError]"
    ) -> None:
        await asyncio.wait({leg}, timeout=ABANDONED_PREFILL_GRACE_S)
        if not leg.done():
            leg.cancel()
            await asyncio.wait({leg})
        if leg.cancelled() or leg.exception() is not None:
            return
        prefilled = leg.result()
        if isinstance(prefilled, Hold) and self._connector.holds:
            await self._releases.release(call, prefilled)

    async def _prefill_leg(
        self,
        call: Call,
        question: Question,
        decision: Decision,
        kind: str,
        claims: ExitStack,
        settle: Callable[[bool], None],
    ) -> Hold | Reply | _AttemptFailedError:
        chosen = _chosen(decision, Phase.PREFILL)
        body = self._connector.prefill_body(call.request.body)
        begun_at = self._clock()
        came = finished = False
        try:
            with claims:
                answer = await self._send(call, chosen, body)
                claims.callback(answer.close)
                finished = answer.status == 200
                data = await answer.read()
            came = finished
            if came:
                self._watch.leg_served(chosen.instance)
        except LegError as error:
            self._leg_failed(error)
            if finished and self._connector.holds:
                self._accounts.hold_ended(HoldState.STRANDED)  # what it holds was named in the part we missed
            return _AttemptFailedError(Phase.PREFILL, chosen.instance, cause=error)
        finally:
            settle(came)
        self._accounts.prefill_ended(chosen.instance, self._clock() - begun_at)
        if not came:
            reply = Reply(answer.status, answer.headers, data, decision)
            return (
                _AttemptFailedError(Phase.PREFILL, chosen.instance, reply)
                if _retriable(answer.status)
                else reply
            )
        try:
            handoff = self._connector.read_handoff(data)
        except ValueError as error:
            cause = LegError(chosen.instance, str(error))
            return _AttemptFailedError(Phase.PREFILL, chosen.instance, cause=cause)
        hold = Hold(chosen.instance, handoff, received_at=self._clock(), lease_s=self._lease_s)
        if self._connector.holds:
            self._releases.begun(hold)
        self._learn(chosen, question, hold, kind)
        return hold

    def _learn(self, chosen: Candidate, question: Question, hold: Hold, kind: str) -> None:
        """Compare what the engine says of the prompt with what we thought."""
        handoff = hold.handoff
        ours = question.prompt_tokens
        predicted = chosen.cached_tokens
        if ours is not None and handoff.prompt_tokens is not None and ours != handoff.prompt_tokens:
            self._accounts.tokens_differ(chosen.instance)
            self._tokenizer.distrust(kind)
            predicted = None
        self._accounts.prefilled(chosen.instance, handoff.prompt_tokens, predicted, handoff.cached_tokens)
        instance = self._fleet.get(chosen.instance)
        if instance is not None and handoff.engine_id is not None:
            self._watch.process_seen(instance, chosen.rank, handoff.engine_id)

    # -- the decode leg -----------------------------------------------------------------------------------

    async def _decode(
        self,
        call: Call,
        question: Question,
        decision: Decision,
        hold: Hold,
        tried: list[str],
        stack: ExitStack,
    ) -> Reply:
        """Send the decode leg, to another instance for as long as none could be connected to.

        `stack` holds the claim on the one that was decided for, and is handed on with the reply.
        """
        several = call.request.sequences > 1
        fetch = self._connector.fetch_body(call.request.body, hold.handoff) if several else None
        body = fetch or self._connector.decode_body(call.request.body, hold.handoff)
        while True:
            chosen = _chosen(decision, Phase.DECODE)
            if not hold.may_be_offered(self._clock()):
                cause = LegError(hold.instance, "the prefilled blocks were not fetched within their lease")
                raise _AttemptFailedError(Phase.PREFILL, hold.instance, cause=cause)
            tried.append(chosen.instance)
            hold.spend()
            try:
                answer = await self._send(call, chosen, body)
                stack.callback(answer.close)
                reply = await self._begun(answer, decision, stack, hold)
                if fetch is None or reply.status != 200:
                    return reply
                answer = await self._send(call, chosen, call.request.body.encoded())
                stack.callback(answer.close)
                return await self._begun(answer, decision, stack, hold=None)
            except LegError as error:
                self._leg_failed(error)
                failure = _AttemptFailedError(
                    Phase.DECODE, chosen.instance, cause=error, prefill_on=hold.instance
                )
                if hold.ended or not isinstance(error, ConnectFailedError):
                    raise failure from error
                hold.unspend()
                decision = self._placement.decide_decode(question, decision, tried)
                again = decision.decode.chosen
                if again is None or again.instance in tried:
                    raise failure from error
                stack.close()
                self._claim(stack, again, Phase.DECODE, question)
                self._accounts.retried(Phase.DECODE, chosen.instance)

    async def _begun(self, answer: Answer, decision: Decision, stack: ExitStack, hold: Hold | None) -> Reply:
        """The reply, once the engine has produced something: the whole answer, or the first event of a stream.

        Raises LegError if that does not come, _AttemptFailedError if the engine answers that it failed.
        """
        if answer.is_event_stream and answer.status == 200:
            chunks = answer.chunks()
            begin = await first_event(answer.instance, chunks)
            if (failure := error_status(begin)) is None:
                if hold is not None:
                    self._pulled(hold, answer.instance)
                self._watch.leg_served(answer.instance)
                body = chain(begin, chunks, self._leg_failed)
                return Reply(answer.status, answer.headers, body, decision, stack.pop_all())
            reply = as_unary(answer, failure, begin, decision)
        else:
            reply = Reply(answer.status, answer.headers, await answer.read(), decision)
        if _retriable(reply.status):
            prefill_on = hold.instance if hold is not None else None
            raise _AttemptFailedError(Phase.DECODE, answer.instance, reply, prefill_on=prefill_on)
        if reply.status == 200:
            self._watch.leg_served(answer.instance)
            if hold is not None:
                self._pulled(hold, answer.instance)
        return reply

    # -- what all legs share ------------------------------------------------------------------------------

    def _claim(self, stack: ExitStack, chosen: Candidate, phase: Phase, question: Question) -> None:
        try:
            stack.enter_context(self._placement.claim(chosen, phase, question))
        except KeyError:
            raise LegError(chosen.instance, "the instance was removed") from None

    async def _send(self, call: Call, chosen: Candidate, body: bytes) -> Answer:
        headers = [*call.headers, (REQUEST_ID, call.leg_id)]
        instance = self._fleet.get(chosen.instance)
        if instance is not None and len(instance.ranks) > 1:
            headers.append((DATA_PARALLEL_RANK, str(chosen.rank)))
        return await self._client.post(chosen.instance, call.request.route.path, body, headers)

    def _leg_failed(self, error: LegError) -> None:
        instance = self._fleet.get(error.instance)
        if instance is not None:
            self._watch.leg_failed(instance, error)

    def _pulled(self, hold: Hold, decode: str) -> None:
        hold.pulled()
        instance = self._fleet.get(decode)
        if instance is not None and hold.handoff.engine_id is not None:
            instance.pulled_from.add(hold.handoff.engine_id)


def _chosen(decision: Decision, phase: Phase) -> Candidate:
    chosen = (decision.prefill if phase is Phase.PREFILL else decision.decode).chosen
    if chosen is None:
        raise RuntimeError(f"an admissible decision has no {phase} instance")
    return chosen


def _instances(decision: Decision | None) -> set[str]:
    picks = (decision.prefill.chosen, decision.decode.chosen) if decision is not None else ()
    return {chosen.instance for chosen in picks if chosen is not None}


def _retriable(status: int) -> bool:
    """Whether another instance may do better: the engine failed, and not for want of the feature."""
    return status >= 500 and status != 501
