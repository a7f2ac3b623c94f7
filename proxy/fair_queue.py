"""Clients take turns by the tokens they ask for: how much one of them has waiting delays nobody else.

Pure: no clock, no I/O. Between clients this is self-clocked fair queueing (Golestani, 1994): a client's next
request is due at the virtual time at which the client's last one was due, plus its own tokens; whatever is due first
goes first, and the virtual time is that of the request that went last. A client that comes anew begins at the
present virtual time, so it neither saves up turns while it is away nor needs to be remembered. Within a client the
lower `priority` goes first (vLLM's order), then who came first.

Requests that can be served by the same instances share a lane. A lane that is blocked is passed over.

The places are limited, and who has got one may have to leave for a client with fewer. The parts of one request share
a place. What was let in before needs none and never has to leave: that would waste what was done for it.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

ANONYMOUS = "anonymous"
"""The client of a request that tells of none."""


class QueueFullError(Exception):
    """No place is left, and nobody has more of them than the client who asks for one."""


class Waiting(Generic[T]):
    """One request in the queue."""

    __slots__ = ("client", "item", "lane", "number", "place", "priority", "tokens")

    def __init__(
        self,
        client: str,
        lane: Hashable,
        priority: int,
        tokens: int,
        number: int,
        item: T,
        place: Hashable | None,
    ) -> None:
        self.client = client
        self.lane = lane
        self.priority = priority
        self.tokens = tokens
        self.number = number
        """Running number of arrival."""
        self.item = item
        self.place = place
        """The place it takes, maybe with others, until one of them is served; None if it needs none."""


def _order(waiting: Waiting[T]) -> tuple[int, int]:
    return waiting.priority, waiting.number


class _Client(Generic[T]):
    """A client that waits: its requests in order, by lane, and the virtual time of its last turn."""

    __slots__ = ("count", "due", "lanes", "places")

    def __init__(self, due: int) -> None:
        self.due = due
        self.lanes: dict[Hashable, list[Waiting[T]]] = {}
        self.count = 0
        self.places: Counter[Hashable] = Counter()
        """How many of its requests share each place it has."""

    def first(self, blocked: Collection[Hashable]) -> Waiting[T] | None:
        heads = [line[0] for lane, line in self.lanes.items() if lane not in blocked]
        return min(heads, key=_order) if heads else None


_Head: TypeAlias = tuple[int, int, Waiting[T]]
"""When a client's first request in a lane is due, its number, and itself."""

HEAP_SLACK = 64
"""Entries that are true no more than a lane's heap may hold beside those that are, before it is swept."""


