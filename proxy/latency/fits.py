"""Invariant: every member is in one pool, and a pool that has observed nothing believes the one of the same
model that has observed most.

A decode engine that never computed a prompt is thus predicted as the prefill engines of its model. A pool
outlives its members, for the next ones: of pools without members the last MAX_EMPTY are kept.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from proxy.latency.pool import MAX_LOG_FACTOR, RECENTRE_EVERY, Member, Pool, PoolState

MAX_EMPTY = 64

K = TypeVar("K", bound=Hashable)


class PoolName(msgspec.Struct, frozen=True):
    """Instances of one role and one model are a pool."""

    role: str
    model: str


class Place(Generic[K]):
    """A member in its pool."""

    __slots__ = ("member", "name", "pool")

    def __init__(self, name: PoolName, pool: Pool[K], member: Member) -> None:
        self.name = name
        self.pool = pool
        self.member = member

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The member's, as they are fitted now."""
        return self.pool.of(self.member)


class Fits(Generic[K]):
    """One kind of work, fitted for all members."""

    def __init__(
        self, prior: Sequence[float], usual: Sequence[float], max_members: int, sure: Sequence[float] = ()
    ) -> None:
        """`prior`, `usual`: as for LeastSquares. Of more members than `max_members` those are forgotten that
        were observed least lately.
        """
        self.prior = tuple(prior)
        self._sizes = tuple(usual)
        self._sure = tuple(sure)
        self._max_members = max_members
        self._pools: dict[PoolName, Pool[K]] = {}
        self.places: dict[K, Place[K]] = {}
        self._remembered: dict[K, float] = {}
        self.version = 0
        """Grows with each change of what is predicted of any member."""
        self.changes = 0
        """Grows as members come and go."""
        nowhere: Pool[K] = Pool(self.prior, self._sizes, self._sure)
        self.stranger = Place(PoolName("", ""), nowhere, Member(len(self.prior), 0.0, None))
        """Where whoever did not join is supposed to be: nothing is learned there."""

    def usual(self, name: PoolName | None) -> tuple[float, ...]:
        """The coefficients of most in a pool; the prior if there is none."""
        pool = self._pools.get(name) if name is not None else None
        return self.prior if pool is None else pool.coefficients

    def join(self, key: K, name: PoolName) -> Place[K]:
        """Add a member; one that is in another pool moves."""
        place = self.places.get(key)
        if place is not None:
            if place.name == name:
                return place
            self.forget(key)
        pool = self._pool(name)
        place = Place(name, pool, pool.join(key, self._remembered.pop(key, None)))
        while len(self.places) >= self._max_members:
            self.forget(next(iter(self.places)))
        self.places[key] = place
        self.version += 1
        self.changes += 1
        return place

    def _pool(self, name: PoolName) -> Pool[K]:
        pool = self._pools.pop(name, None)
        if pool is None:
            pool = Pool(self.prior, self._sizes, self._sure)
            alike = [p for n, p in self._pools.items() if n.model == name.model and p.observations]
            if alike:
                pool.adopt(max(alike, key=lambda p: p.observations).coefficients)
            empty = [n for n, p in self._pools.items() if not p.members]
            if len(empty) >= MAX_EMPTY:
                del self._pools[empty[0]]
        self._pools[name] = pool
        return pool

    @property
    def remembered(self) -> Collection[K]:
        """Of whom an earlier process learned, and who did not join yet."""
        return self._remembered.keys()

    def forget(self, key: K) -> None:
        """A member is gone, and so is what was known of it."""
        self._remembered.pop(key, None)
        place = self.places.pop(key, None)
        if place is not None:
            place.pool.forget(key)
            self.version += 1
            self.changes += 1

    def learn(self, key: K, features: Sequence[float], value: float, weight: float = 1.0) -> bool:
        """Take what a member took; whether it was believed possible, and the member is known."""
        place = self.places.get(key)
        if place is None or not 0 < value < math.inf or not all(0 <= x < math.inf for x in features):
            return False
        if not place.pool.learn(place.member, features, value, weight):
            return True
        if len(self.places) >= self._max_members:
            self.places[key] = self.places.pop(key)
        if place.pool.observations % RECENTRE_EVERY == 1:
            self._lend(place)
        self.version += 1
        return True

    def _lend(self, place: Place[K]) -> None:
        for name, pool in self._pools.items():
            if name.model == place.name.model and not pool.observations:
                pool.adopt(place.pool.coefficients)

    def pools(self) -> Iterator[tuple[PoolName, Pool[K]]]:
        """All that have members or were observed."""
        yield from self._pools.items()

    # -- for the next process -----------------------------------------------------------------------------

    def state(self) -> tuple[list[tuple[PoolName, PoolState]], list[tuple[K, float]]]:
        """The pools that were observed, and the factors' logarithms of their members."""
        pools = [(name, pool.state()) for name, pool in self._pools.items() if pool.observations]
        factors = {key: place.member.log_factor for key, place in self.places.items() if place.member.count}
        return pools, [*(self._remembered | factors).items()]

    def restore(
        self, pools: Iterable[tuple[PoolName, PoolState]], factors: Iterable[tuple[K, float]]
    ) -> None:
        """Take over what `state` gave, before anybody joined. Raises ValueError if it cannot be one."""
        restored: dict[PoolName, Pool[K]] = {}
        for name, state in pools:
            restored[name] = Pool(self.prior, self._sizes, self._sure)
            restored[name].restore(state)
        remembered = dict(factors)
        if not all(abs(factor) <= MAX_LOG_FACTOR for factor in remembered.values()):
            raise ValueError("the factor of an instance is out of bounds")
        self._pools = dict([*restored.items()][-MAX_EMPTY:])
        self._remembered = dict([*remembered.items()][-self._max_members :])
        self.version += 1
