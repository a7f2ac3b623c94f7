"""A request is let in when a decision exists whose instances have room for it; until then it waits its turn.

Pure: times are passed in, and decisions come out as grants and refusals. Nothing polls: the queue is looked
at when a claim ends, when an instance becomes usable or not, when the pause of one that said it is full is
over, and when a request leaves the queue. Then as many requests are let in as fit. Each holds its claims from
its decision on, so those let in together see each other; the claims pass to whatever serves the request, and
are never let go of in between.

A request that waits for room keeps it: an instance that is full for the request whose turn it is stays closed
for all behind it, so short prompts do not starve a long one. A request that waits for an instance to become
usable keeps no room, and neither does one that waits for another request of its own client to end.
"""

from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

import msgspec

from proxy.admission.drain_rate import DrainRate
from proxy.admission.lacks import NOTHING, Lack, lack_of
from proxy.admission.refusals import Refusals
from proxy.admission.running import Running
from proxy.admission.shown import QueueShown
from proxy.admission.ticket import Ticket
from proxy.admission.turns import Admitted, Grant, Outcome, Refusal, Turn
from proxy.config import Rules, WhenNoPrefill
from proxy.errors import NotFoundError, RequestError, cut
from proxy.fair_queue import FairQueue, QueueFullError
from proxy.fleet import Fleet
from proxy.happenings import NoPrefill, QueueLeft, Refused, Tell
from proxy.phases import Phase
from proxy.scheduling.bypass import Bypass
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question


