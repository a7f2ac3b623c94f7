"""A prompt goes where the least work is left until it is computed, what already waits there included; its
answer goes where the least is fetched and generated.
"""

from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg

STREAM_SHARE = 0.02
"""What a token of a running stream's context costs the computing of a prompt beside it, in computed tokens:
enough to part instances that are nearly equal, so that streams do not pile up. Shares of 0.3 and more make
long prompts queue behind each other (in simulations of a day of chats their slowest hundredth was up to 86 %
slower)."""


class CacheAffinity:
    """Prices the leg that computes a prompt by the tokens still to be computed there: the prompt's uncached
    ones, those of other prompts, and a small share of the contexts of running streams.

    Tokens to be reloaded from a slower tier count for a share of computing them. A decode leg is priced by
    the tokens to be fetched, and by all that is computed and generated there. A prompt that is not known is
    placed by load alone.
    """

    unit = "tokens"

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`, in tokens."""
        share = STREAM_SHARE if leg.computes else 1
        return [
            (c.uncached_tokens or 0) + c.reload_cost_tokens + c.prefill_tokens + share * c.decode_tokens
            for c in candidates
        ]
