"""A turn is one attempt at a request that wants in; it is granted or refused, once."""

import functools
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple, TypeAlias

from proxy.admission.lacks import Lack
from proxy.admission.ticket import Ticket
from proxy.fair_queue import Waiting
from proxy.fleet import Claim
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Expectation
from proxy.scheduling.question import Question


class Admitted:
    """A request may go on: its legs count, and its blocks are expected, from the moment of the decision on.

    Whoever has one MUST see to its end. Either it is closed, or each part of it is ended by itself; each ends
    once, and to end it again does nothing.
    """

    __slots__ = ("decision", "decode", "expected", "prefill", "question")

    def __init__(
        self,
        question: Question,
        decision: Decision,
        *,
        prefill: Claim | None,
        decode: Claim,
        expected: Expectation,
    ) -> None:
        """`question`: what was asked, changed if a decode instance is to serve it all; `prefill`: None where
        one instance does.
        """
        self.question = question
        self.decision = decision
        self.prefill = prefill
        self.decode = decode
        self.expected = expected

    def close(self) -> None:
        """Nobody goes on with it."""
        if self.prefill is not None:
            self.prefill.end()
        self.expected.settle(came=False)
        self.decode.end()


class Turn:
    """One attempt at a request that wants in, and what was found out when it was tried."""

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
        self.lack: Lack | None = None
        """What it wanted for at the last try; None if it was never tried, as nobody is who waits behind
        others."""
        self.told_no_prefill = False
        """Whether it was counted that it met no usable prefill instance."""
        self.waiting: Waiting[Turn] | None = None
        """Its place in the queue, while it has one."""
        self.waits_since = 0.0

    @functools.cached_property
    def lane(self) -> Hashable:
        """The same for requests of which none can be placed while another cannot."""
        return self.question.model, self.question.whole, self.again, self._fitting()


class Grant(NamedTuple):
    """A turn is let in; if nobody is there to go on, what it holds is to be closed."""

    turn: Turn
    admitted: Admitted


class Refusal(NamedTuple):
    """A turn is not let in, and this is what its client is told."""

    turn: Turn
    error: Exception


Outcome: TypeAlias = Grant | Refusal
