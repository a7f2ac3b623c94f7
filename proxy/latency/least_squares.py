"""Invariant: no coefficient is negative, and each is the prior's as far as the observations do not tell.

Ridge regression in information form: what is kept is the sum of the observations, each a rank-one matrix that
fades by FADING with each later one. The sums are bounded, and the ridge is added when they are solved and
never fades, so that no number of updates and no monotony of the observations make the equations singular.
Observations count by their relative error. Features are scaled so that the prior's prediction of a usual
observation is 1 in each.
"""

from collections.abc import Sequence

FADING = 1 - 1 / 1000
"""Half of what is known is of the last 700 observations."""

RIDGE = 0.04
"""The prior's weight, where an observation of the usual size has 1: an observation is off by a tenth, and
what each feature adds to a prediction may be off by half of it."""

MIN_PREDICTED = 1e-9


class LeastSquares:
    """Fits `value = sum of coefficient * feature`, coefficients >= 0, online."""

    __slots__ = ("_information", "_prior", "_ridge", "_seen", "_size", "_units", "coefficients")

    def __init__(self, prior: Sequence[float], usual: Sequence[float], sure: Sequence[float] = ()) -> None:
        """`prior`: the coefficients before any observation. `usual`: features of an observation of usual
        size, all above 0. `sure`: how many times RIDGE each coefficient has; 1 by default. Raises ValueError
        if the prior predicts nothing for an observation of usual size.
        """
        predicted = sum(p * x for p, x in zip(prior, usual, strict=True))
        if not 0 < predicted < float("inf") or min(usual) <= 0 or min(prior) < 0:
            raise ValueError("the prior must predict something of an observation of usual size")
        self._size = len(prior)
        self._ridge = [RIDGE * times for times in sure or [1.0] * self._size]
        self._units = [predicted / x for x in usual]
        self._prior = [p / unit for p, unit in zip(prior, self._units, strict=True)]
        self._information = [[0.0] * self._size for _ in prior]
        self._seen = [0.0] * self._size
        self.coefficients = tuple(map(float, prior))

    @property
    def prior(self) -> list[float]:
        """The coefficients before any observation."""
        return [z * unit for z, unit in zip(self._prior, self._units, strict=True)]

    def predict(self, features: Sequence[float]) -> float:
        """The value for these features."""
        value = 0.0
        for coefficient, feature in zip(self.coefficients, features, strict=True):
            value += coefficient * feature
        return max(value, MIN_PREDICTED)

    def learn(self, features: Sequence[float], value: float, weight: float = 1.0) -> None:
        """Take an observation, as `weight` observations; weights are above 0."""
        faded = FADING**weight
        expected = self.predict(features)
        row = [x * unit / expected for x, unit in zip(features, self._units, strict=True)]
        relative = value / expected
        seen = self._seen
        for i, (own, line) in enumerate(zip(row, self._information, strict=True)):
            scaled = own * weight
            for j, other in enumerate(row):
                line[j] = line[j] * faded + scaled * other
            seen[i] = seen[i] * faded + scaled * relative
        solved = self._solve()
        self.coefficients = tuple([z * unit for z, unit in zip(solved, self._units, strict=True)])

    def _solve(self) -> list[float]:
        """Without the features that would be negative: the most negative is taken out, and solved again."""
        active = list(range(self._size))
        while active:
            found = _eliminate(
                [[self._information[i][j] + self._ridge[i] * (i == j) for j in active] for i in active],
                [self._seen[i] + self._ridge[i] * self._prior[i] for i in active],
            )
            least = min(found)
            if least >= 0:
                break
            del active[found.index(least)]
        solved = [0.0] * self._size
        for i, z in zip(active, found, strict=True):
            solved[i] = z
        return solved

    def state(self) -> tuple[list[list[float]], list[float]]:
        """What was observed so far, for `restore` of one with the same prior."""
        return [list(line) for line in self._information], list(self._seen)

    def restore(self, information: Sequence[Sequence[float]], seen: Sequence[float]) -> None:
        """Take over what `state` gave. Raises ValueError if it cannot be of such a fit."""
        if len(seen) != self._size or [len(line) for line in information] != [self._size] * self._size:
            raise ValueError("the fit has another number of coefficients")
        lines = [list(map(float, line)) for line in information]
        numbers = [*(x for line in lines for x in line), *seen]
        if not all(0 <= x < float("inf") for x in numbers):
            raise ValueError("the sums of a fit are neither negative nor infinite")
        if any(
            lines[i][j] ** 2 > lines[i][i] * lines[j][j] * (1 + 1e-9)
            for i in range(self._size)
            for j in range(self._size)
        ):
            raise ValueError("these are no sums of observations")
        self._information, self._seen = lines, list(map(float, seen))
        self.coefficients = tuple([z * unit for z, unit in zip(self._solve(), self._units, strict=True)])


def _eliminate(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a positive definite system by Gaussian elimination, which needs no pivots there."""
    size = len(right)
    for k in range(size):
        pivot = matrix[k]
        for i in range(k + 1, size):
            line = matrix[i]
            share = line[k] / pivot[k]
            for j in range(k + 1, size):
                line[j] -= share * pivot[j]
            right[i] -= share * right[k]
    for k in range(size - 1, -1, -1):
        total = right[k]
        for j in range(k + 1, size):
            total -= matrix[k][j] * right[j]
        right[k] = total / matrix[k][k]
    return right
