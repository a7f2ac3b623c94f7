"""Of two legs that run at once, neither runs on for nothing, and what became of their blocks is known.

Pure: nothing is sent from here. A `Crossing` begins when both legs are sent. The prefill engine computes the
blocks and keeps them until the decode engine has them. How the engines meet is their own matter, and so is
what becomes of blocks that no engine takes: vLLM's connectors free them after a timeout of their own. kvproxy
can only end legs. The owner of a crossing tells it how each leg ends, and cancels the legs in `to_cancel`.
Reasons: docs/adr/0003-custody-of-a-hold.md.

    prefill leg   decode leg   the blocks                           state        to cancel
    -----------   ----------   ----------------------------------   ----------   ----------------------------
    runs          runs         are computed, and sent               prefilling   both, once it is given up
    answered      runs         wait on the prefill instance         spent        decode, once it is given up
    failed        runs         never were                           failed       decode
    lost          runs         are dropped: their client has gone   unknown      decode
    cut           runs         wait until the engine's time is up   stranded     decode
    runs          missed       are dropped with their leg           prefilling   prefill
    answered      missed       wait until the engine's time is up   stranded
    failed        missed       never were                           failed
    lost          missed       are dropped                          unknown
    cut           missed       wait until the engine's time is up   stranded
    any           produced     are on the decode instance           pulled       none: a prefill leg that
                                                                                 runs is at its end
"""

import enum

from proxy.connectors.handoff import Handoff
from proxy.phases import Phase
from proxy.serving.custody import HoldState


class PrefillLeg(enum.StrEnum):
    """How the prefill leg stands."""

    RUNS = "runs"
    ANSWERED = "answered"
    FAILED = "failed"
    """No connection came about, or the engine's answer names no blocks."""
    LOST = "lost"
    """It ended without an answer, or was cancelled."""
    CUT = "cut"
    """It ended within an answer whose head had status 200."""


class DecodeLeg(enum.StrEnum):
    """How the decode leg stands."""

    RUNS = "runs"
    PRODUCED = "produced"
    """The engine has answered with something it generated."""
    MISSED = "missed"
    """It failed, was refused or was cancelled."""


_STATES = {
    PrefillLeg.RUNS: HoldState.PREFILLING,
    PrefillLeg.ANSWERED: HoldState.STRANDED,
    PrefillLeg.FAILED: HoldState.FAILED,
    PrefillLeg.LOST: HoldState.UNKNOWN,
    PrefillLeg.CUT: HoldState.STRANDED,
}
"""The state of blocks that the decode leg does not take, by how the prefill leg stands."""


class Crossing:
    """The blocks of one pair of legs that run at once."""

    def __init__(self, instance: str) -> None:
        """`instance`: where the blocks are computed."""
        self.instance = instance
        self.prefill = PrefillLeg.RUNS
        self.decode = DecodeLeg.RUNS
        self.given_up = False
        """Whether nobody waits for the answer any more."""
        self.waited = False
        """Whether the blocks wait, or have waited, on the prefill instance while the decode leg ran."""
        self._handoff: Handoff | None = None

    @property
    def state(self) -> HoldState:
        """What became of the blocks, by the table above."""
        if self.produced:
            return HoldState.PULLED
        if self.prefill is PrefillLeg.ANSWERED and self.decode is DecodeLeg.RUNS:
            return HoldState.SPENT
        return _STATES[self.prefill]

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of the blocks: they were taken, or both legs have ended."""
        legs_ended = self.prefill is not PrefillLeg.RUNS and self.decode is not DecodeLeg.RUNS
        return self.produced or legs_ended

    @property
    def produced(self) -> bool:
        """Whether the client has an answer."""
        return self.decode is DecodeLeg.PRODUCED

    @property
    def counted(self) -> bool:
        """Whether its end is told (`HoldEnded`): only if there were blocks, or may have been."""
        return self.state is not HoldState.FAILED

    @property
    def to_cancel(self) -> frozenset[Phase]:
        """The legs that run for nothing, by the table above."""
        if self.produced:
            return frozenset()
        for_nothing = set()
        if self.prefill is PrefillLeg.RUNS and (self.given_up or self.decode is DecodeLeg.MISSED):
            for_nothing.add(Phase.PREFILL)
        prefilled = self.prefill in {PrefillLeg.RUNS, PrefillLeg.ANSWERED}
        if self.decode is DecodeLeg.RUNS and (self.given_up or not prefilled):
            for_nothing.add(Phase.DECODE)
        return frozenset(for_nothing)

    @property
    def handoff(self) -> Handoff:
        """What the prefill engine answered. Raises RuntimeError before it has answered."""
        if self._handoff is None:
            raise RuntimeError(f"a prefill leg that {self.prefill} has told nothing")
        return self._handoff

    @property
    def cached_on(self) -> str | None:
        """The instance that is known to have the prompt cached; None before the prefill leg is answered."""
        return self.instance if self._handoff is not None else None

    # -- the prefill leg ----------------------------------------------------------------------------------

    def answered(self, handoff: Handoff, now: float) -> None:  # noqa: ARG002  # as `Hold`, whose lease begins
        """The prefill leg was answered."""
        self._prefill_ends(PrefillLeg.ANSWERED)
        self._handoff = handoff
        self.waited = self.decode is DecodeLeg.RUNS

    def failed(self) -> None:
        """The prefill engine could not be connected to, or its answer names no blocks."""
        self._prefill_ends(PrefillLeg.FAILED)

    def lost(self, *, finished: bool) -> None:
        """The prefill leg ended before its answer was complete; `finished`: the head of the answer had status
        200.
        """
        self._prefill_ends(PrefillLeg.CUT if finished else PrefillLeg.LOST)

    # -- the decode leg -----------------------------------------------------------------------------------

    def pulled(self) -> None:
        """The decode engine answered with something it generated, so it has the blocks."""
        self._decode_ends(DecodeLeg.PRODUCED)

    def missed(self) -> None:
        """The decode leg has ended, and nothing was generated."""
        self._decode_ends(DecodeLeg.MISSED)

    # -- the end ------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """The client left, or kvproxy stops. May be called in any state."""
        self.given_up = True

    def _prefill_ends(self, end: PrefillLeg) -> None:
        if self.prefill is not PrefillLeg.RUNS:
            raise RuntimeError(f"a prefill leg that is {self.prefill} cannot be {end}")
        self.prefill = end

    def _decode_ends(self, end: DecodeLeg) -> None:
        if self.decode is not DecodeLeg.RUNS:
            raise RuntimeError(f"a decode leg that has {self.decode} cannot have {end}")
        self.decode = end
