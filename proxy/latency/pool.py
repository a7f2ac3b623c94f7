"""Invariant: a member is predicted to take the pool's formula times a factor of its own, and no member bends
the formula by being slow.

What is learned is robust. An observation far from its prediction, by the spread of the last ones, counts for
little; if most are far, the spread grows, and they count. A member's factor is the mean of the middle half of
its last WINDOW observations over the formula, and it is the pool's common one unless it differs by more than
chance. Once RECENT in a row are all slower than predicted, or all faster, and half of them by MOVED, it has
another speed, and those before say nothing any more: so a change is followed before the formula is bent by
it.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Generic, TypeVar

import msgspec
import numpy as np

from proxy.latency.least_squares import LeastSquares
from proxy.latency.running_error import RunningError

WINDOW = 48
"""Observations of a member that its factor is taken from. A change of speed is followed when three quarters
of them are new; chance moves the factor by a sixth of the spread of one observation."""

RECENT, MOVED = 12, 0.1
"""Chance makes so many in a row be on one side once in 2000 observations; then the factor is taken from them
alone, until there are more."""

ASSUMED = 4
"""A member counts at first as if it had been observed so often with the factor it began with, and no more
when its window is full."""

USUAL_SPREAD = 0.2
"""The median of |log(observed / predicted)| that is assumed at first."""

SPREAD_STEP = 1.05
"""By how much an observation moves the estimate of the spread: twofold in 14 observations."""

MIN_SPREAD, MAX_SPREAD = 0.005, 3.0

FAR = 3.0
"""Spreads from the prediction beyond which an observation counts less: 2 standard deviations."""

CHANCE, PROVEN = 1.5, 3.0
"""Standard errors below which a factor is taken for chance, and above which it is believed whole."""

RECENTRE_EVERY = 8

SETTLED = 1000
"""Observations of a pool after which not all are learned: as many as the fit remembers well."""

EVERY = 16
"""Of a member that is as predicted, in a pool that is settled, one observation of so many is learned."""

DRIFT_OVER = 16
"""A member is no more as predicted once the mean of its last so many observations is off by a spread, which
chance does once in ten thousand. Then it is learned of all of a window."""

MAX_LOG_FACTOR = math.log(1e6)

KNOWN_BY = 512
"""The last predictions of a pool whose error is told; of a member a window's."""

K = TypeVar("K", bound=Hashable)


class Member:
    """What is known of one instance, or of a pair, beside its pool's formula."""

    __slots__ = (
        "_at",
        "_attentive",
        "_drift",
        "_features",
        "_logs",
        "_passed_over",
        "assumed",
        "count",
        "estimate",
        "factor",
        "log_factor",
    )

    def __init__(self, size: int, log_factor: float, assumed: float | None) -> None:
        self._features = np.ones((WINDOW, size))
        self._logs = np.zeros(WINDOW)
        self._at = 0
        self.estimate = log_factor
        self.set(log_factor)
        self.assumed = assumed
        """The factor's logarithm that it began with; None if that is what most of the pool have."""
        self.count = 0
        """Observations in the window."""
        self._drift = 0.0
        self._attentive = self._passed_over = 0

    def teaches(self, away: float, spread: float) -> bool:
        """Whether to learn an observation of a member that is known; `away`: the logarithm of it over its
        prediction.
        """
        limit = FAR * spread
        self._drift += (min(max(away, -limit), limit) - self._drift) / DRIFT_OVER
        if abs(self._drift) > spread:
            self._attentive, self._drift = WINDOW, 0.0
        if self._attentive:
            self._attentive -= 1
            return True
        self._passed_over = (self._passed_over + 1) % EVERY
        return not self._passed_over

    def set(self, log_factor: float) -> None:
        """Give it another factor."""
        self.log_factor = log_factor
        self.factor = math.exp(log_factor)

    def remember(self, features: Sequence[float], value: float) -> None:
        """Put an observation into the window."""
        self._features[self._at] = features
        self._logs[self._at] = math.log(value)
        self._at = (self._at + 1) % WINDOW
        self.count = min(self.count + 1, WINDOW)

    def forget_another_speed(self, coefficients: Sequence[float]) -> None:
        """Forget all but the last RECENT observations, if these are of another speed."""
        if self.count < 2 * RECENT:
            return
        last = np.arange(self._at - RECENT, self._at)
        off = self._logs[last] - np.log(self._features[last] @ np.array(coefficients)) - self.log_factor
        if not (off.min() > 0 or off.max() < 0) or abs(float(np.median(off))) < MOVED:
            return
        self._features[:RECENT], self._logs[:RECENT] = self._features[last], self._logs[last]
        self._at = self.count = RECENT

    def factor_over(self, coefficients: Sequence[float], assumed: float) -> float:
        """The logarithm of its observations over a formula, middle half of them and of what is assumed."""
        count = self.count
        total = count + ASSUMED * (WINDOW - count) // WINDOW
        logs = np.full(total, assumed)
        logs[:count] = self._logs[:count] - np.log(self._features[:count] @ np.array(coefficients))
        logs.sort()
        cut = total // 4
        middle = logs[cut : total - cut]
        return float(middle.sum()) / len(middle)


