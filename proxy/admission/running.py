"""A client has no more requests running than one may.

A request runs from when its first part is let in until all of them are over.
"""

import functools
from collections import Counter
from collections.abc import Callable

from proxy.admission.ticket import Ticket
from proxy.admission.turns import Turn
from proxy.fair_queue import FairQueue


class Running:
    """Counts the requests of each client that were let in and are not over."""

    def __init__(self, queue: FairQueue[Turn], most: int, changed: Callable[[], None]) -> None:
        """`most`: of one client; 0: no limit. `changed` is called when a client that was held back may have
        turns again.
        """
        self._queue = queue
        self._most = most
        self._changed = changed
        self._requests: Counter[str] = Counter()

    def __len__(self) -> int:
        """The number of clients that have any."""
        return len(self._requests)

    def holds_back(self, ticket: Ticket) -> bool:
        """Whether the ticket's client has as many requests running as one may, and this would be one more."""
        return not ticket.of.admitted and self._queue.is_held_back(ticket.client)

    def let_in(self, ticket: Ticket) -> None:
        """A request, or a part of one, is let in."""
        whole = ticket.of
        if not whole.admitted:
            client = whole.client
            self._requests[client] += 1
            whole.when_over = functools.partial(self._over, client)
            if self._requests[client] == self._most:
                self._queue.hold_back(client)
            self._queue.let_in(client, whole)
        ticket.let_in()

    def _over(self, client: str) -> None:
        self._requests[client] -= 1
        if not self._requests[client]:
            del self._requests[client]
        if self._queue.is_held_back(client):
            self._queue.let_go(client)
            self._changed()
