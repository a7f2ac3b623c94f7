"""One ticket is for all attempts at a client's request: what happened in one attempt counts in the next."""

from collections.abc import Callable

from proxy.fair_queue import ANONYMOUS


class Ticket:
    """What the queue needs to know of a client's request, and what it learns in all attempts at it."""

    def __init__(self, client: str = ANONYMOUS, priority: int = 0, *, of: "Ticket | None" = None) -> None:
        self.client = client
        self.priority = priority
        self._of = of  # not itself: tickets are freed as they go, and leave nothing to the garbage collector
        self.admitted = False
        """Whether the request, or a part of it, was let in once.

        What follows are its other parts, and retries, which wait only while no instance is usable or engines
        say that they are full."""
        self.turned_away_by: set[str] = set()
        """The instances that turned the request away: their engine said that it is full."""
        self.turned_away_at: float | None = None
        """When the first of them did, in seconds of the monotonic clock; None if none did."""
        self.waited_s = 0.0
        """Seconds in the queue so far, and at engines that turned it away; time at other engines is no
        wait."""
        self.when_over: Callable[[], None] | None = None
        """Called once when the whole request is not kept any more."""
        self.keepers = 0

    @property
    def of(self) -> "Ticket":
        """The ticket of the whole request."""
        return self._of or self

    def part(self) -> "Ticket":
        """A ticket for one prompt of a request with several; each is let in by itself."""
        return Ticket(self.client, self.priority, of=self.of)

    def turn_away(self, instance: str, now: float, after_s: float) -> None:
        """An engine said that it is full, `after_s` seconds after it got the request."""
        self.turned_away_by.add(instance)
        self.turned_away_at = now if self.turned_away_at is None else self.turned_away_at
        self.waited_s += after_s

    def let_in(self) -> None:
        """The request is let in."""
        self.admitted = self.of.admitted = True

    def keep(self) -> None:
        """Keep the whole request from being over until `let_go`: it is served, or something that it began
        still runs.
        """
        self.of.keepers += 1

    def let_go(self) -> None:
        """Undo one `keep`."""
        whole = self.of
        whole.keepers -= 1
        if not whole.keepers and whole.when_over is not None:
            over, whole.when_over = whole.when_over, None
            over()
