"""Clients take turns by the tokens they ask for, so that one with many waiting requests delays no other.

Pure: no clock, no I/O. Between clients this is self-clocked fair queueing; within a client, priority and
arrival decide. A lane holds requests that the same instances can serve, and places are limited:
docs/adr/0004-turns-of-clients.md.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

ANONYMOUS = "anonymous"
"""The client of all requests that name none."""


class QueueFullError(Exception):
    """No place is left, and no client has so many that one of its requests would have to leave."""


class Waiting(Generic[T]):
    """One request in the queue."""

    __slots__ = ("client", "free", "item", "lane", "number", "place", "priority", "tokens")

    def __init__(
        self,
        client: str,
        lane: Hashable,
        priority: int,
        tokens: int,
        number: int,
        item: T,
        place: Hashable | None,
        *,
        free: bool,
    ) -> None:
        self.client = client
        self.lane = lane
        self.priority = priority
        self.tokens = tokens
        self.number = number
        """Running number of arrival."""
        self.item = item
        self.place = place
        """The place that it takes, alone or with others, until one of these is served; None for none."""
        self.free = free
        """Whether it, or another part of its request, was let in before: it needs no place, and has turns
        even while its client is held back."""


def _order(waiting: Waiting[T]) -> tuple[int, int]:
    return waiting.priority, waiting.number


_Line: TypeAlias = tuple[Hashable, bool]
"""A line of one client: its lane, and whether the requests in it are free."""


class _Client(Generic[T]):
    """A client that waits: its requests in order, by line, and the virtual time of its last turn."""

    __slots__ = ("count", "due", "lines", "places")

    def __init__(self, due: int) -> None:
        self.due = due
        self.lines: dict[_Line, list[Waiting[T]]] = {}
        self.count = 0
        self.places: Counter[Hashable] = Counter()
        """How many of its requests share each of its places."""

    def first(self, blocked: Collection[Hashable], *, held_back: bool) -> Waiting[T] | None:
        heads = [
            line[0]
            for (lane, free), line in self.lines.items()
            if lane not in blocked and (free or not held_back)
        ]
        return min(heads, key=_order) if heads else None

    def head(self, lane: Hashable, *, held_back: bool) -> Waiting[T] | None:
        """Its first request in a lane."""
        lines = [self.lines.get((lane, True)), None if held_back else self.lines.get((lane, False))]
        return min((line[0] for line in lines if line), key=_order, default=None)


_Head: TypeAlias = tuple[int, int, Waiting[T]]
"""A client's first request in a lane: when it is due, its number, and the request."""

HEAP_SLACK = 64
"""How many entries a lane's heap may hold beyond twice its waiting requests before it is rebuilt without the
stale ones."""


