"""A hold is fetched at most once, never after its lease, and always ends in a state that says what became of
its blocks.

Pure: times are passed in, nothing is sent from here. A `Hold` begins when its prefill leg is sent and ends
when its blocks are fetched, released, or stranded, or turn out never to have been held. The owner of a hold
tells it what happened and asks it what is `due`. Reasons: docs/adr/0003-custody-of-a-hold.md.

    prefilling -> held -> spent -> pulled | released | stranded
        |          |  <- unspend
        |          -> released | stranded
        -> failed | unknown | stranded
"""

import enum
import math

from proxy.config import LEASE_MARGIN_S
from proxy.connectors.handoff import Handoff


class HoldState(enum.StrEnum):
    """What has become of the prefilled blocks of one request."""

    PREFILLING = "prefilling"
    """The prefill leg is running: the engine will hold the blocks, and name them in its answer."""
    HELD = "held"
    """The blocks wait on the prefill instance; no decode leg can have touched them."""
    SPENT = "spent"
    """Bytes of a decode leg that carries the hold were handed to a socket: it must not be offered again."""
    PULLED = "pulled"
    """A decode engine has the blocks: it answered."""
    RELEASED = "released"
    """An engine acknowledged that it gave the blocks back."""
    STRANDED = "stranded"
    """The release failed: the blocks stay held until their lease ends."""
    FAILED = "failed"
    """The prefill leg failed, so nothing was ever held."""
    UNKNOWN = "unknown"
    """The prefill leg ended without an answer. An engine drops what it computes once its client has gone; if
    it had just finished, it holds the blocks until their lease ends."""


class Due(enum.StrEnum):
    """What the owner of a hold must do about it now."""

    AWAIT = "await"
    """Wait for the running leg, whose end decides."""
    OFFER = "offer"
    """Send it with a decode leg."""
    RELEASE = "release"
    """Have it released."""
    NOTHING = "nothing"
    """Do nothing: the hold has ended, or has no lease that would have to be ended."""


_ENDS = frozenset(
    {HoldState.PULLED, HoldState.RELEASED, HoldState.STRANDED, HoldState.FAILED, HoldState.UNKNOWN}
)


class Hold:
    """The blocks one prefill leg leaves on `instance`. Times are seconds of any monotonic clock."""

    def __init__(self, instance: str, *, lease_s: float | None) -> None:
        """`lease_s`: how long the engine keeps the blocks; None where engines share a store, in which blocks
        are kept for no particular request and need no release.
        """
        self.instance = instance
        self.state = HoldState.PREFILLING
        self.given_up = False
        """Whether no further decode leg will carry it."""
        self._handoff: Handoff | None = None
        self._received_at = 0.0
        self._lease_s = lease_s

    @property
    def handoff(self) -> Handoff:
        """What the prefill engine answered. Raises RuntimeError before it has answered."""
        if self._handoff is None:
            raise RuntimeError(f"a hold that is {self.state} names no blocks")
        return self._handoff

    @property
    def ended(self) -> bool:
        """Whether its state can change no more."""
        return self.state in _ENDS

    @property
    def cached_on(self) -> str | None:
        """The instance that is known to have the prompt cached; None before the prefill leg is answered."""
        return self.instance if self._handoff is not None else None

    @property
    def waited(self) -> bool:
        """Whether the blocks wait, or have waited, on the prefill instance."""
        return self._handoff is not None and self._lease_s is not None

    @property
    def counted(self) -> bool:
        """Whether its end is told (`HoldEnded`): only if blocks were held, or may have been."""
        return self._lease_s is not None and self.state is not HoldState.FAILED

    def due(self, now: float) -> Due:
        """What the owner must do about it at `now`."""
        if self.ended:
            return Due.NOTHING
        if self.state is HoldState.PREFILLING or (self.state is HoldState.SPENT and not self.given_up):
            return Due.AWAIT
        if self.state is HoldState.HELD and not self.given_up and self.lease_left_s(now) > LEASE_MARGIN_S:
            return Due.OFFER
        return Due.RELEASE if self._lease_s is not None else Due.NOTHING

    def lease_left_s(self, now: float) -> float:
        """Seconds until the prefill engine frees the blocks on its own, at least 0."""
        return math.inf if self._lease_s is None else max(0.0, self._received_at + self._lease_s - now)

    # -- the prefill leg ----------------------------------------------------------------------------------

    def answered(self, handoff: Handoff, now: float) -> None:
        """The prefill leg's answer names the blocks; their lease begins at `now`."""
        self._move(HoldState.HELD, HoldState.PREFILLING)
        self._handoff = handoff
        self._received_at = now

    def failed(self) -> None:
        """The prefill engine could not be connected to, or its answer names no blocks."""
        self._move(HoldState.FAILED, HoldState.PREFILLING)

    def lost(self, *, finished: bool) -> None:
        """The prefill leg ended before its answer was complete; `finished`: the head of the answer had status
        200.
        """
        self._move(HoldState.STRANDED if finished else HoldState.UNKNOWN, HoldState.PREFILLING)

    # -- the decode leg -----------------------------------------------------------------------------------

    def spend(self) -> None:
        """A decode leg that carries it is about to be sent."""
        self._move(HoldState.SPENT, HoldState.HELD)

    def unspend(self) -> None:
        """That decode leg got no connection, so not one byte of it was sent."""
        self._move(HoldState.HELD, HoldState.SPENT)

    def pulled(self) -> None:
        """The decode engine answered with something it generated, so it has the blocks."""
        self._move(HoldState.PULLED, HoldState.SPENT)

    # -- the end ------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """The attempt is over: its decode leg has ended, its client left, or kvproxy stops. May be called in
        any state.
        """
        self.given_up = True

    def released(self) -> None:
        """A decode engine acknowledged the release."""
        self._move(HoldState.RELEASED, HoldState.HELD, HoldState.SPENT)

    def stranded(self) -> None:
        """The release failed."""
        self._move(HoldState.STRANDED, HoldState.HELD, HoldState.SPENT)

    def _move(self, to: HoldState, *come_from: HoldState) -> None:
        if self.state not in come_from:
            raise RuntimeError(f"a hold that is {self.state} cannot become {to}")
        self.state = to
