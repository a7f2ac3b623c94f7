"""A ticket is one for all attempts at a client's request: what it went through at one counts at the next."""

from proxy.fair_queue import ANONYMOUS


class Ticket:
    """What the queue needs to know of a client's request, and what it learns: one for all attempts at it."""

    def __init__(self, client: str = ANONYMOUS, priority: int = 0, *, of: "Ticket | None" = None) -> None:
        self.client = client
        self.priority = priority
        self.of = of or self
        """The ticket of the whole request."""
        self.admitted = False
        """Whether it, or a part of it, was let in once: what follows are retries, which wait only while nothing is
        usable or has room by its own word, and the other parts."""
        self.turned_away = False
        """Whether an engine said that it is full when it got this."""
        self.waited_s = 0.0
        """Seconds in the queue so far, and at engines that turned it away."""

    def part(self) -> "Ticket":
        """A ticket for one prompt of a request for several, each of which is let in by itself."""
        return Ticket(self.client, self.priority, of=self.of)

    def let_in(self) -> None:
        """It may go on."""
        self.admitted = self.of.admitted = True