class FairQueue(Generic[T]):
    """The requests that wait, in at most `limit` places. Virtual times and turns are in tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: dict[str, _Client[T]] = {}
        self._in_lane: dict[Hashable, int] = {}
        self._heads: dict[Hashable, list[_Head[T]]] = {}
        self._held_back: set[str] = set()
        self._length = 0
        self._places = 0
        self._now = 0
        self._numbers = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiting[T]]:
        for client in list(self._clients.values()):
            for line in list(client.lines.values()):
                yield from list(line)

    @property
    def clients(self) -> int:
        """How many clients have a request waiting."""
        return len(self._clients)

    @property
    def clients_held_back(self) -> int:
        """How many clients are held back, whether they have a request waiting or not."""
        return len(self._held_back)

    def is_held_back(self, client: str) -> bool:
        """Whether a client gets no turns now, except for its free requests."""
        return client in self._held_back

    def hold_back(self, client: str) -> None:
        """Give a client no more turns, except for its free requests."""
        self._held_back.add(client)
        self._offer_all(client)

    def let_go(self, client: str) -> None:
        """Give a client turns again."""
        self._held_back.discard(client)
        self._offer_all(client)

    def waits_in(self, lane: Hashable) -> bool:
        """Whether a request waits in the lane that could be served, its client not being held back."""
        return self._top(lane) is not None

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

        A client's requests with the same `place` share one; None: the request has its own. If the queue is
        full, a request of the client with most places leaves: the one that would be served last, with those
        that share its place. That client must still have at least as many places afterwards as the new
        request's client. Raises QueueFullError otherwise.
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
        waiting = Waiting(client, lane, priority, tokens, self._numbers, item, place, free=not needs_place)
        of = self._clients[client]
        if place is not None:
            self._places += place not in of.places
            of.places[place] += 1
        of.count += 1
        self._in_lane[lane] = self._in_lane.get(lane, 0) + 1
        self._line_up(of, waiting)
        self._length += 1
        return waiting, shed

    def _to_shed(self, newcomer: str) -> list[Waiting[T]]:
        ours = len(self._clients[newcomer].places) if newcomer in self._clients else 0
        greedy = max(self._clients.values(), key=lambda client: len(client.places), default=None)
        if greedy is None or len(greedy.places) < ours + 2:
            raise QueueFullError
        lasts = (
            next((waiting for waiting in reversed(line) if waiting.place in greedy.places), None)
            for line in greedy.lines.values()
        )
        last = max((waiting for waiting in lasts if waiting is not None), key=_order)
        if greedy.places[last.place] == 1:
            return [last]
        return [waiting for line in greedy.lines.values() for waiting in line if waiting.place == last.place]

    def _give_up_place(self, client: _Client[T], place: Hashable | None) -> None:
        if client.places.pop(place, 0):
            self._places -= 1

    def next(self, blocked: Collection[Hashable] = ()) -> Waiting[T] | None:
        """The request whose turn it is, of those whose lane is not blocked; None if there is none.

        It stays in the queue until it is taken.
        """
        tops = [top for lane in list(self._heads) if lane not in blocked and (top := self._top(lane))]
        if not tops:
            return None
        _, _, earliest = min(tops)
        client = earliest.client
        return self._clients[client].first(blocked, held_back=client in self._held_back)

    def take(self, waiting: Waiting[T]) -> None:
        """Serve a request: it leaves the queue, and its client has had a turn of the request's tokens.

        Requests that share its place wait on without one.
        """
        client, place = self._clients[waiting.client], waiting.place
        client.due += waiting.tokens
        self._now = max(self._now, client.due)
        self.drop(waiting)
        self.let_in(waiting.client, place)
        self._offer_all(waiting.client)

    def let_in(self, client: str, place: Hashable) -> None:
        """A part of a client's request was let in: the other parts, which share `place`, need none now."""
        of = self._clients.get(client)
        if of is None or place not in of.places:
            return
        self._give_up_place(of, place)
        for waiting in [each for line in of.lines.values() for each in line if each.place == place]:
            self._leave_line(of, waiting)
            waiting.place, waiting.free = None, True
            self._line_up(of, waiting)

    def drop(self, waiting: Waiting[T]) -> bool:
        """Remove a request that was not served. False if it was not in the queue any more."""
        client = self._clients.get(waiting.client)
        if client is None or not self._leave_line(client, waiting):
            return False
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
            self._heads.pop(waiting.lane, None)
        self._length -= 1
        return True

    def _line_up(self, client: _Client[T], waiting: Waiting[T]) -> None:
        line = client.lines.setdefault((waiting.lane, waiting.free), [])
        bisect.insort(line, waiting, key=_order)
        if line[0] is waiting:
            self._offer(client, waiting.client, waiting.lane)

    def _leave_line(self, client: _Client[T], waiting: Waiting[T]) -> bool:
        at = (waiting.lane, waiting.free)
        line = client.lines.get(at, [])
        n = bisect.bisect_left(line, _order(waiting), key=_order)
        if n == len(line) or line[n] is not waiting:
            return False
        del line[n]
        if not line:
            del client.lines[at]
        if n == 0:
            self._offer(client, waiting.client, waiting.lane)
        return True

    # -- which client is due first in a lane: a heap that may hold stale entries -----------------------------

    def _offer_all(self, name: str) -> None:
        client = self._clients.get(name)
        if client is not None:
            for lane in {lane for lane, _ in client.lines}:
                self._offer(client, name, lane)

    def _offer(self, client: _Client[T], name: str, lane: Hashable) -> None:
        """A client's first request in a lane, or when it is due, may have changed: push the entry anew."""
        first = client.head(lane, held_back=name in self._held_back)
        if first is None:
            return
        heads = self._heads.setdefault(lane, [])
        if len(heads) > 2 * self._in_lane[lane] + HEAP_SLACK:
            heads[:] = {entry[1]: entry for entry in heads if self._holds(entry)}.values()
            heapq.heapify(heads)
        heapq.heappush(heads, (client.due + first.tokens, first.number, first))

    def _top(self, lane: Hashable) -> "_Head[T] | None":
        heads = self._heads.get(lane, [])
        while heads and not self._holds(heads[0]):
            heapq.heappop(heads)
        return heads[0] if heads else None

    def _holds(self, entry: "_Head[T]") -> bool:
        due, _, waiting = entry
        client = self._clients.get(waiting.client)
        if client is None or due != client.due + waiting.tokens:
            return False
        return client.head(waiting.lane, held_back=waiting.client in self._held_back) is waiting
