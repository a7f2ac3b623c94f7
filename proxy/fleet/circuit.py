"""A circuit opens on proof, closes on proof, and lets one leg at a time through in between.

Pure: times and the random generator are passed in; nothing is asked or sent from here. A `Breaker` is the
health of one instance:

* closed: legs go there; for a while after closing, fewer than elsewhere (slow start).
* open: either the engine is gone, and gets no legs until it answers a check; or its legs failed where others
  served the same requests (ejected), and it gets none for a pause that doubles, unless there is no other.
* half-open: the engine is back, and one leg at a time tries it. Success closes the circuit, failure opens it.

What checks and legs show is counted until it proves something; the table `TURNS` says what each proof does in
each state.
"""

import enum
import math
import random
from collections.abc import Mapping

MAX_MISSED = 3
"""An engine is gone after this many checks in a row without an answer, with not a byte on any leg meanwhile.

With the default settings a frozen engine is found within 9.6 s: it freezes right after a check, the next one
begins 2 s * 1.2 later, and three in a row, one directly after the other, wait 2.4 s each. An engine that is
merely busy gets 7.2 s to answer one of them or to send one byte of any answer; an API process of vLLM that
gets little CPU may well need seconds.
"""

MAX_CHARGES = 3
"""An instance is ejected after this many failed legs in a row whose requests others served: one may be an
accident, and so may two."""

PROBE_FIRST_S = 0.25
MAX_PROBE_S = 2.0
"""The first and the longest pause between checks of a dead engine, each twice the one before: an engine that
is up again is found within 2 s."""

FAILING_S = 2.0
"""How long an instance is set aside after MAX_CHARGES failed legs in a row. That proves nothing, since the
requests may be to blame. But an engine that fails fails fast, and would draw all requests to itself in the
time in which others serve the first of them."""

EJECTED_FIRST_S = 1.0
MAX_EJECTED_S = 30.0
"""The first and the longest pause of an ejected instance. Envoy's outlier detection begins with 30 s; a trial
may come sooner here, because it costs one request one attempt."""

PATIENT_CHECKS = 5
"""A leg on trial that still runs after this many answered checks counts as a success: a long answer must not
keep an instance at one leg."""

JITTER = 0.2
"""How much pauses are varied, as a share of their length, either way: it spreads the checks of many
routers."""

MIN_SLOW_START = 0.1
"""The share of legs that a slow start begins with, as Envoy's."""