class Pool(Generic[K]):
    """One formula for members that are alike."""

    def __init__(self, prior: Sequence[float], usual: Sequence[float], sure: Sequence[float] = ()) -> None:
        """As for LeastSquares."""
        self._usual = tuple(usual)
        self._sure = tuple(sure)
        self._size = len(usual)
        self._fit = LeastSquares(prior, usual, sure)
        self.formula = self._fit.coefficients
        """The coefficients of a member whose factor is 1."""
        self._spread = USUAL_SPREAD
        self.members: dict[K, Member] = {}
        self.centre = 0.0
        """The logarithm of the factor of most members, which new ones begin with."""
        self.observations = 0
        self.version = 0
        """Grows with each change of what is predicted."""
        self._common: tuple[int, tuple[float, ...]] = (-1, ())
        self.errors = RunningError(KNOWN_BY)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of a member as most are."""
        version, common = self._common
        if version != self.version:
            factor = math.exp(self.centre)
            common = tuple([factor * each for each in self.formula])
            self._common = (self.version, common)
        return common

    def of(self, member: Member) -> tuple[float, ...]:
        """The coefficients of a member."""
        return tuple([member.factor * each for each in self.formula])

    def factors(self) -> dict[K, float]:
        """How many times as long as most each member takes that was observed."""
        return {
            key: math.exp(member.log_factor - self.centre)
            for key, member in self.members.items()
            if member.count
        }

    def join(self, key: K, log_factor: float | None = None) -> Member:
        """Add a member, by default as most are; `log_factor` if it is known from an earlier time."""
        member = Member(self._size, self.centre if log_factor is None else log_factor, log_factor)
        self.members[key] = member
        return member

    def forget(self, key: K) -> None:
        """A member is gone."""
        self.members.pop(key, None)

    def adopt(self, coefficients: Sequence[float]) -> None:
        """Begin with another prior: only before the first observation."""
        self._fit = LeastSquares(coefficients, self._usual, self._sure)
        self.formula = self._fit.coefficients
        self.version += 1

    def learn(self, member: Member, features: Sequence[float], value: float, weight: float = 1.0) -> bool:
        """Take what a member took: `value` is above 0 and finite, features are not negative.

        `weight`: how much the formula is to learn of it. Returns whether anything was learned: of what is
        known well, most is passed over.
        """
        formula = self._fit.predict(features)
        predicted = formula * member.factor
        self.errors.add(predicted, value)
        away = math.log(value / predicted)
        settled = self.observations >= SETTLED and member.count >= WINDOW
        if settled and not member.teaches(away, self._spread):
            return False
        size = abs(away)
        limit = FAR * self._spread
        if size <= limit:
            self._fit.learn(features, formula * math.exp(away), weight)
        else:
            self._fit.learn(
                features, formula * math.exp(math.copysign(limit, away)), weight * (limit / size) ** 2
            )
        moved = self._spread * SPREAD_STEP if size > self._spread else self._spread / SPREAD_STEP
        self._spread = min(max(moved, MIN_SPREAD), MAX_SPREAD)
        member.remember(features, value)
        assumed = self.centre if member.assumed is None else member.assumed
        self.formula = self._fit.coefficients
        member.forget_another_speed(self.formula)
        found = member.factor_over(self.formula, assumed)
        member.estimate = min(max(found, -MAX_LOG_FACTOR), MAX_LOG_FACTOR)
        self._settle(member)
        self.observations += 1
        if self.observations % RECENTRE_EVERY == 0:
            self._recentre()
        self.version += 1
        return True

    def _error_of(self, member: Member) -> float:
        """The standard error of a factor: of the mean of a middle half, of normal deviates."""
        return 1.1 * 1.48 * self._spread / math.sqrt(member.count + ASSUMED)

    def _settle(self, member: Member) -> None:
        gap = member.estimate - self.centre
        errors = abs(gap) / self._error_of(member)
        member.set(self.centre + gap * min(max((errors - CHANCE) / (PROVEN - CHANCE), 0.0), 1.0))

    def _recentre(self) -> None:
        """Follow most members, if they are elsewhere by more than chance."""
        known = sorted((m for m in self.members.values() if m.count >= ASSUMED), key=lambda m: m.estimate)
        if not known:
            return
        middle = known[(len(known) - 1) // 2]
        if abs(middle.estimate - self.centre) <= PROVEN * self._error_of(middle):
            return
        self.centre = middle.estimate
        for member in self.members.values():
            if member.count:
                self._settle(member)
            elif member.assumed is None:
                member.estimate = self.centre
                member.set(self.centre)

    # -- for the next process -----------------------------------------------------------------------------

    def state(self) -> "PoolState":
        """What is known of the formula. What members are is kept by their factors."""
        information, seen = self._fit.state()
        return PoolState(
            prior=self._fit.prior,
            information=information,
            seen=seen,
            spread=self._spread,
            centre=self.centre,
            observations=self.observations,
        )

    def restore(self, state: "PoolState") -> None:
        """Take over what `state` gave, before anybody joined. Raises ValueError if it cannot be one."""
        fit = LeastSquares(state.prior, self._usual, self._sure)
        fit.restore(state.information, state.seen)
        if not MIN_SPREAD <= state.spread <= MAX_SPREAD or not abs(state.centre) <= MAX_LOG_FACTOR:
            raise ValueError("spread or factor of a pool are out of bounds")
        self._fit, self._spread, self.centre = fit, state.spread, state.centre
        self.formula = fit.coefficients
        self.observations = state.observations
        self.version += 1


class PoolState(msgspec.Struct, frozen=True):
    """A pool in plain values."""

    prior: list[float]
    information: list[list[float]]
    seen: list[float]
    spread: float
    centre: float
    observations: Annotated[int, msgspec.Meta(ge=0)]