class FairQueue(Generic[T]):
    """At most `limit` places for requests that wait. Times and turns are in tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: dict[str, _Client[T]] = {}
        self._in_lane: dict[Hashable, int] = {}
        self._heads: dict[Hashable, list[_Head[T]]] = {}
        self._length = 0
        self._places = 0
        self._now = 0
        self._numbers = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiting[T]]:
        for client in list(self._clients.values()):
            for line in list(client.lanes.values()):
                yield from list(line)

    @property
    def clients(self) -> int:
        """How many clients have a request waiting."""
        return len(self._clients)

    def waits_in(self, lane: Hashable) -> bool:
        """Whether any request waits in a lane."""
        return lane in self._in_lane

    def push(
        self,
        client: str,
        lane: Hashable,
        priority: int,
        tokens: int,
        item: T,
        *,
        place: Hashable | None = None,
        needs_place: bool = True,
    ) -> tuple[Waiting[T], list[Waiting[T]]]:
        """Put a request in. Returns it, and the requests that had to leave for it.

        A client's requests of the same `place` share one; None is one of its own. A full queue sheds the request
        that would be served last of the client that has most places, and those that share its place, if that client
        still has at least as many as the newcomer's has then. Raises QueueFullError otherwise.
        """
        shed: list[Waiting[T]] = []
        own = self._clients.get(client)
        if needs_place and self._places >= self._limit and (own is None or place not in own.places):
            shed = self._to_shed(client)
            for each in shed:
                self.drop(each)
        if client not in self._clients:
            self._clients[client] = _Client(self._now)
        self._numbers += 1
        place = (self._numbers if place is None else place) if needs_place else None
        waiting = Waiting(client, lane, priority, tokens, self._numbers, item, place)
        of = self._clients[client]
        if place is not None:
            self._places += place not in of.places
            of.places[place] += 1
        line = of.lanes.setdefault(lane, [])
        bisect.insort(line, waiting, key=_order)
        of.count += 1
        self._in_lane[lane] = self._in_lane.get(lane, 0) + 1
        if line[0] is waiting:
            self._offer(of, lane)
        self._length += 1
        return waiting, shed

    def _to_shed(self, newcomer: str) -> list[Waiting[T]]:
        ours = len(self._clients[newcomer].places) if newcomer in self._clients else 0
        greedy = max(self._clients.values(), key=lambda client: len(client.places), default=None)
        if greedy is None or len(greedy.places) < ours + 2:
            raise QueueFullError
        lasts = (
            next((waiting for waiting in reversed(line) if waiting.place in greedy.places), None)
            for line in greedy.lanes.values()
        )
        last = max((waiting for waiting in lasts if waiting is not None), key=_order)
        if greedy.places[last.place] == 1:
            return [last]
        return [waiting for line in greedy.lanes.values() for waiting in line if waiting.place == last.place]

    def _give_up_place(self, client: _Client[T], place: Hashable | None) -> None:
        if client.places.pop(place, 0):
            self._places -= 1

    def next(self, blocked: Collection[Hashable] = ()) -> Waiting[T] | None:
        """The request whose turn it is, of those whose lane is not blocked. It stays until it is taken."""
        tops = [top for lane in list(self._heads) if lane not in blocked and (top := self._top(lane))]
        if not tops:
            return None
        _, _, earliest = min(tops)
        return self._clients[earliest.client].first(blocked)

    def take(self, waiting: Waiting[T]) -> None:
        """Serve a request: it leaves, and its client has had a turn of so many tokens.

        Those that share its place wait on without one.
        """
        client = self._clients[waiting.client]
        self._give_up_place(client, waiting.place)
        client.due += waiting.tokens
        self._now = max(self._now, client.due)
        self.drop(waiting)
        for lane in client.lanes:
            self._offer(client, lane)

    def drop(self, waiting: Waiting[T]) -> bool:
        """Let a request leave unserved. Tells whether it was still there."""
        client = self._clients.get(waiting.client)
        line = client.lanes.get(waiting.lane) if client is not None else None
        if client is None or line is None:
            return False
        at = bisect.bisect_left(line, _order(waiting), key=_order)
        if at == len(line) or line[at] is not waiting:
            return False
        del line[at]
        if not line:
            del client.lanes[waiting.lane]
        elif at == 0:
            self._offer(client, waiting.lane)
        client.count -= 1
        if client.places[waiting.place] > 1:
            client.places[waiting.place] -= 1
        else:
            self._give_up_place(client, waiting.place)
        if not client.count:
            del self._clients[waiting.client]
        self._in_lane[waiting.lane] -= 1
        if not self._in_lane[waiting.lane]:
            del self._in_lane[waiting.lane]
            del self._heads[waiting.lane]
        self._length -= 1
        return True

    # -- who is due first, by lane: a heap that may hold what is true no more ---------------------------------

    def _offer(self, client: _Client[T], lane: Hashable) -> None:
        """What a client has first in a lane, or when that is due, has changed."""
        heads = self._heads.setdefault(lane, [])
        if len(heads) > 2 * self._in_lane[lane] + HEAP_SLACK:
            heads[:] = {entry[1]: entry for entry in heads if self._holds(entry)}.values()
            heapq.heapify(heads)
        first = client.lanes[lane][0]
        heapq.heappush(heads, (client.due + first.tokens, first.number, first))

    def _top(self, lane: Hashable) -> "_Head[T] | None":
        heads = self._heads[lane]
        while heads and not self._holds(heads[0]):
            heapq.heappop(heads)
        return heads[0] if heads else None

    def _holds(self, entry: "_Head[T]") -> bool:
        due, _, waiting = entry
        client = self._clients.get(waiting.client)
        line = client.lanes.get(waiting.lane) if client is not None else None
        return client is not None and bool(line and line[0] is waiting) and due == client.due + waiting.tokens
