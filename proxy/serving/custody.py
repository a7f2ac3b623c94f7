"""A hold is fetched at most once, never after its lease, and always ends: nobody has to guess what became of
it.

Pure: times are passed in, nothing is sent from here. A `Hold` begins when its prefill leg is sent and ends
when its blocks are fetched, given back, known to be left behind, or were never held. Whoever has one tells it
what happened, and asks it what is due; why so: docs/adr/0003-custody-of-a-hold.md.

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
    """Where the prefilled blocks of one request are on their way."""

    PREFILLING = "prefilling"
    """Their leg is running: the engine will hold them, and name them in its answer."""
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
    FAILED = "failed"
    """The prefill leg came to nothing, so nothing was ever held."""
    UNKNOWN = "unknown"
    """The prefill leg ended without an answer. An engine whose client has gone drops what it was computing;
    only one that had just finished holds the blocks, until their lease ends."""


class Due(enum.StrEnum):
    """What whoever has a hold must do about it now."""

    AWAIT = "await"
    """A leg is running: its end decides."""
    OFFER = "offer"
    """A decode leg may carry it."""
    RELEASE = "release"
    """Have it given back."""
    NOTHING = "nothing"
    """Nothing is due: the hold has ended."""


_ENDS = frozenset(
    {HoldState.PULLED, HoldState.RELEASED, HoldState.STRANDED, HoldState.FAILED, HoldState.UNKNOWN}
)


class Hold:
    """The blocks one prefill leg leaves on `instance`. Times are seconds of any monotonic clock."""

    def __init__(self, instance: str, *, lease_s: float | None) -> None:
        """`lease_s`: None where engines share a store, which keeps blocks for nobody and gives none back."""
        self.instance = instance
        self.state = HoldState.PREFILLING
        self.given_up = False
        """Nobody will send another decode leg for it."""
        self._handoff: Handoff | None = None
        self._received_at = 0.0
        self._lease_s = lease_s

    @property
    def handoff(self) -> Handoff:
        """What the prefill engine answered. Raises RuntimeError before it has."""
        if self._handoff is None:
            raise RuntimeError(f"a hold that is {self.state} names no blocks")
        return self._handoff

    @property
    def ended(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.state in _ENDS

    @property
    def cached_on(self) -> str | None:
        """Where the prompt is known to be cached by now."""
        return self.instance if self._handoff is not None else None

    @property
    def waited(self) -> bool:
        """Whether the blocks were held on the prefill instance."""
        return self._handoff is not None and self._lease_s is not None

    @property
    def counted(self) -> bool:
        """Whether there was, or may have been, anything to hold."""
        return self._lease_s is not None and self.state is not HoldState.FAILED

    def due(self, now: float) -> Due:
        """What is to be done about it at this time."""
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
        """The prefill leg's answer is here and names the blocks; their lease runs."""
        self._move(HoldState.HELD, HoldState.PREFILLING)
        self._handoff = handoff
        self._received_at = now

    def failed(self) -> None:
        """The prefill engine could not be connected to, or answered that it holds nothing."""
        self._move(HoldState.FAILED, HoldState.PREFILLING)

    def lost(self, *, finished: bool) -> None:
        """The prefill leg ended before its answer was here; `finished`: after its head had told of
        success.
        """
        self._move(HoldState.STRANDED if finished else HoldState.UNKNOWN, HoldState.PREFILLING)

    # -- the decode leg -----------------------------------------------------------------------------------

    def spend(self) -> None:
        """A decode leg carrying it is about to be sent."""
        self._move(HoldState.SPENT, HoldState.HELD)

    def unspend(self) -> None:
        """No connection came about, so not one byte of that decode leg was sent."""
        self._move(HoldState.HELD, HoldState.SPENT)

    def pulled(self) -> None:
        """The decode engine answered with what it generated, which needs the blocks."""
        self._move(HoldState.PULLED, HoldState.SPENT)

    # -- the end ------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """The attempt is over: its client left, its decode leg failed, or kvproxy stops. May be said in any
        state.
        """
        self.given_up = True

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
