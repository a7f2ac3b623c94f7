"""A ticket is one for all attempts at a client's request: what it went through at one counts at the next."""

from collections.abc import Callable

from proxy.fair_queue import ANONYMOUS


class Ticket:
    """What the queue needs to know of a client's request, and what it learns: one for all attempts at it."""

    def __init__(self, client: str = ANONYMOUS, priority: int = 0, *, of: "Ticket | None" = None) -> None:
        self.client = client
        self.priority = priority
        self.of = of or self
        """The ticket of the whole request."""
        self.admitted = False
        """Whether it, or a part of it, was let in once: what follows are retries, which wait only while
        nothing is usable or has room by its own word, and the other parts."""
        self.turned_away_by: set[str] = set()
        """The instances whose engine said that it is full when it got this."""
        self.turned_away_at: float | None = None
        """When the first of them did, on the monotonic clock."""
        self.waited_s = 0.0
        """Seconds in the queue so far, and at engines that turned it away; what others did for it meanwhile
        is no wait."""
        self.when_over: Callable[[], None] | None = None
        """Called once when nobody keeps the whole request any more."""
        self.keepers = 0

    def part(self) -> "Ticket":
        """A ticket for one prompt of a request for several, each of which is let in by itself."""
        return Ticket(self.client, self.priority, of=self.of)

    def turn_away(self, instance: str, now: float, after_s: float) -> None:
        """An engine said that it is full, so long after it got this."""
        self.turned_away_by.add(instance)
        self.turned_away_at = now if self.turned_away_at is None else self.turned_away_at
        self.waited_s += after_s

    def let_in(self) -> None:
        """It may go on."""
        self.admitted = self.of.admitted = True

    def keep(self) -> None:
        """The whole request is not over before `let_go`: it is being served, or what it began still runs."""
        self.of.keepers += 1

    def let_go(self) -> None:
        """One of those that keep it does so no more."""
        whole = self.of
        whole.keepers -= 1
        if not whole.keepers and whole.when_over is not None:
            over, whole.when_over = whole.when_over, None
            over()
