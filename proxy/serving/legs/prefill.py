"""A prefill leg always tells its custody how it ended, and outlives its client long enough to name the blocks
that it leaves.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from proxy.config import Rules
from proxy.connectors.handoff import Handoff, max_answer_bytes
from proxy.errors import ConnectFailedError, LegError
from proxy.fleet.fullness import FULL
from proxy.happenings import Tell
from proxy.phases import Phase
from proxy.request.body import Body, Encoded
from proxy.request.deadlines import within
from proxy.request.dialects import Usage
from proxy.serving.custody import HoldState
from proxy.serving.exchange import Call, Reply, as_unary
from proxy.serving.handover.releases import Releases
from proxy.serving.healing import Healing
from proxy.serving.learning import Learning
from proxy.serving.legs.leg import (
    LEFT,
    REFUSED,
    SERVED,
    AttemptFailedError,
    Leg,
    Legs,
    Reason,
    reason_of,
)
from proxy.serving.placed import Placed
from proxy.serving.ports import Answer
from proxy.tasks import TaskOwner


class PrefillLegs:
    """Runs prefill legs."""

    def __init__(
        self,
        *,
        legs: Legs,
        releases: Releases,
        tell: Tell,
        tasks: TaskOwner,
        clock: Callable[[], float],
        rules: Rules,
        learning: Learning,
        healing: Healing,
    ) -> None:
        self._legs = legs
        self._releases = releases
        self._tell = tell
        self._tasks = tasks
        self._clock = clock
        self._rules = rules
        self._learning = learning
        self._healing = healing

    def begin(
        self,
        call: Call,
        placed: Placed,
        body: Callable[[Body], Encoded],
        read_handoff: Callable[[bytes, Usage], Handoff],
    ) -> "asyncio.Task[Reply | AttemptFailedError | None]":
        """Send the prefill leg, in a task of its own, which may outlive its client.

        `body` turns the request for the first token into the leg's body; `read_handoff` reads its answer. The
        task ends with None if the custody has the handoff, with an AttemptFailedError if another attempt may
        do better, or with the reply that goes to the client.
        """
        placed.compares()
        call.ticket.keep()
        run = _Run(call, placed, body, read_handoff)
        leg = self._tasks.create(self._leg(run), name=f"prefill {call.leg_id}")
        leg.add_done_callback(run.over)
        placed.runs_apart()
        return leg

    async def _leg(self, run: "_Run") -> Reply | AttemptFailedError | None:
        call, placed = run.call, run.placed
        chosen, custody = placed.prefill, placed.custody
        leg = Leg(self._tell, self._clock, Phase.PREFILL, chosen, call.request.prompt_count)
        placed.prefill_leg.add(leg.end)
        came = finished = False
        try:
            asked = self._healing.asking(call, chosen, placed.question)
            with within(self._rules.deadlines.prefill_s, chosen.instance, "the prefill leg"):
                answer = await self._send(leg, run, asked)
                finished = answer.status == 200
                data = await answer.read(max_answer_bytes(call.request.body.size_bytes))
            placed.prefill_leg.close()
            failure = call.request.dialect.failure(data) if finished else None
            came = finished and failure is None
        except BaseException as error:
            placed.prefill_leg.close()
            if isinstance(error, ConnectFailedError):
                custody.failed()
            else:
                custody.lost(finished=finished)
            leg.over(reason_of(error) if isinstance(error, LegError) else LEFT)
            if not isinstance(error, LegError):
                raise
            self._legs.failed(error)
            return AttemptFailedError(Phase.PREFILL, chosen.instance, cause=error)
        finally:
            placed.computed(came=came)
        if not came:
            custody.failed()
            reply = (
                as_unary(answer, failure, placed.decision)
                if failure is not None
                else Reply(answer.status, answer.headers, data, placed.decision)
            )
            why = self._legs.why_another(leg, call, reply)
            leg.over(why or REFUSED, answered=True)
            if why is not None:
                return AttemptFailedError(
                    Phase.PREFILL, chosen.instance, reply, reason=why, after_s=leg.age_s
                )
            return reply
        try:
            usage = call.request.dialect.usage(data)
            handoff = run.read_handoff(data, usage)
        except Exception as error:  # noqa: BLE001  # a connector from outside kvproxy may fail in any way
            custody.failed()
            leg.over(Reason.OTHER, answered=True)
            words = (
                str(error)
                if isinstance(error, ValueError)
                else f"the connector failed ({type(error).__name__})"
            )
            cause = LegError(chosen.instance, words)
            return AttemptFailedError(Phase.PREFILL, chosen.instance, cause=cause)
        custody.answered(handoff, self._clock())
        self._releases.begun(custody)
        if custody.state is HoldState.PULLED:  # the decode leg, which runs at once, has produced before
            self._legs.served(chosen.instance)
        learnt = self._learning.prefilled(placed)
        leg.over(SERVED, learnt, answered=True, first_token_ms=usage.first_token_ms)
        call.trace.prefill_s, call.trace.prefill_usage = leg.age_s, usage
        self._healing.answered(chosen, placed.question, handoff, asked=asked is not None)
        return None

    async def _send(self, leg: Leg, run: "_Run", asked: Body | None) -> Answer:
        """Send the leg; if it is refused with the question for a report, send it again without."""
        if asked is not None:
            answer = await self._legs.send(leg, run.call, run.first(asked))
            if not 400 <= answer.status < 500 or answer.status in FULL:
                return answer
            leg.end()
        answer = await self._legs.send(leg, run.call, run.first(run.call.request.body))
        if asked is not None and answer.status == 200:
            self._healing.refused(leg.chosen)
        return answer


class _Run(NamedTuple):
    """One prefill leg, with how its body is made and its answer read."""

    call: Call
    placed: Placed
    body: Callable[[Body], Encoded]
    read_handoff: Callable[[bytes, Usage], Handoff]

    def first(self, body: Body) -> Encoded:
        return self.body(self.call.request.dialect.first_token_only(body))

    def over(self, _leg: object) -> None:
        """The leg has ended, however it did: give back what it has kept."""
        try:
            self.placed.prefill_over()
        finally:
            self.call.ticket.let_go()
