"""A prompt goes where the least is left to be done for it, what already waits there included."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class CacheAffinity:
    """Tokens still to be computed: the prompt's uncached ones and the work already waiting there.

    What must be reloaded from a slower tier counts for a share of computing it. For a decode leg the same sum
    reads: outstanding tokens, less what the instance already has of this prompt. A prompt that could not be
    tokenized is placed by load alone.
    """

    unit = "tokens"

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in tokens."""
        return [(c.uncached_tokens or 0) + c.reload_cost_tokens + c.load_tokens for c in candidates]
