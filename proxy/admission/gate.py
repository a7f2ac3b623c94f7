"""A request that waits is woken once, by the decision about it, and one that leaves makes way for others.

The asyncio shell of `Lanes`: it owns the futures of the requests that wait, their deadlines, and the timer
for engines that say they are full. It decides nothing.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable

from proxy.admission.lanes import Lanes
from proxy.admission.shown import QueueShown
from proxy.admission.ticket import Ticket
from proxy.admission.turns import Admitted, Grant, Outcome, Refusal, Turn
from proxy.config import Rules
from proxy.fleet import Fleet
from proxy.happenings import Tell
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question


class Gate:
    """Lets requests in; there is one for the process."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        placement: Placement,
        rules: Rules,
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._lanes = Lanes(fleet=fleet, placement=placement, rules=rules, tell=tell, wake=self._woken)
        self._waiting: dict[Turn, asyncio.Future[Outcome]] = {}
        self._looks = False
        """Whether a look at the queue is scheduled on the loop."""
        self._reopening: asyncio.TimerHandle | None = None
        """Runs while a request waits and an engine says that it is full."""

    def __len__(self) -> int:
        """The number of requests that wait; each part of a request counts."""
        return len(self._lanes)

    @property
    def clients_held_back(self) -> int:
        """The number of clients that have as many requests running as one may."""
        return self._lanes.clients_held_back

    def status(self) -> QueueShown:
        """The queue and its limits, for `/status`."""
        return self._lanes.status()

    async def admit(
        self,
        ticket: Ticket,
        question: Question,
        *,
        failed: Collection[str] = (),
        prefill_on: str | None = None,
    ) -> Admitted:
        """Wait until a request may go on, as `Lanes.offer` decides; its claims are held from the decision on.

        Raises RequestError, and what a policy raises. If it is cancelled, the request leaves the queue and
        holds nothing.
        """
        turn = self._lanes.turn(ticket, question, failed=failed, prefill_on=prefill_on)
        outcome = self._tell(self._lanes.offer(turn, self._clock()), turn) or await self._wait(turn)
        if isinstance(outcome, Refusal):
            raise outcome.error
        return outcome.admitted

    def close(self) -> None:
        """Let no new request in any more, and refuse new ones that wait; retries are still let in."""
        self._tell(self._lanes.close(self._clock()))

    async def _wait(self, turn: Turn) -> Outcome:
        decided: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = decided
        self._watch_moments()
        try:
            async with asyncio.timeout(self._lanes.left_s(turn)):
                return await decided
        except TimeoutError:
            return decided.result() if _is_decided(decided) else self._lanes.expire(turn, self._clock())
        except asyncio.CancelledError:
            if _is_decided(decided):
                _give_back(decided.result())
            raise
        finally:
            del self._waiting[turn]
            self._lanes.leave(turn, self._clock())

    def _tell(self, outcomes: Iterable[Outcome], asking: Turn | None = None) -> Outcome | None:
        """Wake the requests that were decided about. Returns the outcome of the one that is asking, if there
        is one.
        """
        own = None
        for outcome in outcomes:
            if outcome.turn is asking:
                own = outcome
            elif (decided := self._waiting.get(outcome.turn)) is not None and not decided.done():
                decided.set_result(outcome)
            else:
                _give_back(outcome)
        return own

    def _woken(self) -> None:
        if not self._lanes.due:
            self._watch_moments()
        elif not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looks = False
        self._tell(self._lanes.changed(self._clock(), self._is_gone))
        self._watch_moments()

    def _is_gone(self, turn: Turn) -> bool:
        """Whether the client has left, and its task has not run since."""
        return self._waiting[turn].done()

    def _watch_moments(self) -> None:
        """Look at the queue again when the pause of an engine that said it is full is over."""
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        left_s = self._lanes.look_again_in_s(self._clock())
        if left_s is not None:
            self._reopening = asyncio.get_running_loop().call_later(left_s, self._look)


def _is_decided(decided: "asyncio.Future[Outcome]") -> bool:
    return decided.done() and not decided.cancelled()


def _give_back(outcome: Outcome) -> None:
    """Let go of what an outcome holds, because its request is gone."""
    if isinstance(outcome, Grant):
        outcome.admitted.close()
