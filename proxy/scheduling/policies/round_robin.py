"""A leg goes to the instance that was picked longest ago."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class RoundRobin:
    """Prices a candidate by the running number of its last pick."""

    unit = "picks"
    reads_prompt = False

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in picks."""
        return [c.last_pick for c in candidates]