class Lanes:
    """The queue, and the decision which requests are let in. Times are seconds of any one monotonic clock."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        rules: Rules,
        tell: Tell,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` is called in the middle of a change after which `due` is true, or no request waits; it
        should only set a flag.
        """
        self._fleet = fleet
        self._placement = placement
        self._rules = rules
        self._limits = limits = rules.admission
        """The limits of the start, for cold settings."""
        self._tell = tell
        self._wake = wake
        self._refusals = Refusals(rules, tell)
        self._queue: FairQueue[Turn] = FairQueue(limits.max_queue)
        self._running = Running(self._queue, limits.max_client_requests, self._note)
        self._rate = DrainRate()
        self._blocked: set[Hashable] = set()
        """Lanes whose first request cannot be placed, as far as is known since the last change."""
        self._kept: set[tuple[Phase, str]] = set()
        """Instances that are full for the first request of one of these lanes."""
        self._stopping = False
        self._at_rest = False
        """Whether nobody has waited since all was last forgotten and told, so that a change means nothing."""
        self.due = False
        """Whether something has changed since the last look, so that `changed` has to be called; once for all
        that changes together."""
        fleet.listen(self._note)

    def __len__(self) -> int:
        """The number of requests that wait; each part of a request counts."""
        return len(self._queue)

    @property
    def clients_held_back(self) -> int:
        """The number of clients that have as many requests running as one may."""
        return self._queue.clients_held_back

    def status(self) -> QueueShown:
        """The queue and its limits, for `/status`."""
        limits = self._limits
        return QueueShown(
            waiting=len(self._queue),
            waiting_clients=self._queue.clients,
            running_clients=len(self._running),
            clients_held_back=self.clients_held_back,
            max_client_requests=limits.max_client_requests,
            max_client_priority=self._rules.admission.max_client_priority,
            max_queue=limits.max_queue,
            queue_timeout_s=self._rules.admission.queue_timeout_s,
            max_prefill_tokens=limits.max_prefill_tokens,
            max_decode_tokens=limits.max_decode_tokens,
            expected_answer_tokens=self._rules.admission.expected_answer_tokens,
            when_no_prefill=limits.when_no_prefill,
        )

    # -- what happens ---------------------------------------------------------------------------------------

    def turn(
        self,
        ticket: Ticket,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
    ) -> Turn:
        """An attempt at a request, for `offer`; `failed` and `prefill_on`: as of `Constraints`."""
        return Turn(ticket, question, failed, prefill_on, self._fitting)

    def offer(self, turn: Turn, now: float) -> list[Outcome]:
        """A request wants in. If nothing is decided about it, it waits, for `left_s` at most.

        A ticket that was admitted before is a retry: it does not wait for room, nor for other requests of its
        client, only for a usable instance and for engines that say they are full. A request that these have
        turned away has, for all its attempts, no more than its time in the queue; after that it is let in at
        once where none of these engines is asked again, or refused. Others may have to leave the queue for a
        new request.
        """
        ticket = turn.ticket
        if self._stopping and not ticket.of.admitted:
            return [Refusal(turn, self._refusals.stopping())]
        try:
            if self._time_is_up(ticket, now):
                place = self._try(turn)
                if place is None or ticket.turned_away_by & place.decision.instances:
                    turn.lack = (turn.lack or Lack())._replace(engines_full=True)
                    return [self._timed_out(turn, now)]
            else:
                behind = self._running.holds_back(ticket) or (
                    len(self._queue) and self._queue.waits_in(turn.lane)
                )
                place = None if behind else self._try(turn)
        except Exception as error:  # noqa: BLE001  # raised to the request that asked
            return [Refusal(turn, error)]
        if place is not None:
            return [self._grant(turn, place)]
        return [self._timed_out(turn, now)] if self.left_s(turn) <= 0 else self._push(turn, now)

    def changed(self, now: float, gone: Callable[[Turn], bool] = lambda _: False) -> list[Outcome]:
        """Look again: a change may let in some requests that wait. `gone`: whether the client of a turn has
        left without a word.
        """
        self.due = False
        self._blocked.clear()
        self._kept.clear()
        outcomes: list[Outcome] = []
        while (waiting := self._queue.next(self._blocked)) is not None:
            turn = waiting.item
            if gone(turn):
                self._queue.drop(waiting)
                continue
            try:
                place = self._try(turn)
            except Exception as error:  # noqa: BLE001  # a policy that fails fails its request, not the queue
                outcomes.append(self._refuse(turn, error, now))
                continue
            if place is None:
                self._block(turn)
            else:
                self._queue.take(waiting)
                self._waits_no_more(turn, now)
                self._rate.left(now)
                outcomes.append(self._grant(turn, place))
        return outcomes

    def leave(self, turn: Turn, now: float) -> None:
        """A request waits no more, because its client has gone; nothing happens if it was decided about."""
        if (waiting := turn.waiting) is not None:
            self._waits_no_more(turn, now)
            if self._queue.drop(waiting):
                self._note()

    def expire(self, turn: Turn, now: float) -> Refusal:
        """A request has waited as long as it may."""
        refusal = self._timed_out(turn, now)
        self.leave(turn, now)
        return refusal

    def close(self, now: float) -> list[Outcome]:
        """Let no new request in any more, and refuse new ones that wait; retries are still let in."""
        self._stopping = True
        new = [waiting.item for waiting in self._queue if not waiting.item.ticket.of.admitted]
        refusals: list[Outcome] = [self._refuse(turn, self._refusals.stopping(), now) for turn in new]
        self._note()
        return refusals

    def left_s(self, turn: Turn) -> float:
        """Seconds that a turn may wait from when it is offered."""
        return self._rules.admission.queue_timeout_s - turn.ticket.waited_s

    def look_again_in_s(self, now: float) -> float | None:
        """Seconds until the pause of an engine that said it is full is over; None if there is none, or no
        request waits.
        """
        return self._fleet.reopens_in_s(now) if self._queue else None

    # -- one request ----------------------------------------------------------------------------------------

    def _time_is_up(self, ticket: Ticket, now: float) -> bool:
        """Whether a request that engines turned away may not be turned away again.

        Its time in the queue counts, and all time since it was turned away first: otherwise engines that have
        room for a moment, whenever it comes back from another prefill leg, could turn it away for ever.
        """
        if ticket.turned_away_at is None:
            return False
        return max(now - ticket.turned_away_at, ticket.waited_s) >= self._rules.admission.queue_timeout_s

    def _try(self, turn: Turn) -> "_Place | None":
        """Place a request if it can be placed now. Raises RequestError if it may not wait either."""
        question = turn.question
        decision = self._decide(turn, question)
        if decision.admissible:
            turn.lack = NOTHING
            self._check_in_time(turn, decision)
            return _Place(question, decision)
        turn.lack = lack_of(question, decision)
        if Phase.PREFILL in turn.lack.missing:
            self._check_served(question)
            self._tell_no_prefill(turn)
            if self._limits.when_no_prefill is WhenNoPrefill.DECODE:
                question = msgspec.structs.replace(question, whole=True)
                decision = self._decide(turn, question).served_whole(Bypass.NO_PREFILL)
                turn.lack = lack_of(question, decision)
        elif turn.lack.missing:
            self._check_served(question)
        if not decision.admissible:
            return None
        self._check_in_time(turn, decision)
        return _Place(question, decision)

    def _check_in_time(self, turn: Turn, decision: Decision) -> None:
        """Raise if the first token is predicted far later than it is wanted; a retry is not refused."""
        factor = self._rules.admission.refuse_late
        if not factor or turn.again or turn.question.goal is None:
            return
        lateness = self._placement.lateness(turn.question, decision)
        if lateness is not None and lateness.is_far(factor):
            raise self._refusals.late(lateness)

    def _fitting(self, question: Question) -> Hashable:
        """Equal for requests that fit into the same instances, and have as many legs if they are short."""
        return self._placement.need(question).of_its_kind(), self._placement.is_short(question)

    def _grant(self, turn: Turn, place: "_Place") -> Grant:
        """Let a request in: its legs count, and its blocks are expected, from now on."""
        self._running.let_in(turn.ticket)
        question, decision = place
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        if prefill is None or decode is None:
            raise RuntimeError("a request without a place was let in")
        self._placement.granted(question, decision)
        claim = self._placement.claim
        one_leg = prefill.instance == decode.instance
        admitted = Admitted(
            question,
            decision,
            decode=claim(decode, Phase.DECODE, question, computes=one_leg),
            prefill=None if one_leg else claim(prefill, Phase.PREFILL, question),
            expected=self._placement.expect(prefill, question),
        )
        return Grant(turn, admitted)

    def _decide(self, turn: Turn, question: Question) -> Decision:
        return self._placement.decide_to_follow(
            question,
            failed=turn.failed,
            prefill_on=turn.prefill_on,
            over_limit=turn.again or not turn.question.computes,
            kept=self._kept,
        )

    def _tell_no_prefill(self, turn: Turn) -> None:
        action = self._limits.when_no_prefill
        if not turn.met_no_prefill:
            turn.met_no_prefill = True
            self._tell(NoPrefill(action))
        if action is WhenNoPrefill.FAIL:
            raise self._refusals.missing([Phase.PREFILL], "no_prefill")

    def _check_served(self, question: Question) -> None:
        """Raise rather than wait for an instance that cannot exist.

        A model name that might be right while no engine had listed any may turn out to be wrong, and a prompt
        may be too long for all engines.
        """
        model = question.model
        if any(instance.model_cards for instance in self._fleet) and not self._fleet.serves(model):
            raise NotFoundError(f"The model `{cut(model)}` does not exist.", param="model")
        alone = self._limits.when_no_prefill is WhenNoPrefill.DECODE
        needed = msgspec.structs.replace(question, whole=True) if alone else question
        if (refusal := self._placement.need(needed).refusal()) is not None:
            self._tell(Refused("too_long"))
            raise refusal

    def _timed_out(self, turn: Turn, now: float) -> Refusal:
        return Refusal(turn, self._why_timed_out(turn, now))

    def _why_timed_out(self, turn: Turn, now: float) -> RequestError:
        if self._running.holds_back(turn.ticket):
            return self._refusals.client_limit(self._rate.retry_after_s(1, now))
        lack = turn.lack or lack_of(turn.question, self._decide(turn, turn.question))
        if lack.missing:
            return self._refusals.missing(lack.missing)
        if lack.engines_full:
            return self._refusals.engines_full(self._fleet.left_alone_s(now))
        return self._refusals.busy(self._come_back_in_s(now))

    def _come_back_in_s(self, now: float) -> int:
        return self._rate.retry_after_s(len(self._queue), now)

    # -- the queue ------------------------------------------------------------------------------------------

    def _push(self, turn: Turn, now: float) -> list[Outcome]:
        ticket = turn.ticket
        try:
            waiting, shed = self._queue.push(
                ticket.client,
                turn.lane,
                ticket.priority,
                0
                if turn.again
                else turn.question.weight_tokens,  # a retry was charged when the request was first let in
                turn,
                place=ticket.of,
                needs_place=not ticket.of.admitted,
            )
        except QueueFullError:
            return [Refusal(turn, self._refusals.queue_full(self._come_back_in_s(now)))]
        self._at_rest = False
        turn.waiting, turn.waits_since = waiting, now
        if not self._running.holds_back(ticket):
            self._block(turn)
        if not shed:
            return []
        errors = self._refusals.shed(self._come_back_in_s(now), len(shed))
        self._note()
        return [self._refuse(each.item, error, now) for each, error in zip(shed, errors, strict=True)]

    def _refuse(self, turn: Turn, error: Exception, now: float) -> Refusal:
        """Refuse a request that waits."""
        if turn.waiting is not None:
            self._queue.drop(turn.waiting)
            self._waits_no_more(turn, now)
        return Refusal(turn, error)

    def _waits_no_more(self, turn: Turn, now: float) -> None:
        turn.waiting = None
        seconds = now - turn.waits_since
        turn.ticket.waited_s += seconds
        self._tell(QueueLeft(seconds))

    def _block(self, turn: Turn) -> None:
        self._blocked.add(turn.lane)
        if turn.lack is not None and not turn.lack.missing:  # otherwise room alone would not help it
            self._kept |= turn.lack.full

    def _note(self) -> None:
        """Something has changed since the last look."""
        if self._queue:
            if self.due:
                return
            self.due = True
        elif self._at_rest:
            return
        else:
            self._at_rest = True
            self.due = False
            self._blocked.clear()
            self._kept.clear()
        self._wake()


class _Place(NamedTuple):
    """A decision for a request that can be placed now."""

    question: Question
    decision: Decision