class Circuit(enum.StrEnum):
    """Whether legs may go to an instance, as far as its health is concerned."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class At(enum.Enum):
    """A state of the circuit; there are two open ones."""

    CLOSED = enum.auto()
    DEAD = enum.auto()
    """Open: the engine is gone."""
    EJECTED = enum.auto()
    """Open: its legs failed where others served the same requests."""
    HALF_OPEN = enum.auto()


class Proof(enum.Enum):
    """What checks and legs have proved of the engine."""

    SEEN = enum.auto()
    """A check was answered for the first time ever."""
    BACK = enum.auto()
    """A check of a dead engine was answered."""
    RESTED = enum.auto()
    """A check of an ejected engine was answered, and its pause is over."""
    GONE = enum.auto()
    """The engine's port is closed, it says itself that it is dead, or MAX_MISSED checks and all legs heard
    nothing."""
    SERVES = enum.auto()
    """A leg got what it asked for."""
    OUTLASTED = enum.auto()
    """A leg on trial still runs after PATIENT_CHECKS answered checks."""
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
"""The state after a proof, by the state before; a proof that is not named changes nothing."""

_CIRCUITS = {
    At.CLOSED: Circuit.CLOSED,
    At.DEAD: Circuit.OPEN,
    At.EJECTED: Circuit.OPEN,
    At.HALF_OPEN: Circuit.HALF_OPEN,
}


class Breaker:
    """The health of one instance. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        *,
        slow_start_s: float = 0.0,
        joins: bool = False,
        ejected_first_s: float = EJECTED_FIRST_S,
        max_ejected_s: float = MAX_EJECTED_S,
        rng: random.Random | None = None,
    ) -> None:
        """`slow_start_s`: how long a slow start lasts; `joins`: whether it begins with a slow start, since
        other instances are at work already.
        """
        self._at = At.CLOSED
        self._turns = TURNS[self._at]
        self.state = Circuit.CLOSED
        self.restless_until = -math.inf
        """When the lapse of time alone will have made the instance as good as any: from then on `standing`,
        `failing` and `share` need not be asked. Infinite while only a check or a leg can do that."""
        self.dead = False
        """Whether it is open because the engine is gone, not because its legs failed."""
        self._slow_start_s = slow_start_s
        self._joins = joins
        self.ejected_first_s = ejected_first_s
        """The pause after the first ejection; after each further one in a row it is twice as long."""
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
        """Whether MAX_MISSED checks in a row were not answered."""
        return self._missed >= MAX_MISSED

    @property
    def doubtful(self) -> bool:
        """Whether the last check was not answered, which alone proves nothing."""
        return self._missed > 0

    @property
    def on_trial(self) -> bool:
        """Whether it is half-open and the one leg that it may have is running."""
        return self.state is Circuit.HALF_OPEN and self._trials > 0

    def failing(self, now: float) -> bool:
        """Whether its last MAX_CHARGES legs failed, the last of them within FAILING_S."""
        return self._failed_legs >= MAX_CHARGES and now - self._failed_at < FAILING_S

    def share(self, now: float) -> float:
        """How many legs it should get, as a share of the others' legs: below 1 in a slow start, never 0."""
        if self._closed_at is None or now - self._closed_at >= self._slow_start_s:
            return 1.0
        return max(MIN_SLOW_START, (now - self._closed_at) / self._slow_start_s)

    def grown(self, now: float) -> bool:
        """Whether its share is larger than at the last call."""
        before, self._last_share = self._last_share, self.share(now)
        return self._last_share > before

    @property
    def standing(self) -> tuple[Circuit, bool, bool]:
        """All that makes it better or worse than other instances, apart from its share; to be compared with
        the value before a change.
        """
        return self.state, self.on_trial, self.doubtful

    def pause_s(self, now: float, interval_s: float) -> float:
        """How many seconds after the beginning of the last check the next one is due; `interval_s`: the usual
        time between checks. 0 for at once.
        """
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
        """A check was answered, and the engine is well."""
        self._heard()
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
        """A check was not answered, but bytes of legs arrived meanwhile: the engine lives."""
        self._heard()
        self._unanswered = True

    def missed(self) -> None:
        """A check was not answered, and nothing else was heard of the engine since it was sent."""
        self._missed += 1
        self._unanswered = True
        self._rest()
        if self.silent or self.dead or not self._seen:
            self.lost()

    def lost(self) -> None:
        """The engine is gone: its port is closed, it says itself that it is dead, or it is silent."""
        self._probes = self._probes + 1 if self._at is At.DEAD else 0
        self._turn(Proof.GONE)

    # -- what legs show -----------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether another leg that is served changes nothing: it is closed, and no leg has failed lately."""
        return self._at is At.CLOSED and not self._failed_legs and not self._charges

    def begin_leg(self) -> int:
        """A leg is claimed. Its trial number is returned, which MUST be given to `end_leg` at its end."""
        if self.state is not Circuit.HALF_OPEN:
            return 0
        self._trials += 1
        return self._trial

    def end_leg(self, trial: int) -> None:
        """A leg has ended, however it did; `trial`: what `begin_leg` returned for it."""
        if trial and trial == self._trial:
            self._trials -= 1
            if not self._trials:
                self._patience = 0

    def served(self, now: float) -> None:
        """A leg was answered in full with what was asked for."""
        if self._failed_legs:
            self._failed_legs = 0
            self._rest()
        self.began(now)

    def began(self, now: float) -> None:
        """A leg began to stream what was asked for. That is a success, except for `failing`: streams may all
        break after they have begun, so it does not end a row of failed legs.
        """
        self._charges = 0
        self._turn(Proof.SERVES, now)

    def leg_cut(self, now: float) -> None:
        """A leg ended without a complete answer. A check finds out whether the engine lives; on trial this is
        proof enough.
        """
        self.engine_failed(now)

    def engine_failed(self, now: float) -> None:
        """The engine answered that it failed. Whether it is to blame shows once another serves the request
        (`others_served`); on trial this is proof enough.
        """
        self._failed_legs += 1
        self._failed_at = now
        self._rest()
        self._turn(Proof.FAILS, now)

    def others_served(self, now: float) -> None:
        """A leg failed here, and another instance then served the same request."""
        if self.state is Circuit.OPEN:
            return
        self._charges += 1
        if self._at is At.HALF_OPEN or self._charges >= MAX_CHARGES:
            self._turn(Proof.OTHERS_SERVED, now)

    # -- inside -------------------------------------------------------------------------------------------

    def _heard(self) -> None:
        if self._missed:
            self._missed = 0
            self._rest()

    def _rest(self) -> None:
        """Compute `restless_until` anew, since what it depends on may have changed."""
        if self._at is not At.CLOSED or self._missed:
            self.restless_until = math.inf
            return
        until = -math.inf
        if self._closed_at is not None:
            until = self._closed_at + self._slow_start_s
        if self._failed_legs >= MAX_CHARGES:
            until = max(until, self._failed_at + FAILING_S)
        self.restless_until = until

    def _turn(self, proof: Proof, now: float = 0.0) -> None:
        """Go to the state that `TURNS` names for a proof. `now` is not needed for GONE."""
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
        self._rest()

    def _begin_pause(self, before: At, now: float) -> None:
        settled = self._closed_at is None or now - self._closed_at >= self.max_ejected_s
        self._ejections = 0 if before is At.CLOSED and settled else self._ejections + 1
        pause_s = min(self.max_ejected_s, self.ejected_first_s * 2.0 ** min(self._ejections, 10))
        self._open_until = now + pause_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        self._charges = 0

    def _begin_trial(self) -> None:
        self._probes = self._charges = self._failed_legs = self._trials = self._patience = 0
        self._trial += 1
