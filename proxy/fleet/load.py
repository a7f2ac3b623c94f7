"""The load of an instance is exactly what its running claims add up to."""

from collections import Counter

from proxy.phases import Phase, Role


class Load:
    """The running legs of one instance, by phase and rank: their number, their outstanding tokens, and what
    they take of limits (their weight).
    """

    def __init__(self, role: Role) -> None:
        """`role`: on an instance that does both, legs of both phases count together."""
        self._both = tuple(Phase) if role is Role.BOTH else None
        self._legs: Counter[tuple[Phase, int]] = Counter()
        self._tokens: Counter[tuple[Phase, int]] = Counter()
        self._weight: Counter[tuple[Phase, int]] = Counter()
        self.last_pick: dict[tuple[Phase, int], int] = {}
        """The number of the latest pick of each rank, as the fleet counts picks."""

    def count(self, phase: Phase, rank: int, legs: int, tokens: int, weight_tokens: int) -> None:
        """Add to the sums of a rank, or subtract from them; for claims only."""
        self._legs[phase, rank] += legs
        self._tokens[phase, rank] += tokens
        self._weight[phase, rank] += weight_tokens

    def tokens(self, phase: Phase, rank: int) -> int:
        """Outstanding tokens of a rank's running legs."""
        return sum(self._tokens[each, rank] for each in self._both or (phase,))

    def weight_tokens(self, phase: Phase, rank: int) -> int:
        """What a rank's running legs take of its limit."""
        return sum(self._weight[each, rank] for each in self._both or (phase,))

    def legs(self, phase: Phase | None = None) -> int:
        """How many legs are running, of one phase or of both."""
        return sum(count for (each, _), count in self._legs.items() if phase in {None, each})

    def all_tokens(self) -> int:
        """Outstanding tokens of all running legs."""
        return self._tokens.total()

    def all_weight_tokens(self) -> int:
        """What all running legs take of the limits of the ranks."""
        return self._weight.total()
