"""What becomes of a request in simulated time, and of each leg that is sent for it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from proxy.admission import Ticket
from proxy.phases import Phase
from proxy.serving.attempts import Attempts
from proxy.serving.legs.leg import Reason
from proxy.simulation.engine.request import Request
from proxy.simulation.engine.values import Output

ATTEMPTS = 3


class Asked:
    """A request of a client, and what became of it."""

    def __init__(self, number: int, client: str, tokens: list[int], answer_tokens: int, at: float) -> None:
        self.number = number
        self.client = client
        self.tokens = tokens
        self.answer_tokens = answer_tokens
        self.at = at
        self.waited_s = 0.0
        self.predicted_tokens = 0
        self.reused_tokens = 0
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.refused: str | None = None
        self.answer: Sequence[int] = ()
        self.one_leg = False
        """Whether one engine served it all."""
        self.attempts = 0
        self.failed: list[Reason] = []
        self.ends = 0
        """How often it was answered or refused."""


class Serving:
    """One request while it is asked, tried and tried again."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.ticket = Ticket(asked.client)
        self.attempts = Attempts(ATTEMPTS)
        self.whole = ExitStack()
        self.ticket.keep()
        self.whole.callback(self.ticket.let_go)


class Leg:
    """One that was sent to an engine."""

    def __init__(
        self,
        phase: Phase,
        address: str,
        request: Request,
        sent_at: float,
        *,
        token: Callable[[Output], None],
        failed: Callable[["Leg", Reason], None],
    ) -> None:
        self.phase = phase
        self.address = address
        self.request = request
        self.sent_at = sent_at
        self.token = token
        self.failed = failed
