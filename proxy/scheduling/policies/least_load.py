"""A leg goes to the instance with the fewest outstanding tokens, whatever is cached there."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class LeastLoad:
    """Prices a candidate by its outstanding tokens; prompts that are not known count as estimated."""

    unit = "tokens"
    reads_prompt = False

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in tokens."""
        return [c.load_tokens for c in candidates]
