"""A leg goes anywhere, and each instance gets the same share in the long run."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class AtRandom:
    """Prices all candidates alike, so that one is drawn."""

    unit = "draws"
    reads_prompt = False

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`: none costs anything."""
        return [0.0] * len(candidates)
