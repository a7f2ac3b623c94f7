"""A request is let in when a decision exists whose instances have room for it; until then it waits its turn.

The gate owns the queue. What is let in holds its claims from the moment of the decision, so those let in together
see each other. Nothing polls: the queue is looked at when a claim ends, when an instance becomes usable or
not, when the moment of one that said it is full is over, and when somebody leaves it. Then as many are let in as
fit, and nobody else is woken.

Who waits for room keeps it: an instance that is full for the request whose turn it is stays closed for all behind
it, so a long prompt is not starved by short ones. Who waits because nothing usable serves one of its legs closes nothing, and
neither does who waits for another request of its own client to end.
"""

import asyncio
import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import msgspec

from proxy.admission.drain_rate import DrainRate
from proxy.admission.ticket import Ticket
from proxy.config import Rules, WhenNoPrefill
from proxy.errors import NotFoundError, RateLimitError, RequestError, UnavailableError, cut, nothing_usable
from proxy.fair_queue import FairQueue, QueueFullError, Waiting
from proxy.fleet import Fleet
from proxy.fleet.why import NO_ROOM, Why
from proxy.phases import Phase
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question

ENGINES_FULL = "engines_full"
"""The reason of an error that tells of engines that say they are full."""


class QueueAccounts(Protocol):
    """Where the gate's counters and timings go."""

    def waited(self, seconds: float) -> None:
        """A request left the queue, served or not."""
        ...

    def refused(self, reason: str) -> None:
        """A request was not let in: `queue_full`, `shed`, `queue_timeout`, `client_limit`, `engines_full`, `no_prefill`,
        `no_engine`, `too_long` or `stopping`.
        """
        ...

    def no_prefill(self, action: str) -> None:
        """A request met no usable prefill instance, and what was done: `wait`, `decode` or `fail`."""
        ...


class Admitted(NamedTuple):
    """A request may go on, at once: whoever awaits this takes its claims before awaiting anything else."""

    question: Question
    """What was asked; changed if a decode instance is to serve it all."""
    decision: Decision


