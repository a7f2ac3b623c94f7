"""A question is all that placement needs to know of a request; what an attempt at it must avoid comes beside
it.
"""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from kvevents import Prompt
from proxy.phases import Phase


class Question(msgspec.Struct, frozen=True):
    """What placement needs to know of a request."""

    model: str
    prompt: Prompt | None
    """The prompt as the engines see it; None if it is not known."""
    estimated_tokens: int
    """Its length for load counting where it is not known."""
    whole: bool = False
    """The request cannot be split into two legs."""
    prefix_only: bool = False
    """More follows what is known of the prompt."""
    answer_tokens: int = 1
    """How long its answer may become: that much room is wanted for it."""
    limited_by: str | None = None
    """The member that says so; None if nobody did."""
    generated_tokens: int = 0
    """What its answers count for in the limits of decode instances and in its client's turns
    (`proxy.request.weights`)."""

    @property
    def prompt_tokens(self) -> int | None:
        """The prompt's length in tokens; None if it is not known."""
        return None if self.prompt is None or self.prefix_only else len(self.prompt.token_ids)

    @property
    def length_tokens(self) -> int | None:
        """The prompt's length for what it costs to compute, estimated if only its beginning is known."""
        return self.estimated_tokens if self.prefix_only else self.prompt_tokens

    @property
    def weight_tokens(self) -> int:
        """What it weighs, all in all."""
        return (self.prompt_tokens or self.estimated_tokens) + self.generated_tokens

    @property
    def reusable_tokens(self) -> int:
        """How many tokens of what is known may be reused at most: the last one of a prompt is always
        computed.
        """
        known = 0 if self.prompt is None else len(self.prompt.token_ids)
        return known if self.prefix_only else max(0, known - 1)

    def leg_tokens(self, phase: Phase, uncached_tokens: int | None) -> int:
        """What a leg adds to the outstanding tokens of its instance, which policies weigh against those
        cached there.

        Answers add nothing: nobody knows their length, and a guess would move prompts away from their caches.
        """
        if phase is Phase.PREFILL and uncached_tokens is not None:
            return uncached_tokens
        return self.prompt_tokens or self.estimated_tokens

    def leg_weight_tokens(self, phase: Phase, uncached_tokens: int | None) -> int:
        """What a leg takes of the limit of its instance."""
        tokens = self.leg_tokens(phase, uncached_tokens)
        return tokens + self.generated_tokens if phase is Phase.DECODE else tokens


class Constraints(NamedTuple):
    """What one attempt at a question must not use, or only if there is nothing else."""

    failed: Collection[str] = ()
    """Instances that an earlier attempt failed on, as often as a Counter tells: used only if there is no
    other. Rather than one that failed twice, one that says it is full is waited for."""
    tried: Collection[str] = ()
    """Instances that are not used at all."""
    prefill_on: str | None = None
    """The instance to prefer for prefill if nothing speaks against it."""
    over_limit: bool = False
    """Instances without room by our limits are used if there is no other; those that say they are full never
    are."""
    kept: Collection[tuple[Phase, str]] = ()
    """Instances whose room is kept for others, by phase."""
