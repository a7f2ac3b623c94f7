"""The load of an instance is exactly what its running claims add up to."""

from proxy.fleet.adapters import AdapterLegs
from proxy.fleet.work import Work
from proxy.phases import Phase, Role


class RankLoad:
    """What runs on one rank for legs of a phase; on an instance that does both, for those of both."""

    __slots__ = (
        "adapters",
        "changes",
        "decode_tokens",
        "last_pick",
        "legs",
        "prefill_tokens",
        "tokens",
        "weight_tokens",
        "work",
    )

    def __init__(self) -> None:
        self.changes = 0
        """How often it was otherwise than before."""
        self.legs = 0
        """How many legs are running."""
        self.tokens = 0
        """Outstanding tokens."""
        self.prefill_tokens = 0
        """Tokens of prompts that are still to be computed."""
        self.decode_tokens = 0
        """Tokens of the contexts of legs that generate answers, those that are about to included."""
        self.weight_tokens = 0
        """What they take of the rank's limit."""
        self.last_pick = 0
        """The number of its latest pick, as the fleet counts picks; 0 for never."""
        self.work = Work()
        """How long all that is predicted to take; nothing for claims without `Timing`."""
        self.adapters = AdapterLegs()
        """The legs that generate answers for adapters, as above."""


class Load:
    """The running legs of one instance, by phase and rank: their number, their outstanding tokens, and what
    they take of limits (their weight).
    """

    def __init__(self, role: Role) -> None:
        """`role`: on an instance that does both, legs of both phases count together."""
        self._legs = dict.fromkeys(Phase, 0)
        prefill: dict[int, RankLoad] = {}
        decode: dict[int, RankLoad] = prefill if role is Role.BOTH else {}
        self._ranks = {Phase.PREFILL: prefill, Phase.DECODE: decode}
        self._apart = (prefill,) if decode is prefill else (prefill, decode)

    def on(self, phase: Phase, rank: int) -> RankLoad:
        """What runs on a rank, now and from now on."""
        ranks = self._ranks[phase]
        load = ranks.get(rank)
        if load is None:
            load = ranks[rank] = RankLoad()
        return load

    def count(
        self, phase: Phase, rank: int, legs: int, tokens: int, weight_tokens: int, prefill_tokens: int
    ) -> None:
        """Add to the sums of a rank, or subtract from them; for claims only."""
        self._legs[phase] += legs
        load = self._ranks[phase].get(rank) or self.on(phase, rank)
        load.legs += legs
        load.tokens += tokens
        load.weight_tokens += weight_tokens
        load.prefill_tokens += prefill_tokens
        if phase is Phase.DECODE:
            load.decode_tokens += tokens
        load.changes += 1

    def computed(self, phase: Phase, rank: int, prefill_tokens: int) -> None:
        """So many tokens of a running leg's prompt are computed; for claims only."""
        load = self.on(phase, rank)
        load.prefill_tokens -= prefill_tokens
        load.changes += 1

    def tokens(self, phase: Phase, rank: int) -> int:
        """Outstanding tokens of a rank's running legs."""
        return self.on(phase, rank).tokens

    def weight_tokens(self, phase: Phase, rank: int) -> int:
        """What a rank's running legs take of its limit."""
        return self.on(phase, rank).weight_tokens

    def legs(self, phase: Phase | None = None) -> int:
        """How many legs are running, of one phase or of both."""
        return sum(self._legs.values()) if phase is None else self._legs[phase]

    def all_tokens(self) -> int:
        """Outstanding tokens of all running legs."""
        return sum(load.tokens for load in self._all())

    def all_prefill_tokens(self) -> int:
        """Tokens of the prompts of all running legs that are still to be computed."""
        return sum(load.prefill_tokens for load in self._all())

    def all_weight_tokens(self) -> int:
        """What all running legs take of the limits of the ranks."""
        return sum(load.weight_tokens for load in self._all())

    def _all(self) -> list[RankLoad]:
        return [load for ranks in self._apart for load in ranks.values()]
