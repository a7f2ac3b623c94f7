"""A leg goes to the instance with the least outstanding work, whatever is cached there."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class LeastLoad:
    """Outstanding tokens, of prompts that are not known by their estimates."""

    unit = "tokens"
    reads_prompt = False

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in tokens."""
        return [c.load_tokens for c in candidates]
