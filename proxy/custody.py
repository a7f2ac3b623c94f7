"""A hold is fetched at most once, never after its lease, and always ends as pulled, released or stranded.

Pure: times are passed in, nothing is sent from here. `Hold` is what stands between a finished prefill leg and
the decode leg that fetches its blocks.
"""

import enum

from proxy.config import LEASE_MARGIN_S
from proxy.connectors.base import Handoff


class HoldState(enum.StrEnum):
    """Where the prefilled blocks of one request are on their way."""

    HELD = "held"
    """They wait on the prefill instance; no decode leg can have touched them."""
    SPENT = "spent"
    """Bytes of a decode leg carrying them were handed to a socket: they must not be offered again."""
    PULLED = "pulled"
    """A decode engine has them: it answered."""
    RELEASED = "released"
    """They were given back unread, or nobody will miss them."""
    STRANDED = "stranded"
    """Nobody could be told: they stay held until their lease ends."""


_ENDS = frozenset({HoldState.PULLED, HoldState.RELEASED, HoldState.STRANDED})


class Hold:
    """The blocks one prefill leg left on `instance`, known since `received_at` (seconds, any monotonic clock)."""

    def __init__(self, instance: str, handoff: Handoff, *, received_at: float, lease_s: float) -> None:
        self.instance = instance
        self.handoff = handoff
        self.state = HoldState.HELD
        self._received_at = received_at
        self._lease_s = lease_s

    @property
    def ended(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.state in _ENDS

    def may_be_offered(self, now: float) -> bool:
        """Whether a decode leg may carry it: never touched, and young enough to be fetched within its lease."""
        return self.state is HoldState.HELD and now - self._received_at < self._lease_s - LEASE_MARGIN_S

    def lease_left_s(self, now: float) -> float:
        """Seconds until the prefill engine frees the blocks on its own, at least 0."""
        return max(0.0, self._received_at + self._lease_s - now)

    def spend(self) -> None:
        """A decode leg carrying it is about to be sent."""
        self._move(HoldState.SPENT, HoldState.HELD)

    def unspend(self) -> None:
        """No connection came about, so not one byte of that decode leg was sent."""
        self._move(HoldState.HELD, HoldState.SPENT)

    def pulled(self) -> None:
        """The decode engine answered with what it generated, which needs the blocks."""
        self._move(HoldState.PULLED, HoldState.SPENT)

    def released(self) -> None:
        """A decode engine acknowledged that it gave them back."""
        self._move(HoldState.RELEASED, HoldState.HELD, HoldState.SPENT)

    def stranded(self) -> None:
        """Giving them back failed."""
        self._move(HoldState.STRANDED, HoldState.HELD, HoldState.SPENT)

    def _move(self, to: HoldState, *come_from: HoldState) -> None:
        if self.state not in come_from:
            raise RuntimeError(f"a hold that is {self.state} cannot become {to}")
        self.state = to
