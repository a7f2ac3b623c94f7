"""What predictions of one rank came to: legs by what its index was worth and by outcome, misses by cause."""

import enum
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from proxy.caches.shown import AccuracyShown, LegsShown, MissesShown

ERROR_BLOCKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Buckets of how far predictions were off; 0 are those that were exact."""


class Outcome(enum.StrEnum):
    """What an engine reported beside what the index had said."""

    EXACT = "exact"
    OVER = "over"
    """The index promised more than the engine found."""
    UNDER = "under"
    UNREPORTED = "unreported"
    """The engine does not tell, or tells in a stream that is not read here."""


class Cause(enum.StrEnum):
    """Why a prediction from an exact index missed."""

    TOKENS = "tokens"
    """The engine's prompt was not the one kvproxy had tokenized."""
    RACE = "race"
    """The cache changed between decision and arrival, or its events were on their way."""
    UPPER_BOUND = "upper_bound"
    """The engine does not reuse all it has cached."""
    INDEX = "index"
    """Nothing else explains it: the index was wrong."""


class Tally:
    """Legs by outcome."""

    def __init__(self) -> None:
        self.by_outcome: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.off_blocks = 0
        """The sum of how far they were off."""

    def count(self, outcome: Outcome, off_blocks: int = 0) -> None:
        """Count a leg by its outcome, and how many blocks its prediction was off."""
        self.by_outcome[outcome] += 1
        self.off_blocks += off_blocks


class Counts:
    """All that is counted of one rank."""

    def __init__(self) -> None:
        self.tallies = {"exact": Tally(), "partial": Tally(), "unknown": Tally()}
        """By what its index was worth when the leg was decided."""
        self.causes: dict[Cause, int] = dict.fromkeys(Cause, 0)
        """Of the misses from an exact index; those that are still judged left out."""
        self.errors = [0] * (len(ERROR_BLOCKS) + 1)
        """Compared legs from an exact index, by the first of ERROR_BLOCKS they do not exceed."""

    def compared(self, index: str, outcome: Outcome, off_blocks: int) -> None:
        """A leg's report was compared."""
        self.tallies[index].count(outcome, off_blocks)
        if index == "exact":
            self.errors[bisect_left(ERROR_BLOCKS, off_blocks)] += 1

    def missed(self, index: str, cause: Cause) -> None:
        """Why a leg's prediction missed is known."""
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
