"""A decode leg's reply begins with what the engine has really produced, so every failure before that can be
retried.
"""

import asyncio
import functools
from collections.abc import Callable

from proxy.config import Rules
from proxy.connectors.plans import LegsInTurn
from proxy.errors import ConnectFailedError, LegError, NotSentError
from proxy.fleet import Fleet
from proxy.happenings import Retried, Tell
from proxy.phases import Phase
from proxy.request.body import Encoded
from proxy.request.deadlines import within
from proxy.request.judging import without_params
from proxy.scheduling.placement import Placement
from proxy.serving.custody import Due, Hold
from proxy.serving.custody_at_once import Crossing
from proxy.serving.exchange import Call, EngineStream, Reply, as_unary
from proxy.serving.healing import Healing
from proxy.serving.learning import Learning
from proxy.serving.legs.leg import REFUSED, SERVED, AttemptFailedError, Leg, Legs, reason_of
from proxy.serving.legs.rest import CountedRest, Rest
from proxy.serving.legs.sockets import SWITCHED, LegSocket
from proxy.serving.placed import Placed
from proxy.serving.ports import Answer
from proxy.tasks import TaskOwner


class DecodeLegs:
    """Runs decode legs, and the one leg of a request that is not split."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        legs: Legs,
        tell: Tell,
        tasks: TaskOwner,
        clock: Callable[[], float],
        rules: Rules,
        healing: Healing,
        learning: Learning,
    ) -> None:
        self._fleet = fleet
        self._placement = placement
        self._legs = legs
        self._tell = tell
        self._tasks = tasks
        self._clock = clock
        self._rules = rules
        self._healing = healing
        self._learning = learning

    async def run_whole(self, call: Call, placed: Placed) -> Reply:
        """Have one instance serve the whole request. Raises AttemptFailedError."""
        chosen = placed.decode
        if not call.request.whole:  # requests that cannot be split are mostly computed in full, cached or not
            placed.compares()
        came = False
        try:
            asked = self._healing.asking(call, chosen, placed.question)
            body = call.request.body
            reply = await self._answered(call, placed, (asked or body).to_send())
            if asked is not None and 400 <= reply.status < 500:  # perhaps for the question for a report
                reply = await self._answered(call, placed, body.to_send())
                if reply.status == 200:
                    self._healing.refused(chosen)
            came = reply.status == 200
            if came:
                self._learning.served_whole(placed, reply, call.request.dialect)
            return reply
        except LegError as error:
            placed.decode_leg.close()
            self._legs.failed(error)
            raise AttemptFailedError(Phase.DECODE, chosen.instance, cause=error) from error
        finally:
            placed.decode_leg.close()
            placed.computed(came=came)

    async def run(self, call: Call, placed: Placed, legs: LegsInTurn) -> Reply:
        """Send the decode leg of a hold, and to another instance if one cannot be connected to.

        Raises AttemptFailedError.
        """
        hold, tried = placed.hold, placed.tried
        request = call.request
        fetch = None
        if request.sequences > 1:
            fetch = legs.fetch_body(request.dialect.first_token_only(request.body), hold.handoff)
        body = fetch or legs.decode_body(request.body, hold.handoff)
        failure: AttemptFailedError | None = None
        while True:
            if hold.due(self._clock()) is not Due.OFFER:
                cause = LegError(hold.instance, "the prefilled blocks were not fetched within their lease")
                raise failure or AttemptFailedError(Phase.PREFILL, hold.instance, cause=cause)
            # The instance was chosen before the prefill leg ran, and a hold that it refuses is lost.
            gone = self._legs.why_gone(placed.decode)
            useless = gone is not None or self._legs.would_refuse(placed.decode, placed.question.model)
            if useless and not self._moves(placed) and gone is not None:
                cause = NotSentError(placed.decode.instance, gone)
                raise failure or AttemptFailedError(
                    Phase.DECODE, placed.decode.instance, cause=cause, prefill_on=hold.instance
                )
            chosen = placed.decode
            tried.append(chosen.instance)
            hold.spend()
            try:
                reply = await self._answered(call, placed, body, hold)
                if fetch is None or reply.status != 200:
                    return reply
                whole = call.request.body.to_send()
                return await self._answered(call, placed, whole, fetched_from=hold.instance)
            except LegError as error:
                self._legs.failed(error)
                failure = AttemptFailedError(
                    Phase.DECODE, chosen.instance, cause=error, prefill_on=hold.instance, tried=tuple(tried)
                )
                if hold.ended or not isinstance(error, ConnectFailedError):
                    raise failure from error
                hold.unspend()
                if not self._moves(placed):
                    raise failure from error
                self._tell(Retried(failure.phase, failure.instance, failure.reason))

    def begin(self, call: Call, placed: Placed, body: Encoded) -> "asyncio.Task[Reply | AttemptFailedError]":
        """Send the decode leg of a crossing, in a task of its own. It tells the crossing only that it has
        produced something; how else it ends is told by whoever waits for the task.
        """
        return self._tasks.create(self._at_once(call, placed, body), name=f"decode {call.leg_id}")

    async def _at_once(self, call: Call, placed: Placed, body: Encoded) -> Reply | AttemptFailedError:
        crossing, chosen = placed.crossing, placed.decode
        placed.tried.append(chosen.instance)
        try:
            # The prefill leg runs meanwhile, so its time is granted as well.
            return await self._answered(call, placed, body, crossing, more_s=self._rules.deadlines.prefill_s)
        except AttemptFailedError as failure:
            return failure
        except LegError as error:
            self._legs.failed(error)
            return AttemptFailedError(
                Phase.DECODE,
                chosen.instance,
                cause=error,
                prefill_on=crossing.cached_on,
                tried=tuple(placed.tried),
            )

    def _moves(self, placed: Placed) -> bool:
        """Move the decode leg to an instance that its hold was not offered to; False if there is none."""
        better = self._placement.decide_decode(
            placed.question, placed.decision, failed=placed.avoid, tried=placed.tried
        )
        if better.decode.chosen is None:
            return False
        placed.moves_to(better)
        return True

    async def _answered(
        self,
        call: Call,
        placed: Placed,
        body: Encoded,
        custody: Hold | Crossing | None = None,
        *,
        more_s: float = 0.0,
        fetched_from: str | None = None,
    ) -> Reply:
        """Send a leg. Returns its reply once the engine has answered in full, or its stream has begun.

        `custody`: the blocks that the leg needs; `more_s`: seconds that its first byte may take beside those
        of the setting; `fetched_from`: the instance whose blocks a leg before it has fetched. Raises LegError
        if no answer comes, AttemptFailedError if the engine answers that it failed.
        """
        chosen, decision = placed.decode, placed.decision
        answer: Answer
        leg = Leg(self._tell, self._clock, Phase.DECODE, chosen, placed.question.sequences)
        leg.pulls_from = fetched_from if custody is None else custody.instance
        placed.decode_leg.add(leg.close)
        if not call.request.stream and call.request.dialect.has_prompt:
            self._legs.answers_whole(leg, placed.question)
        try:
            sent = None
            if call.upload is not None:  # which takes as long as the client does
                sent = await self._legs.upload(leg, call, call.upload, self._rules.deadlines.chunk_s)
            first_byte_s = self._rules.deadlines.first_byte_s + more_s
            with within(first_byte_s, chosen.instance, "the decode leg's first byte"):
                if call.handshake is not None:
                    answer = socket = await self._legs.open(leg, call, call.handshake)
                    if socket.status == SWITCHED:
                        self._legs.began(chosen.instance)
                        reply = Reply(SWITCHED, [], b"", decision, placed.decode_leg.passed_on())
                        reply.socket = LegSocket(socket, self._legs, leg)
                        return reply
                elif sent is None:
                    answer = await self._legs.send(leg, call, body)
                else:
                    answer = await self._legs.uploaded(leg, call, sent)
                if answer.is_event_stream and answer.status == 200:
                    stream = EngineStream(
                        answer, self._rules.deadlines.chunk_s, call.request.dialect, recount=_recount(call)
                    )
                    if (failure := await stream.begin()) is None:
                        self._produced(custody, chosen.instance)
                        placed.generates()
                        self._legs.took(leg)
                        self._legs.began(chosen.instance)
                        in_turn = isinstance(custody, Hold)
                        counted = self._legs.streams(leg, call, placed.question, in_turn=in_turn)
                        rest = (
                            Rest(stream, self._legs, leg)
                            if counted is None
                            else CountedRest(stream, self._legs, leg, counted)
                        )
                        ends = placed.decode_leg.passed_on()
                        return Reply(answer.status, answer.headers, rest, decision, ends)
                    reply = as_unary(answer, failure, decision)
                else:
                    data = await answer.read()
                    if answer.status != 200:
                        reply = Reply(answer.status, answer.headers, data, decision)
                    elif (failure := call.request.dialect.failure(data)) is not None:
                        reply = as_unary(answer, failure, decision)
                    else:
                        kept = without_params(data)
                        if (recount := _recount(call)) is not None:
                            kept = recount(kept)
                        reply = Reply(200, answer.headers, kept, decision)
        except LegError as error:
            leg.over(reason_of(error))
            raise
        why = self._legs.why_another(leg, call, reply)
        leg.over(why or (SERVED if reply.status == 200 else REFUSED), answered=True)
        leg.end()  # before the claim ends, which another leg may still use
        if why is not None:
            prefill_on = custody.cached_on if custody is not None else None
            raise AttemptFailedError(
                Phase.DECODE, chosen.instance, reply, prefill_on=prefill_on, reason=why, after_s=leg.age_s
            )
        if reply.status == 200:
            self._produced(custody, chosen.instance)
            self._legs.served(chosen.instance)
        return reply

    def _produced(self, custody: Hold | Crossing | None, decode: str) -> None:
        if custody is None:
            return
        custody.pulled()
        if custody.cached_on is None:
            return  # the prefill leg still runs
        self._legs.served(custody.instance)  # only now: the prefill instance's blocks could be fetched
        instance = self._fleet.get(decode)
        if instance is not None and custody.handoff.engine_id is not None:
            instance.pulled_from(custody.handoff.engine_id)


def _recount(call: Call) -> Callable[[bytes], bytes] | None:
    """What counts the prompt in an answer as its prefill leg has; None if that changes nothing."""
    dialect, usage = call.request.dialect, call.trace.prefill_usage
    if usage is None or not dialect.recounts:
        return None
    return functools.partial(dialect.recounted, prefill=usage)
