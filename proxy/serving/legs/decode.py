"""A decode leg's reply begins with what the engine has really produced, so every failure before can be tried
again.
"""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, suppress

from proxy.caches.accuracy import Comparison
from proxy.config import Rules
from proxy.connectors.base import Connector
from proxy.errors import ConnectFailedError, LegError, NotSentError, StreamFailedError
from proxy.fleet import Fleet
from proxy.phases import Phase
from proxy.request.body import Encoded
from proxy.request.deadlines import within
from proxy.request.dialects import Dialect, Usage
from proxy.request.judging import without_params
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate
from proxy.serving.custody import Due, Hold
from proxy.serving.exchange import Call, EngineStream, Reply, as_unary
from proxy.serving.healing import Healing
from proxy.serving.legs.leg import AttemptFailedError, Legs, chosen_of
from proxy.serving.ports import Accounts

MAX_READ_BYTES = 64 << 10
"""Of the answer of an engine that serves a request whole: reading one for its usage takes 0.02 ms."""


class DecodeLegs:
    """Runs decode legs, and the one leg of a request that is not split."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        connector: Connector,
        legs: Legs,
        accounts: Accounts,
        clock: Callable[[], float],
        rules: Rules,
        healing: Healing,
        differ: Callable[[str, str], None],
    ) -> None:
        """`differ` is told of an instance that counted a prompt otherwise, and of how it was tokenized."""
        self._fleet = fleet
        self._placement = placement
        self._connector = connector
        self._legs = legs
        self._accounts = accounts
        self._clock = clock
        self._rules = rules
        self._healing = healing
        self._differ = differ

    async def run_whole(self, call: Call, question: Question, decision: Decision, kind: str) -> Reply:
        """Have one instance serve the whole request; `kind` is how its prompt was tokenized. Raises
        AttemptFailedError.
        """
        chosen = chosen_of(decision, Phase.DECODE)
        settle = self._placement.expect(chosen, question)
        # What cannot be split is mostly what an engine computes in full, whatever it has cached.
        comparison = None if call.request.whole else self._placement.compare(chosen, question)
        came = False
        try:
            with ExitStack() as stack:
                self._legs.claim(stack, chosen, Phase.DECODE, question)
                asked = self._healing.asking(call, chosen, question)
                body = call.request.body
                reply = await self._answered(call, (asked or body).to_send(), decision, stack, hold=None)
                if asked is not None and 400 <= reply.status < 500:  # that may be why
                    reply = await self._answered(call, body.to_send(), decision, stack, hold=None)
                    if reply.status == 200:
                        self._healing.refused(chosen)
                came = reply.status == 200
                if came and comparison is not None:
                    self._compare(comparison, chosen, question, reply, kind, call.request.dialect)
                return reply
        except LegError as error:
            self._legs.failed(error)
            raise AttemptFailedError(Phase.DECODE, chosen.instance, cause=error) from error
        finally:
            settle(came)
            if comparison is not None:
                comparison.drop()

    def _compare(
        self,
        comparison: Comparison,
        chosen: Candidate,
        question: Question,
        reply: Reply,
        kind: str,
        dialect: Dialect,
    ) -> None:
        """Read from a whole answer what the engine had cached; a stream goes by unread."""
        told = Usage()
        if isinstance(reply.body, bytes) and len(reply.body) <= MAX_READ_BYTES:
            with suppress(ValueError):
                told = dialect.usage(reply.body)
        differ = None not in {ours := question.prompt_tokens, theirs := told.prompt_tokens} and ours != theirs
        if differ:
            self._differ(chosen.instance, kind)
        comparison.answered(told.cached_tokens, self._clock(), tokens_differ=differ)

    async def run(
        self,
        call: Call,
        question: Question,
        decision: Decision,
        hold: Hold,
        failed: Collection[str],
        tried: list[str],
        stack: ExitStack,
    ) -> Reply:
        """Send the decode leg, to another instance for as long as none could be connected to.

        `stack` holds the claim on the one that was decided for, and is handed on with the reply. `failed` are
        the instances that earlier attempts failed on, `tried` gets those the hold was offered to. Raises
        AttemptFailedError.
        """
        request = call.request
        fetch = None
        if request.sequences > 1:
            fetch = self._connector.fetch_body(request.dialect.first_token_only(request.body), hold.handoff)
        body = fetch or self._connector.decode_body(request.body, hold.handoff)
        failure: AttemptFailedError | None = None
        while True:
            chosen = chosen_of(decision, Phase.DECODE)
            if hold.due(self._clock()) is not Due.OFFER:
                cause = LegError(hold.instance, "the prefilled blocks were not fetched within their lease")
                raise failure or AttemptFailedError(Phase.PREFILL, hold.instance, cause=cause)
            # Much may have become of it since it was chosen, and what it refuses is prefilled again.
            gone = self._legs.why_gone(chosen)
            if gone is not None or self._legs.would_refuse(chosen, question.model):
                better = self._placement.decide_decode(question, decision, failed=failed, tried=tried)
                if better.decode.chosen is not None:
                    decision = better
                    chosen = self._elsewhere(stack, decision, question)
                elif gone is not None:
                    cause = NotSentError(chosen.instance, gone)
                    raise failure or AttemptFailedError(
                        Phase.DECODE, chosen.instance, cause=cause, prefill_on=hold.instance
                    )
            tried.append(chosen.instance)
            hold.spend()
            try:
                reply = await self._answered(call, body, decision, stack, hold)
                if fetch is None or reply.status != 200:
                    return reply
                return await self._answered(call, call.request.body.to_send(), decision, stack, hold=None)
            except LegError as error:
                self._legs.failed(error)
                failure = AttemptFailedError(
                    Phase.DECODE, chosen.instance, cause=error, prefill_on=hold.instance, tried=tuple(tried)
                )
                if hold.ended or not isinstance(error, ConnectFailedError):
                    raise failure from error
                hold.unspend()
                decision = self._placement.decide_decode(question, decision, failed=failed, tried=tried)
                if decision.decode.chosen is None:
                    raise failure from error
                self._elsewhere(stack, decision, question)
                self._accounts.retried(failure.phase, failure.instance, failure.reason)

    def _elsewhere(self, stack: ExitStack, decision: Decision, question: Question) -> Candidate:
        """Claim where the leg goes now instead of where it was to go. Raises AttemptFailedError if that has
        gone.
        """
        chosen = chosen_of(decision, Phase.DECODE)
        stack.close()
        self._legs.claim(stack, chosen, Phase.DECODE, question)
        return chosen

    async def _answered(
        self, call: Call, body: Encoded, decision: Decision, stack: ExitStack, hold: Hold | None
    ) -> Reply:
        """Send a leg; the reply once the engine has produced something: a whole answer, or what begins a
        stream.

        Raises LegError if that does not come, AttemptFailedError if the engine answers that it failed.
        """
        chosen = chosen_of(decision, Phase.DECODE)
        with within(self._rules.deadlines.first_byte_s, chosen.instance, "the decode leg's first byte"):
            sent = await self._legs.send(call, chosen, body, stack)
            answer = sent.answer
            if answer.is_event_stream and answer.status == 200:
                stream = EngineStream(answer, self._rules.deadlines.chunk_s, call.request.dialect)
                if (failure := await stream.begin()) is None:
                    self._produced(hold, chosen.instance)
                    self._legs.took(sent)
                    self._legs.began(chosen.instance)
                    rest = self._rest(stream, chosen.instance)
                    return Reply(answer.status, answer.headers, rest, decision, stack.pop_all())
                reply = as_unary(answer, failure, decision)
            else:
                data = await answer.read()
                if answer.status != 200:
                    reply = Reply(answer.status, answer.headers, data, decision)
                elif (failure := call.request.dialect.failure(data)) is not None:
                    reply = as_unary(answer, failure, decision)
                else:
                    reply = Reply(200, answer.headers, without_params(data), decision)
        why = self._legs.worth_another(Phase.DECODE, call, chosen, sent, reply)
        sent.end()  # another leg may follow under the same claim
        if why is not None:
            prefill_on = hold.instance if hold is not None else None
            after_s = self._legs.age_s(sent)
            raise AttemptFailedError(
                Phase.DECODE, chosen.instance, reply, prefill_on=prefill_on, reason=why, after_s=after_s
            )
        if reply.status == 200:
            self._produced(hold, chosen.instance)
            self._legs.served(chosen.instance)
        return reply

    async def _rest(self, stream: EngineStream, decode: str) -> AsyncIterator[bytes]:
        """What has begun, and the rest as it comes; raises LegError if it does not."""
        try:
            while run := await stream.next():
                yield run
        except StreamFailedError as error:
            self._legs.broke_off(error)
            raise
        except LegError as error:
            self._legs.failed(error)
            raise
        self._legs.served(decode)
        await stream.drain()

    def _produced(self, hold: Hold | None, decode: str) -> None:
        if hold is None:
            return
        self._legs.served(hold.instance)  # not before: blocks that nobody can fetch are no service
        hold.pulled()
        instance = self._fleet.get(decode)
        if instance is not None and hold.handoff.engine_id is not None:
            instance.pulled_from(hold.handoff.engine_id)
