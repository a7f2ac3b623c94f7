"""A prefill leg always tells its custody how it ended, and outlives its client long enough to name the blocks
that it leaves.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from proxy.config import Rules
from proxy.connectors.handoff import Handoff, max_answer_bytes
from proxy.errors import ConnectFailedError, DeadlineError, LegError
from proxy.fleet.fullness import FULL
from proxy.happenings import Tell
from proxy.phases import Phase
from proxy.request.body import Body, Encoded
from proxy.request.deadlines import alarm, within
from proxy.request.dialects import Failure, Usage
from proxy.serving.custody import HoldState
from proxy.serving.ends import Ends
from proxy.serving.exchange import Call, Reply, as_unary
from proxy.serving.handover.releases import Releases
from proxy.serving.healing import Healing
from proxy.serving.learning import Learning
from proxy.serving.legs.leg import (
    LEFT,
    REFUSED,
    SERVED,
    AttemptFailedError,
    H,
    Legs,
    Reason,
    Sent,
    Untold,
    reason_of,
)
from proxy.serving.placed import Placed
from proxy.serving.ports import Answer, Errand, Head
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)


PrefillEnd = Reply | AttemptFailedError | None
"""None if the custody has the handoff, an AttemptFailedError if another attempt may do better, or the reply
that goes to the client."""


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
        self.legs = legs
        self.releases = releases
        self.tell = tell
        self.tasks = tasks
        self.clock = clock
        self.rules = rules
        self.learning = learning
        self.healing = healing

    def begin(
        self,
        call: Call,
        placed: Placed,
        body: Callable[[Body], Encoded],
        read_handoff: Callable[[bytes, Usage], Handoff],
    ) -> "asyncio.Future[PrefillEnd]":
        """Send the prefill leg, which may outlive its client: it ends when it is answered, or is cancelled.

        `body` turns the request for the first token into the leg's body; `read_handoff` reads its answer.
        """
        leg = _Leg(self, call, placed, body, read_handoff)
        return leg.as_errand() or leg.as_task()

    def begin_task(
        self,
        call: Call,
        placed: Placed,
        body: Callable[[Body], Encoded],
        read_handoff: Callable[[bytes, Usage], Handoff],
    ) -> "asyncio.Task[PrefillEnd]":
        """The same in a task of its own, as legs that end each other need it."""
        return _Leg(self, call, placed, body, read_handoff).as_task()


class _Leg:
    """One prefill leg.

    Most are sent on a connection that is free, and are an errand: what its end asks for is done as the answer
    comes. Those that connect first, have a large body or ask for a report are a task.
    """

    __slots__ = (
        "_asked",
        "_body",
        "_by",
        "_call",
        "_encoded",
        "_end",
        "_limit_s",
        "_placed",
        "_read_handoff",
        "_sent",
        "_untold",
    )

    def __init__(
        self,
        by: PrefillLegs,
        call: Call,
        placed: Placed,
        body: Callable[[Body], Encoded],
        read_handoff: Callable[[bytes, Usage], Handoff],
    ) -> None:
        self._by = by
        self._call = call
        self._placed = placed
        self._body = body
        self._read_handoff = read_handoff
        self._limit_s = by.rules.deadlines.prefill_s
        self._sent: Sent[Errand] | None = None
        self._encoded: Encoded | None = None
        placed.compares()
        self._untold = Untold(by.tell, by.clock, Phase.PREFILL, placed.prefill)
        self._asked = by.healing.asking(call, placed.prefill, placed.question)
        """The request with the question for a report; None if the leg does not ask."""

    def as_errand(self) -> "asyncio.Future[PrefillEnd] | None":
        """Send it on a connection that is free; None if it has to be a task."""
        if self._asked is not None:
            return None
        call, placed, by = self._call, self._placed, self._by
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[PrefillEnd] = loop.create_future()
        try:
            body = self._encoded = self._first(call.request.body)
            limit_bytes = max_answer_bytes(call.request.body.size_bytes)
            ends = placed.prefill_leg
            self._sent = by.legs.begin(call, placed.prefill, body, limit_bytes, self._came, ends)
        except Exception as error:  # noqa: BLE001  # a connector from outside kvproxy may fail in any way
            self._ends_with(error, finished=False)
        else:
            if self._sent is None:
                return None
            alarm().set(self, loop.time() + self._limit_s)
        self._runs(self._end)
        return self._end

    def as_task(self) -> "asyncio.Task[PrefillEnd]":
        """Send it from a task."""
        leg = self._by.tasks.create(self._task(), name=f"prefill {self._call.leg_id}")
        self._runs(leg)
        return leg

    def _runs(self, leg: "asyncio.Future[PrefillEnd]") -> None:
        self._call.ticket.keep()
        self._placed.runs_apart()
        leg.add_done_callback(self._over)

    def _over(self, leg: "asyncio.Future[PrefillEnd]") -> None:
        if self._sent is not None and leg.cancelled():
            alarm().unset(self)
            with suppress(asyncio.CancelledError):
                self._failed(asyncio.CancelledError(), finished=self._sent.answer.status == 200)
        self._placed.prefill_over()
        self._call.ticket.let_go()

    # -- an errand ----------------------------------------------------------------------------------------

    def end(self) -> None:
        """Its time is up."""
        words = f"the prefill leg took longer than {self._limit_s:g} s"
        self._settle(DeadlineError(self._placed.prefill.instance, words))

    def _came(self) -> None:
        """Its answer is here, or will not come."""
        alarm().unset(self)
        if self._sent is not None and not self._end.done():  # else it was cancelled just now
            self._settle(self._sent.answer.error)

    def _settle(self, error: LegError | None) -> None:
        sent = self._sent
        if sent is None:
            raise RuntimeError("an errand was answered that was not sent")
        answer = sent.answer
        if answer.status:
            self._by.legs.begun(self._call, sent)
        problem: Exception | None = error
        failure: Failure | None = None
        if problem is None:
            try:
                failure = self._failure(answer, answer.data)
            except Exception as raised:  # noqa: BLE001  # a dialect from outside kvproxy may fail in any way
                problem = raised
        if problem is not None:
            self._ends_with(problem, finished=answer.status == 200)
            return
        try:
            self._end.set_result(self._answered(sent, answer.data, failure))
        except Exception as unexpected:  # noqa: BLE001  # whoever waits for the leg gets it, whatever it is
            self._fails_with(unexpected)

    def _ends_with(self, error: Exception, *, finished: bool) -> None:
        try:
            self._end.set_result(self._failed(error, finished=finished))
        except Exception as unexpected:  # noqa: BLE001  # the same
            self._fails_with(unexpected)

    def _fails_with(self, error: Exception) -> None:
        log.error("prefill %s failed", self._call.leg_id, exc_info=error)
        self._end.set_exception(error)

    # -- a task -------------------------------------------------------------------------------------------

    async def _task(self) -> PrefillEnd:
        finished = False
        try:
            with within(self._limit_s, self._placed.prefill.instance, "the prefill leg"):
                sent = await self._send(self._placed.prefill_leg)
                finished = sent.answer.status == 200
                data = await sent.answer.read(max_answer_bytes(self._call.request.body.size_bytes))
            failure = self._failure(sent.answer, data)
        except BaseException as error:  # noqa: BLE001  # `_failed` raises what is no LegError
            return self._failed(error, finished=finished)
        return self._answered(sent, data, failure)

    async def _send(self, ends: Ends) -> Sent[Answer]:
        """Send the leg; if it is refused with the question for a report, send it again without."""
        call, chosen, legs, asked = self._call, self._placed.prefill, self._by.legs, self._asked
        if asked is not None:
            sent = await legs.send(call, chosen, self._first(asked), ends)
            if not 400 <= sent.answer.status < 500 or sent.answer.status in FULL:
                return sent
            sent.answer.close()
            sent.end()
        sent = await legs.send(call, chosen, self._encoded or self._first(call.request.body), ends)
        if asked is not None and sent.answer.status == 200:
            self._by.healing.refused(chosen)
        return sent

    # -- both ---------------------------------------------------------------------------------------------

    def _first(self, body: Body) -> Encoded:
        return self._body(self._call.request.dialect.first_token_only(body))

    def _failure(self, answer: Head, data: bytes) -> Failure | None:
        return self._call.request.dialect.failure(data) if answer.status == 200 else None

    def _failed(self, error: BaseException, *, finished: bool) -> AttemptFailedError:
        """The leg has no answer, for this reason; `finished`: its head told of success. Raises `error` if it
        is no LegError.
        """
        placed, custody = self._placed, self._placed.custody
        placed.prefill_leg.close()
        if isinstance(error, ConnectFailedError):
            custody.failed()
        else:
            custody.lost(finished=finished)
        self._untold.over(reason_of(error) if isinstance(error, LegError) else LEFT)
        try:
            if not isinstance(error, LegError):
                raise error
            self._by.legs.failed(error)
        finally:
            placed.computed(came=False)
        return AttemptFailedError(Phase.PREFILL, placed.prefill.instance, cause=error)

    def _answered(self, sent: Sent[H], data: bytes, failure: Failure | None) -> PrefillEnd:
        by, call, placed, answer = self._by, self._call, self._placed, sent.answer
        chosen, custody = placed.prefill, placed.custody
        came = answer.status == 200 and failure is None
        placed.computed(came=came)
        if not came:
            custody.failed()
            reply = (
                as_unary(answer, failure, placed.decision)
                if failure is not None
                else Reply(answer.status, answer.headers, data, placed.decision)
            )
            why = by.legs.why_another(Phase.PREFILL, call, chosen, sent, reply)
            self._untold.over(why or REFUSED, answered=True)
            if why is not None:
                after_s = by.legs.age_s(sent)
                return AttemptFailedError(Phase.PREFILL, chosen.instance, reply, reason=why, after_s=after_s)
            return reply
        try:
            handoff = self._read_handoff(data, call.request.dialect.usage(data))
        except Exception as error:  # noqa: BLE001  # a connector from outside kvproxy may fail in any way
            custody.failed()
            self._untold.over(Reason.OTHER, answered=True)
            words = (
                str(error)
                if isinstance(error, ValueError)
                else f"the connector failed ({type(error).__name__})"
            )
            cause = LegError(chosen.instance, words)
            return AttemptFailedError(Phase.PREFILL, chosen.instance, cause=cause)
        custody.answered(handoff, by.clock())
        by.releases.begun(custody)
        if custody.state is HoldState.PULLED:  # the decode leg, which runs at once, has produced before
            by.legs.served(chosen.instance)
        self._untold.over(SERVED, by.learning.prefilled(placed), answered=True)
        by.healing.answered(chosen, placed.question, handoff, asked=self._asked is not None)
        return None
