"""A prompt goes where the least work is left until it is computed, what already waits there included."""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg


class CacheAffinity:
    """Prices a candidate by the tokens still to be computed there: the prompt's uncached ones, and the load.

    Tokens to be reloaded from a slower tier count for a share of computing them. For a decode leg the
    uncached tokens are those to be fetched. A prompt that is not known is placed by load alone.
    """

    unit = "tokens"

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in tokens."""
        return [(c.uncached_tokens or 0) + c.reload_cost_tokens + c.load_tokens for c in candidates]
