"""A circuit opens on proof, closes on proof, and in between lets one leg through at a time.

Pure: times are passed in, chance is a generator that is passed in, nothing is asked or sent from here. One
`Breaker` is what kvproxy knows of one instance's health:

* closed: legs go there; for a while after it has closed, fewer than elsewhere (slow start).
* open: the engine is not there, and gets no legs until a check is answered; or its legs failed where others
  served the same requests, and it gets none for a pause that doubles, unless there is nothing else to use.
* half-open: it is back, and one leg at a time tries it. Success closes the circuit, failure opens it again.

What checks and legs show is counted until it proves something; `TURNS` has what each proof does in each
state.
"""

import enum
import random
from collections.abc import Mapping

MAX_MISSED = 3
"""Checks in a row that nobody answered, and not a byte on any leg meanwhile: then nobody is there.

With the default settings a frozen engine is found within 9.6 s: it freezes right after it was asked, the next
question comes 2 s * 1.2 later, and this many in a row, one directly after the other, wait 2.4 s each. An
engine that is merely busy gets 7.2 s to answer one of them or to send one byte of any answer; a starved API
process of vLLM may well need seconds.
"""

MAX_CHARGES = 3
"""Failed legs in a row that others made good: one may be an accident, two may be."""

PROBE_FIRST_S = 0.25
MAX_PROBE_S = 2.0
"""A dead engine is asked after a quarter of a second, then ever later: it is back within 2 s of being up."""

FAILING_S = 2.0
"""How long legs that failed in a row, with no leg served between, keep others away while better instances are
there. It is no proof, for the requests may be to blame; but what fails fails fast, and would draw everything
to itself in the time it takes others to serve the same requests."""

EJECTED_FIRST_S = 1.0
MAX_EJECTED_S = 30.0
"""How long an engine that answers checks and fails legs gets none. Envoy's outlier detection begins with 30
s; ours may try sooner, because half-open costs one request one attempt."""

PATIENT_CHECKS = 5
"""A trial leg that outlives so many answered checks does not fail: a long answer must not keep an instance at
one leg."""

JITTER = 0.2
"""How far pauses are off their length, either way: it spreads the checks of many routers."""

SLOW_START_LEAST = 0.1
"""The share of legs a slow start begins with, as Envoy's."""


