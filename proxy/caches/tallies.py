"""The results of one rank's predictions: legs by state of its index and by outcome, misses by cause."""

import enum
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from proxy.caches.shown import AccuracyShown, LegsShown, MissesShown

ERROR_BLOCKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Upper bounds of buckets: by how many blocks predictions were wrong; 0: they were exact."""


class Outcome(enum.StrEnum):
    """How an engine's report compares with what the index had promised."""

    EXACT = "exact"
    OVER = "over"
    """The index promised more than the engine found."""
    UNDER = "under"
    UNREPORTED = "unreported"
    """The engine does not report, or reports in a stream that is not read here."""


class Cause(enum.StrEnum):
    """Why a prediction from an exact index missed."""

    TOKENS = "tokens"
    """The tokens of the engine's prompt were not those that kvproxy had found."""
    RACE = "race"
    """The cache changed between the decision and the leg's arrival, or its events had not arrived yet."""
    UPPER_BOUND = "upper_bound"
    """The engine does not reuse all that it has cached."""
    INDEX = "index"
    """Nothing else explains it: the index was wrong."""


class Tally:
    """Legs by outcome."""

    def __init__(self) -> None:
        self.by_outcome: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.off_blocks = 0
        """The sum of the blocks by which predictions were wrong."""

    def count(self, outcome: Outcome, off_blocks: int = 0) -> None:
        """Count a leg; `off_blocks`: by how many blocks its prediction was wrong."""
        self.by_outcome[outcome] += 1
        self.off_blocks += off_blocks


class Counts:
    """All that is counted of one rank."""

    def __init__(self) -> None:
        self.tallies = {"exact": Tally(), "partial": Tally(), "unknown": Tally()}
        """By the state of the rank's index when the leg was decided."""
        self.causes: dict[Cause, int] = dict.fromkeys(Cause, 0)
        """The misses of an exact index by cause, without those that are not judged yet."""
        self.errors = [0] * (len(ERROR_BLOCKS) + 1)
        """Compared legs of an exact index, by the first bound of ERROR_BLOCKS that is not exceeded."""

    def compared(self, index: str, outcome: Outcome, off_blocks: int) -> None:
        """Count a leg whose report was compared."""
        self.tallies[index].count(outcome, off_blocks)
        if index == "exact":
            self.errors[bisect_left(ERROR_BLOCKS, off_blocks)] += 1

    def missed(self, index: str, cause: Cause) -> None:
        """Count the cause of a leg's miss."""
        if index == "exact":
            self.causes[cause] += 1

    def shown(self, *, trusted: bool) -> AccuracyShown:
        """For `/status`."""
        return AccuracyShown(
            **_legs([self.tallies["exact"]]),
            misses=MissesShown(**{cause.value: count for cause, count in self.causes.items()}),
            not_exact=LegsShown(**_legs([self.tallies["partial"], self.tallies["unknown"]])),
            trusted=trusted,
        )


def _legs(tallies: Sequence[Tally]) -> dict[str, Any]:
    """The members of a `LegsShown`."""
    counts = {outcome: sum(tally.by_outcome[outcome] for tally in tallies) for outcome in Outcome}
    legs = sum(counts.values())
    compared = legs - counts[Outcome.UNREPORTED]
    off_blocks = sum(tally.off_blocks for tally in tallies)
    return {
        "legs": legs,
        **{outcome.value: count for outcome, count in counts.items()},
        "exact_share": round(counts[Outcome.EXACT] / compared, 4) if compared else None,
        "mean_error_blocks": round(off_blocks / compared, 4) if compared else None,
    }
