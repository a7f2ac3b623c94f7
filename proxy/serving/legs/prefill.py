"""The prefill leg outlives its client long enough to tell what it holds, and always tells its hold how it
ended.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from proxy.config import Rules
from proxy.connectors import Connector
from proxy.connectors.handoff import most_answer_bytes
from proxy.errors import ConnectFailedError, LegError
from proxy.fleet.fullness import FULL
from proxy.happenings import HoldEnded, Tell
from proxy.phases import Phase
from proxy.request.body import Body, Encoded
from proxy.request.deadlines import within
from proxy.scheduling.types import Candidate
from proxy.serving.custody import Due, Hold
from proxy.serving.exchange import Call, Reply, as_unary
from proxy.serving.handover.releases import Releases
from proxy.serving.healing import Healing
from proxy.serving.learning import Learning
from proxy.serving.legs.leg import (
    LEFT,
    REFUSED,
    SERVED,
    AttemptFailedError,
    Legs,
    Reason,
    Sent,
    Untold,
    reason_of,
)
from proxy.serving.placed import Placed
from proxy.serving.waits import WAITS, Waits
from proxy.tasks import TaskOwner


class PrefillLegs:
    """Runs prefill legs."""

    def __init__(
        self,
        *,
        connector: Connector,
        legs: Legs,
        releases: Releases,
        tell: Tell,
        tasks: TaskOwner,
        clock: Callable[[], float],
        rules: Rules,
        learning: Learning,
        healing: Healing,
        waits: Waits = WAITS,
    ) -> None:
        self._connector = connector
        self._legs = legs
        self._releases = releases
        self._tell = tell
        self._tasks = tasks
        self._clock = clock
        self._rules = rules
        self._learning = learning
        self._healing = healing
        self._grace_s = waits.abandoned_prefill_s

    async def run(self, call: Call, placed: Placed) -> Reply | None:
        """Have the hold filled. A reply is the engine's last word on the request; without one the hold is held.

        Raises AttemptFailedError. The leg is a task of its own, so that it survives its client long enough to
        be cleaned up.
        """
        placed.compares()
        kept = ExitStack()
        kept.enter_context(call.ticket.kept())  # its client may leave, and it still runs
        kept.callback(placed.prefill_over)
        leg = self._tasks.create(self._leg(call, placed), name=f"prefill {call.leg_id}")
        leg.add_done_callback(lambda _leg: kept.close())
        placed.runs_apart()
        try:
            end = await asyncio.shield(leg)
        except asyncio.CancelledError:
            if not leg.cancelled():
                self._tasks.create(self._abandon(call, placed, leg), name=f"abandon prefill {call.leg_id}")
            raise
        if isinstance(end, AttemptFailedError):
            raise end
        return end

    async def _abandon(
        self, call: Call, placed: Placed, leg: "asyncio.Task[Reply | AttemptFailedError | None]"
    ) -> None:
        hold = placed.hold
        hold.give_up()
        try:
            await asyncio.wait({leg}, timeout=self._grace_s)
            if not leg.done():
                leg.cancel()
                await asyncio.wait({leg})
        finally:
            # Also when kvproxy stops: whatever is held by now has nobody else.
            if self._connector.holds and hold.due(self._clock()) is Due.RELEASE:
                await self._releases.release(call, hold)

    async def _leg(self, call: Call, placed: Placed) -> Reply | AttemptFailedError | None:
        chosen, hold = placed.prefill, placed.hold
        untold = Untold(self._tell, self._clock, Phase.PREFILL, chosen)
        came = finished = False
        try:
            with placed.prefill_leg as leg:
                asked = self._healing.asking(call, chosen, placed.question)
                with within(self._rules.deadlines.prefill_s, chosen.instance, "the prefill leg"):
                    sent = await self._send(call, chosen, asked, leg)
                    answer = sent.answer
                    finished = answer.status == 200
                    data = await answer.read(most_answer_bytes(call.request.body.size_bytes))
            failure = call.request.dialect.failure(data) if finished else None
            came = finished and failure is None
        except BaseException as error:
            self._ended_early(hold, error, finished=finished)
            untold.over(reason_of(error) if isinstance(error, LegError) else LEFT)
            if not isinstance(error, LegError):
                raise
            self._legs.failed(error)
            return AttemptFailedError(Phase.PREFILL, chosen.instance, cause=error)
        finally:
            placed.computed(came=came)
        if not came:
            hold.failed()
            reply = (
                as_unary(answer, failure, placed.decision)
                if failure is not None
                else Reply(answer.status, answer.headers, data, placed.decision)
            )
            why = self._legs.worth_another(Phase.PREFILL, call, chosen, sent, reply)
            untold.over(why or REFUSED, answered=True)
            if why is not None:
                after_s = self._legs.age_s(sent)
                return AttemptFailedError(Phase.PREFILL, chosen.instance, reply, reason=why, after_s=after_s)
            return reply
        try:
            handoff = self._connector.read_handoff(data, call.request.dialect.usage(data))
        except ValueError as error:
            hold.failed()
            untold.over(Reason.OTHER, answered=True)
            cause = LegError(chosen.instance, str(error))
            return AttemptFailedError(Phase.PREFILL, chosen.instance, cause=cause)
        hold.answered(handoff, self._clock())
        if self._connector.holds:
            self._releases.begun(hold)
        untold.over(SERVED, self._learning.prefilled(placed), answered=True)
        self._healing.answered(chosen, placed.question, handoff, asked=asked is not None)
        return None

    async def _send(self, call: Call, chosen: Candidate, asked: Body | None, stack: ExitStack) -> Sent:
        """Send the leg; once more without the question for a report if that may be why it is refused."""
        if asked is not None:
            sent = await self._legs.send(call, chosen, self._first(call, asked), stack)
            if not 400 <= sent.answer.status < 500 or sent.answer.status in FULL:
                return sent
            sent.answer.close()
            sent.end()
        sent = await self._legs.send(call, chosen, self._first(call, call.request.body), stack)
        if asked is not None and sent.answer.status == 200:
            self._healing.refused(chosen)
        return sent

    def _first(self, call: Call, body: Body) -> Encoded:
        return self._connector.prefill_body(call.request.dialect.first_token_only(body))

    def _ended_early(self, hold: Hold, error: BaseException, *, finished: bool) -> None:
        if isinstance(error, ConnectFailedError):
            hold.failed()
            return
        hold.lost(finished=finished)
        if self._connector.holds:
            self._tell(HoldEnded(hold.instance, hold.state))