class Circuit(enum.StrEnum):
    """Whether legs may go to an instance, as far as its health is concerned."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class At(enum.Enum):
    """A state of the circuit, with why it is open."""

    CLOSED = enum.auto()
    DEAD = enum.auto()
    """Open: the engine is not there."""
    EJECTED = enum.auto()
    """Open: its legs failed where others served the same requests."""
    HALF_OPEN = enum.auto()


class Proof(enum.Enum):
    """What has been shown of the engine."""

    SEEN = enum.auto()
    """The first of all checks was answered."""
    BACK = enum.auto()
    """A check was answered."""
    RESTED = enum.auto()
    """A check was answered, and the pause of its ejection is over."""
    GONE = enum.auto()
    """Nobody is there: its port is closed, it says so itself, or MAX_MISSED checks and all legs heard
    nothing."""
    SERVES = enum.auto()
    """A leg was given what was asked for."""
    OUTLASTED = enum.auto()
    """A leg on trial has outlived PATIENT_CHECKS answered checks."""
    FAILS = enum.auto()
    """A leg failed."""
    OTHERS_SERVED = enum.auto()
    """MAX_CHARGES legs in a row, or one on trial, failed where others served the same requests."""


TURNS: Mapping[At, Mapping[Proof, At]] = {
    At.CLOSED: {
        Proof.SEEN: At.CLOSED,
        Proof.GONE: At.DEAD,
        Proof.OTHERS_SERVED: At.EJECTED,
    },
    At.DEAD: {
        Proof.SEEN: At.CLOSED,
        Proof.BACK: At.HALF_OPEN,
        Proof.GONE: At.DEAD,
    },
    At.EJECTED: {
        Proof.SEEN: At.CLOSED,
        Proof.RESTED: At.HALF_OPEN,
        Proof.SERVES: At.HALF_OPEN,  # used for want of others, and it worked
        Proof.GONE: At.DEAD,
    },
    At.HALF_OPEN: {
        Proof.SERVES: At.CLOSED,
        Proof.OUTLASTED: At.CLOSED,
        Proof.FAILS: At.EJECTED,
        Proof.OTHERS_SERVED: At.EJECTED,
        Proof.GONE: At.DEAD,
    },
}
"""What a proof does in a state; nothing where it is not named."""

_CIRCUITS = {
    At.CLOSED: Circuit.CLOSED,
    At.DEAD: Circuit.OPEN,
    At.EJECTED: Circuit.OPEN,
    At.HALF_OPEN: Circuit.HALF_OPEN,
}


class Breaker:
    """The health of one instance. Times are seconds of any one monotonic clock."""

    def __init__(
        self,
        *,
        slow_start_s: float = 0.0,
        joins: bool = False,
        ejected_first_s: float = EJECTED_FIRST_S,
        max_ejected_s: float = MAX_EJECTED_S,
        rng: random.Random | None = None,
    ) -> None:
        """`joins`: it comes to instances that are at work already, so that its first legs come slowly,
        too.
        """
        self._at = At.CLOSED
        self._turns = TURNS[self._at]
        self.state = Circuit.CLOSED
        self.dead = False
        """Open because the engine is not there; else because its legs failed."""
        self._slow_start_s = slow_start_s
        self._joins = joins
        self.ejected_first_s = ejected_first_s
        """How long it is open after its first ejection in a row; each further one twice as long."""
        self.max_ejected_s = max_ejected_s
        self._rng = rng or random.Random()  # noqa: S311  # spreads pauses, no secret
        self._seen = False
        self._closed_at: float | None = None
        self._last_share = 1.0
        self._missed = 0
        self._unanswered = False
        self._probes = 0
        self._charges = 0
        self._failed_legs = 0
        self._failed_at = 0.0
        self._ejections = 0
        self._open_until = 0.0
        self._trial = 0
        self._trials = 0
        self._patience = 0

    # -- what is asked of it ------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Whether the last checks, one after the other, found nobody there."""
        return self._missed >= MAX_MISSED

    @property
    def doubtful(self) -> bool:
        """Whether the last check found nobody, which alone proves nothing."""
        return self._missed > 0

    @property
    def on_trial(self) -> bool:
        """Whether it is half-open and the one leg it may have is running."""
        return self.state is Circuit.HALF_OPEN and self._trials > 0

    def failing(self, now: float) -> bool:
        """Whether its last legs failed, several in a row and just now."""
        return self._failed_legs >= MAX_CHARGES and now - self._failed_at < FAILING_S

    def share(self, now: float) -> float:
        """How much it should get of what the others get: 1, or less while it starts slowly; never 0."""
        if self._closed_at is None or now - self._closed_at >= self._slow_start_s:
            return 1.0
        return max(SLOW_START_LEAST, (now - self._closed_at) / self._slow_start_s)

    def grown(self, now: float) -> bool:
        """Whether its share is larger than when this was asked last."""
        before, self._last_share = self._last_share, self.share(now)
        return self._last_share > before

    @property
    def standing(self) -> tuple[Circuit, bool, bool]:
        """What makes it better or worse than other instances, apart from its share: equal means nothing
        changed.
        """
        return self.state, self.on_trial, self.doubtful

    def pause_s(self, now: float, interval_s: float) -> float:
        """How long after the beginning of a check the next one is due; 0 for at once."""
        if self.state is Circuit.OPEN and self.dead:
            pause_s = min(MAX_PROBE_S, PROBE_FIRST_S * 2.0 ** min(self._probes, 10))
        elif self._unanswered:
            return 0.0
        elif self.state is Circuit.OPEN:
            pause_s = min(interval_s, max(PROBE_FIRST_S, self._open_until - now))
        else:
            pause_s = interval_s
        return pause_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    # -- what checks find ---------------------------------------------------------------------------------

    def answered(self, now: float) -> None:
        """A check was answered as it should be."""
        self._missed = 0
        self._unanswered = False
        if not self._seen:
            self._seen = True
            self._turn(Proof.SEEN, now)
        elif self.on_trial:
            self._patience += 1
            if self._patience >= PATIENT_CHECKS:
                self._turn(Proof.OUTLASTED, now)
        elif self._at is At.DEAD:
            self._turn(Proof.BACK, now)
        elif self._at is At.EJECTED and now >= self._open_until:
            self._turn(Proof.RESTED, now)

    def busy(self) -> None:
        """A check was not answered, but legs were meanwhile: the engine lives."""
        self._missed = 0
        self._unanswered = True

    def missed(self) -> None:
        """A check was not answered, and nothing else was heard of the engine since it was sent."""
        self._missed += 1
        self._unanswered = True
        if self.silent or self.dead or not self._seen:
            self.lost()

    def lost(self) -> None:
        """The engine is not there: its port is closed, or it says itself that it is dead."""
        self._probes = self._probes + 1 if self._at is At.DEAD else 0
        self._turn(Proof.GONE)

    # -- what legs show -----------------------------------------------------------------------------------

    def begin_leg(self) -> int:
        """A leg is about to be sent; give what is returned to `end_leg` when it has ended."""
        if self.state is not Circuit.HALF_OPEN:
            return 0
        self._trials += 1
        return self._trial

    def end_leg(self, trial: int) -> None:
        """That leg has ended, however."""
        if trial and trial == self._trial:
            self._trials -= 1
            if not self._trials:
                self._patience = 0

    def served(self, now: float) -> None:
        """A leg was answered with what was asked for, to its end."""
        self._failed_legs = 0
        self.began(now)

    def began(self, now: float) -> None:
        """A leg began to stream what was asked for. That is not held against it, but streams may break one
        after the other, so it does not make up for legs that failed.
        """
        self._charges = 0
        self._turn(Proof.SERVES, now)

    def leg_cut(self, now: float) -> None:
        """A leg ended without a complete answer; what that means is for a check to find out, unless on
        trial.
        """
        self.engine_failed(now)

    def engine_failed(self, now: float) -> None:
        """The engine answered that it failed: by its own fault or by the request's, which is told later; on
        trial it gets no benefit of the doubt.
        """
        self._failed_legs += 1
        self._failed_at = now
        self._turn(Proof.FAILS, now)

    def others_served(self, now: float) -> None:
        """A leg failed, and another instance then served the same request."""
        if self.state is Circuit.OPEN:
            return
        self._charges += 1
        if self._at is At.HALF_OPEN or self._charges >= MAX_CHARGES:
            self._turn(Proof.OTHERS_SERVED, now)

    # -- inside -------------------------------------------------------------------------------------------

    def _turn(self, proof: Proof, now: float = 0.0) -> None:
        """Do what a proof does in this state. `now`: not needed where nobody is there."""
        after = self._turns.get(proof)
        if after is None:
            return
        before, self._at, self._turns = self._at, after, TURNS[after]
        self.state, self.dead = _CIRCUITS[after], after is At.DEAD
        if after is At.EJECTED:
            self._begin_pause(before, now)
        elif after is At.HALF_OPEN:
            self._begin_trial()
        elif after is At.CLOSED:
            self._closed_at = now if proof is not Proof.SEEN or self._joins else None
            self._charges = 0

    def _begin_pause(self, before: At, now: float) -> None:
        settled = self._closed_at is None or now - self._closed_at >= self.max_ejected_s
        self._ejections = 0 if before is At.CLOSED and settled else self._ejections + 1
        pause_s = min(self.max_ejected_s, self.ejected_first_s * 2.0 ** min(self._ejections, 10))
        self._open_until = now + pause_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        self._charges = 0

    def _begin_trial(self) -> None:
        self._probes = self._charges = self._failed_legs = self._trials = self._patience = 0
        self._trial += 1
