"""Invariant: a hold ends exactly once - pulled, released or expired - and its blocks are returned that once.

A finished prefill leg keeps its blocks for a decode engine. The lease is vLLM's `kv_lease_duration`; a
decode engine that has the request but has not pulled yet sends heartbeats, each of which sets the lease to
two thirds of its full length from now, unless more is left. Nothing else prolongs a hold, and nothing but
the decode engine's pull (or its notice that it will not) ends it early.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from proxy.simulation.engine.request import Work

W = TypeVar("W", bound=Work)

HEARTBEATS_PER_LEASE = 6
_RENEWAL = 2 / 3


@dataclass(slots=True)
class Hold(Generic[W]):
    """Blocks waiting to be pulled. `blocks` covers the computed tokens; the request keeps its whole table."""

    request: W
    blocks: tuple[int, ...]
    expires_s: float


class Holds(Generic[W]):
    """The holds of one rank, by the engine's internal request id."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._live: dict[str, Hold[W]] = {}
        self.pulled = 0
        self.released = 0
        self.expired = 0
        self.after_expiry = 0

    def __len__(self) -> int:
        """The number of live holds."""
        return len(self._live)

    def __contains__(self, request_id: object) -> bool:
        """Whether a hold is live."""
        return request_id in self._live

    def ids(self) -> list[str]:
        """The request ids of the live holds, oldest first."""
        return list(self._live)

    def add(self, request: W, blocks: tuple[int, ...], now_s: float) -> None:
        """Begin a lease."""
        self._live[request.id] = Hold(request, blocks, now_s + self.lease_s)

    def get(self, request_id: str) -> Hold[W] | None:
        """A live hold."""
        return self._live.get(request_id)

    def pull(self, request_id: str) -> W | None:
        """A decode engine has read the blocks. Returns the request whose blocks are free now; None if there
        is none.
        """
        return self._end(request_id, pulled=True)

    def release(self, request_id: str) -> W | None:
        """A decode engine will not read the blocks. Returns as `pull` does."""
        return self._end(request_id, pulled=False)

    def heartbeat(self, request_ids: Iterable[str], now_s: float) -> None:
        """Prolong the leases of requests a decode engine still wants."""
        for request_id in request_ids:
            if (hold := self._live.get(request_id)) is not None:
                hold.expires_s = max(hold.expires_s, now_s + self.lease_s * _RENEWAL)

    def expire(self, now_s: float) -> list[W]:
        """End the leases that are over. Returns the requests whose blocks are free now."""
        over = [request_id for request_id, hold in self._live.items() if hold.expires_s <= now_s]
        self.expired += len(over)
        return [self._live.pop(request_id).request for request_id in over]

    def next_expiry_s(self) -> float | None:
        """When the next lease ends; None without holds."""
        return min((hold.expires_s for hold in self._live.values()), default=None)

    def _end(self, request_id: str, *, pulled: bool) -> W | None:
        hold = self._live.pop(request_id, None)
        if hold is None:
            self.after_expiry += 1
            return None
        if pulled:
            self.pulled += 1
        else:
            self.released += 1
        return hold.request