class _Turn:
    """One attempt at a request that wants in."""

    def __init__(
        self,
        ticket: Ticket,
        question: Question,
        failed: Collection[str],
        prefill_on: str | None,
        fitting: Callable[[], Hashable],
    ) -> None:
        """`fitting` tells the same for requests that fit into the same instances."""
        self.ticket = ticket
        self.question = question
        self.failed = failed
        self.prefill_on = prefill_on
        self.again = ticket.admitted
        self._fitting = fitting
        self.missing: list[Phase] = []
        """The phases for which nothing was usable at the last try."""
        self.full: set[tuple[Phase, str]] = set()
        """The instances that had no room for it at the last try."""
        self.engines_full = False
        """Whether all of a phase said so themselves."""
        self.tried = False
        """Whether it was ever looked at; who waits behind others in its lane is not."""
        self.told_no_prefill = False
        self.granted: Admitted | None = None
        self.refusal: Exception | None = None

    @functools.cached_property
    def lane(self) -> Hashable:
        """The same for requests of which none can be placed while another cannot."""
        return self.question.model, self.question.whole, self.again, self._fitting()

    @functools.cached_property
    def woken(self) -> "asyncio.Future[None]":
        """Done once its time in the queue is over; of use only to who waits."""
        return asyncio.get_running_loop().create_future()

    @functools.cached_property
    def reserved(self) -> ExitStack:
        """What is counted for it from the moment it is let in from the queue until it does so itself."""
        return ExitStack()

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Gate:
    """Lets requests in; one for the whole process."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        rules: Rules,
        accounts: QueueAccounts,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._placement = placement
        self._rules = rules
        self._limits = limits = rules.admission
        """As they were at the start, for what is cold."""
        self._accounts = accounts
        self._clock = clock
        self._queue: FairQueue[_Turn] = FairQueue(limits.max_queue)
        self._running: Counter[str] = Counter()
        """How many requests of each client were let in and are not over."""
        self._rate = DrainRate()
        self._blocked: set[Hashable] = set()
        """Lanes whose first request cannot be placed, as far as is known since the last change."""
        self._kept: set[tuple[Phase, str]] = set()
        """Instances that are full for one of those."""
        self._due = False
        self._stopping = False
        self._reopening: asyncio.TimerHandle | None = None
        """Runs while somebody waits and an engine says that it is full."""
        fleet.listen(self._changed)

    def __len__(self) -> int:
        """How many requests wait, the parts of one counted singly."""
        return len(self._queue)

    @property
    def clients_held_back(self) -> int:
        """How many clients have as many requests running as one may."""
        return self._queue.clients_held_back

    def status(self) -> dict[str, Any]:
        """The queue and its limits, for `/status`."""
        limits = self._limits
        return {
            "waiting": len(self._queue),
            "waiting_clients": self._queue.clients,
            "running_clients": len(self._running),
            "clients_held_back": self.clients_held_back,
            "max_client_requests": limits.max_client_requests,
            "max_client_priority": self._rules.admission.max_client_priority,
            "max_queue": limits.max_queue,
            "queue_timeout_s": self._rules.admission.queue_timeout_s,
            "max_prefill_tokens": limits.max_prefill_tokens,
            "max_decode_tokens": limits.max_decode_tokens,
            "expected_answer_tokens": self._rules.admission.expected_answer_tokens,
            "when_no_prefill": limits.when_no_prefill,
        }

    async def admit(
        self,
        ticket: Ticket,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
    ) -> Admitted:
        """Wait until a request may go on. Raises RequestError; may be cancelled, and then leaves the queue.

        A ticket that was admitted before is a retry: it does not wait for room, only for something usable, and for
        engines that say they are full, and whatever its client has running. One that was turned away by them has no more
        than its time in the queue for all its attempts; after that it gets in at once, where none of them is asked
        again, or not at all.
        """
        if self._stopping and not ticket.of.admitted:
            raise self._stopped()
        turn = _Turn(
            ticket, question, failed, prefill_on, lambda: self._placement.need(question).of_its_kind()
        )
        if self._time_is_up(ticket):
            admitted = self._try(turn)
            if admitted is None or ticket.turned_away_by & _chosen(admitted.decision):
                turn.engines_full = True
                raise self._timed_out(turn)
        else:
            behind = self._held_back(ticket) or (len(self._queue) and self._queue.waits_in(turn.lane))
            admitted = None if behind else self._try(turn)
        if admitted is None:
            admitted = await self._wait(turn)
        self._let_in(ticket)
        return admitted

    def close(self) -> None:
        """Let nobody in any more who was not before, and answer those who wait."""
        self._stopping = True
        for waiting in self._queue:
            if not waiting.item.ticket.of.admitted:
                self._refuse(waiting, self._stopped())
        self._changed()

    # -- one client -----------------------------------------------------------------------------------------

    def _held_back(self, ticket: Ticket) -> bool:
        """Whether its client has as many requests running as one may, and this would be one more."""
        return not ticket.of.admitted and self._queue.is_held_back(ticket.client)

    def _let_in(self, ticket: Ticket) -> None:
        whole = ticket.of
        if not whole.admitted:
            client = whole.client
            self._running[client] += 1
            whole.when_over = functools.partial(self._over, client)
            if self._running[client] == self._limits.max_client_requests:
                self._queue.hold_back(client)
            self._queue.let_in(client, whole)
        ticket.let_in()

    def _over(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        if self._queue.is_held_back(client):
            self._queue.let_go(client)
            self._changed()

    # -- one request ----------------------------------------------------------------------------------------

    def _time_is_up(self, ticket: Ticket) -> bool:
        """Whether a request that was turned away may not be so again.

        Its queueing counts, and all that happened since it was turned away first: else engines that have a moment of
        room whenever it comes back from another prefill leg could turn it away for ever.
        """
        if ticket.turned_away_at is None:
            return False
        passed_s = self._clock() - ticket.turned_away_at
        return max(passed_s, ticket.waited_s) >= self._rules.admission.queue_timeout_s

    async def _wait(self, turn: _Turn) -> Admitted:
        ticket = turn.ticket
        left_s = self._rules.admission.queue_timeout_s - ticket.waited_s
        if left_s <= 0:
            raise self._timed_out(turn)
        waiting = self._push(turn)
        began_at = self._clock()
        try:
            async with asyncio.timeout(left_s):
                await turn.woken
        except TimeoutError:
            if turn.granted is None and turn.refusal is None:
                raise self._timed_out(turn) from None
        except asyncio.CancelledError:
            turn.granted = None
            raise
        finally:
            seconds = self._clock() - began_at
            ticket.waited_s += seconds
            self._accounts.waited(seconds)
            if self._queue.drop(waiting):
                self._changed()
            turn.reserved.close()  # its request takes the same claims before anybody else runs
        if turn.refusal is not None:
            raise turn.refusal
        if turn.granted is None:
            raise RuntimeError("a request was woken for nothing")
        return turn.granted

    def _push(self, turn: _Turn) -> Waiting[_Turn]:
        ticket, question = turn.ticket, turn.question
        # A retry was charged when it was let in first.
        tokens = 0 if turn.again else question.weight_tokens
        try:
            waiting, shed = self._queue.push(
                ticket.client,
                turn.lane,
                ticket.priority,
                tokens,
                turn,
                place=ticket.of,
                needs_place=not ticket.of.admitted,
            )
        except QueueFullError:
            self._accounts.refused("queue_full")
            raise self._full("the queue is full", "queue_full") from None
        if not self._held_back(ticket):
            self._block(turn)
        self._watch_moments()
        for each in shed:
            self._refuse(each, self._full("the queue is full, and this client has most of it", "shed"))
        if shed:
            self._accounts.refused("shed")
            self._changed()
        return waiting

    def _try(self, turn: _Turn) -> Admitted | None:
        """Place it if it can be placed now. Raises RequestError if it is not to wait either."""
        question = turn.question
        decision = self._decide(turn, question)
        turn.tried = True
        if decision.admissible:
            turn.missing, turn.full, turn.engines_full = [], set(), False
            return Admitted(question, decision)
        turn.missing = _missing(question, decision)
        if Phase.PREFILL in turn.missing:
            self._check_served(question)
            self._told_no_prefill(turn)
            if self._limits.when_no_prefill is WhenNoPrefill.DECODE:
                question = msgspec.structs.replace(question, whole=True)
                decision = self._decide(turn, question)
                turn.missing = _missing(question, decision)
        elif turn.missing:
            self._check_served(question)
        turn.full = _full_instances(question, decision)
        turn.engines_full = _engines_full(question, decision)
        return Admitted(question, decision) if decision.admissible else None

    def _decide(self, turn: _Turn, question: Question) -> Decision:
        return self._placement.decide(
            question,
            failed=turn.failed,
            prefill_on=turn.prefill_on,
            over_limit=turn.again,
            kept=self._kept,
        )

    def _told_no_prefill(self, turn: _Turn) -> None:
        action = self._limits.when_no_prefill
        if not turn.told_no_prefill:
            turn.told_no_prefill = True
            self._accounts.no_prefill(action)
        if action is WhenNoPrefill.FAIL:
            self._accounts.refused("no_prefill")
            raise nothing_usable([Phase.PREFILL], "no_prefill")

    def _check_served(self, question: Question) -> None:
        """Not to wait for what cannot be: an instance that serves it.

        A name that could be anything while no engine had told what it serves may turn out to be nothing, and a prompt
        may be too long for all of them.
        """
        model = question.model
        if any(instance.model_cards for instance in self._fleet) and not self._fleet.serves(model):
            raise NotFoundError(f"The model `{cut(model)}` does not exist.", param="model")
        alone = self._limits.when_no_prefill is WhenNoPrefill.DECODE
        needed = msgspec.structs.replace(question, whole=True) if alone else question
        if (refusal := self._placement.need(needed).refusal()) is not None:
            self._accounts.refused("too_long")
            raise refusal

    # -- the queue ------------------------------------------------------------------------------------------

    def _block(self, turn: _Turn) -> None:
        self._blocked.add(turn.lane)
        if not turn.missing:  # else room alone would not help it
            self._kept |= turn.full

    def _watch_moments(self) -> None:
        """Look again when an engine that said it is full may have more room by mere lapse of time."""
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        left_s = self._fleet.reopens_in_s(self._clock()) if self._queue else None
        if left_s is not None:
            self._reopening = asyncio.get_running_loop().call_later(left_s, self._changed)

    def _changed(self) -> None:
        """Something is otherwise than at the last look: look again, once for all that changes together."""
        if not self._queue:
            self._blocked.clear()
            self._kept.clear()
            self._watch_moments()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._due = False
        self._blocked.clear()
        self._kept.clear()
        while (waiting := self._queue.next(self._blocked)) is not None:
            turn = waiting.item
            if turn.woken.done():  # its client has gone
                self._queue.drop(waiting)
                continue
            try:
                turn.granted = self._try(turn)
            except Exception as error:  # noqa: BLE001  # a policy that fails fails its request, not the queue
                self._refuse(waiting, error)
                continue
            if turn.granted is None:
                self._block(turn)
            else:
                self._queue.take(waiting)
                self._let_in(turn.ticket)
                self._rate.left(self._clock())
                self._reserve(turn, turn.granted)
                turn.wake()
        self._watch_moments()

    def _reserve(self, turn: _Turn, admitted: Admitted) -> None:
        """Count its legs and expect its blocks until it does so itself."""
        question, decision = admitted
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        if prefill is None or decode is None:
            raise RuntimeError("a request without a place was let in")
        turn.reserved.enter_context(self._placement.claim(decode, Phase.DECODE, question))
        if not decision.one_leg:
            turn.reserved.enter_context(self._placement.claim(prefill, Phase.PREFILL, question))
        turn.reserved.callback(self._placement.expect(prefill, question), False)

    # -- refusals -------------------------------------------------------------------------------------------

    def _refuse(self, waiting: Waiting[_Turn], error: Exception) -> None:
        self._queue.drop(waiting)
        waiting.item.refusal = error
        waiting.item.wake()

    def _full(self, why: str, reason: str) -> RateLimitError:
        return RateLimitError(
            f"{why} ({self._limits.max_queue} requests, --max-queue): come back later",
            reason=reason,
            headers={"Retry-After": str(self._rate.retry_after_s(len(self._queue), self._clock()))},
        )

    def _timed_out(self, turn: _Turn) -> RequestError:
        if self._held_back(turn.ticket):
            self._accounts.refused("client_limit")
            return RateLimitError(
                f"{self._limits.max_client_requests} requests of this client are being served (--max-client-requests),"
                f" and none of them ended for {self._rules.admission.queue_timeout_s:g} s (--queue-timeout): send fewer at a time",
                reason="client_limit",
                headers={"Retry-After": str(self._rate.retry_after_s(1, self._clock()))},
            )
        if not turn.tried:
            decision = self._decide(turn, turn.question)
            turn.missing = _missing(turn.question, decision)
            turn.engines_full = turn.engines_full or _engines_full(turn.question, decision)
        if turn.missing:
            self._accounts.refused("no_engine")
            return nothing_usable(turn.missing, "no_engine")
        if turn.engines_full:
            self._accounts.refused(ENGINES_FULL)
            left_s = self._fleet.reopens_in_s(self._clock()) or 0.0
            return UnavailableError(
                f"the engines said for {self._rules.admission.queue_timeout_s:g} s (--queue-timeout) that they are full",
                reason=ENGINES_FULL,
                headers={"Retry-After": str(max(1, math.ceil(left_s)))},
            )
        self._accounts.refused("queue_timeout")
        return UnavailableError(
            f"the engines were busy for {self._rules.admission.queue_timeout_s:g} s (--queue-timeout)",
            reason="queue_timeout",
            headers={"Retry-After": str(self._rate.retry_after_s(len(self._queue), self._clock()))},
        )

    def _stopped(self) -> UnavailableError:
        self._accounts.refused("stopping")
        return UnavailableError(
            "kvproxy is shutting down", headers={"Connection": "close"}, reason="stopping"
        )


def _phases(question: Question) -> tuple[Phase, ...]:
    return (Phase.DECODE,) if question.whole else (Phase.PREFILL, Phase.DECODE)


def _chosen(decision: Decision) -> set[str]:
    picks = (decision.prefill.chosen, decision.decode.chosen)
    return {chosen.instance for chosen in picks if chosen is not None}


def _missing(question: Question, decision: Decision) -> list[Phase]:
    """The phases for which no instance is usable, whatever its room."""
    picks = {Phase.PREFILL: decision.prefill, Phase.DECODE: decision.decode}
    return [
        phase
        for phase in _phases(question)
        if not picks[phase].possible and not any(c.candidate.why in NO_ROOM for c in picks[phase].candidates)
    ]


def _full_instances(question: Question, decision: Decision) -> set[tuple[Phase, str]]:
    """The instances a request waits for: the full ones of each phase that found no place."""
    picks = {Phase.PREFILL: decision.prefill, Phase.DECODE: decision.decode}
    return {
        (phase, priced.candidate.instance)
        for phase in _phases(question)
        if not picks[phase].possible
        for priced in picks[phase].candidates
        if priced.candidate.why in NO_ROOM
    }


def _engines_full(question: Question, decision: Decision) -> bool:
    """Whether a phase found no place, and no instance of it has too much to do by our limits: engines said so."""
    picks = {Phase.PREFILL: decision.prefill, Phase.DECODE: decision.decode}
    whys = [
        {priced.candidate.why for priced in picks[phase].candidates}
        for phase in _phases(question)
        if not picks[phase].possible
    ]
    return any(Why.SAYS_FULL in each and Why.FULL not in each for each in whys)
