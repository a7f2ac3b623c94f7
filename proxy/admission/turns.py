"""A turn is one attempt at a request that wants in; it is granted or refused once."""

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
    """A request that was let in: its legs count, and its blocks are expected, from the moment of the decision
    on.

    Whoever has one MUST end it: by `close`, or each part by itself. Each part ends once; to end it again does
    nothing.
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
        """`question`: what was asked, changed if a decode instance serves all of it. `prefill`: None where
        one instance serves the whole request.
        """
        self.question = question
        self.decision = decision
        self.prefill = prefill
        self.decode = decode
        self.expected = expected

    def close(self) -> None:
        """End all parts: the request is not served."""
        if self.prefill is not None:
            self.prefill.end()
        self.expected.settle(came=False)
        self.decode.end()


class Turn:
    """One attempt at a request that wants in, and what the last try found."""

    def __init__(
        self,
        ticket: Ticket,
        question: Question,
        failed: Collection[str],
        prefill_on: str | None,
        fitting: Callable[[Question], Hashable],
    ) -> None:
        """`fitting` returns equal values for requests that fit into the same instances."""
        self.ticket = ticket
        self.question = question
        self.failed = failed
        self.prefill_on = prefill_on
        self.again = ticket.admitted
        self._fitting = fitting
        self.lack: Lack | None = None
        """What the request lacked at the last try; None before the first try, which requests behind others
        never have."""
        self.met_no_prefill = False
        """Whether a `NoPrefill` was told for it."""
        self.waiting: Waiting[Turn] | None = None
        """Its place in the queue; None while it has none."""
        self.waits_since = 0.0

    @functools.cached_property
    def lane(self) -> Hashable:
        """Equal for requests of which none can be placed while another of them cannot."""
        question = self.question
        return question.model, question.whole, question.computes, self.again, self._fitting(question)


class Grant(NamedTuple):
    """A turn is let in. If its request is gone, what it holds must be closed."""

    turn: Turn
    admitted: Admitted


class Refusal(NamedTuple):
    """A turn is not let in, because of this error."""

    turn: Turn
    error: Exception


Outcome: TypeAlias = Grant | Refusal
