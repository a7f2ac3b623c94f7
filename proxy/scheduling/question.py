"""A `Question` is all that placement needs to know of a request; `Constraints` say what one attempt must
avoid.
"""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from kvevents import Prompt
from proxy.phases import Phase
from proxy.request.deadlines import Goal


class Question(msgspec.Struct, frozen=True):
    """What placement needs to know of a request."""

    model: str
    prompt: Prompt | None
    """The prompt as the engines see it; None if it is not known."""
    estimated_tokens: int
    """The prompt's estimated length, for loads and limits, where it is not known."""
    whole: bool = False
    """Whether one instance must serve the whole request."""
    prefix_only: bool = False
    """Whether `prompt` is only the beginning of the prompt."""
    answer_tokens: int = 1
    """How long the answer may become, at most."""
    limited_by: str | None = None
    """The member of the request that says so; None if none does."""
    generated_tokens: int = 0
    """How many tokens its answers count for, in the limits of decode instances and in its client's turns
    (`request/weights.py`)."""
    session: str | None = None
    """The session that it belongs to (`request/sessions.py`); None if it names none, or if the policy does
    not read it."""
    streams: bool = True
    """Whether its answer streams, so that a first token is seen."""
    prompt_count: int = 1
    """The number of its prompts, which one leg takes together."""
    sequences: int = 1
    """How many answers are generated at once, those to all its prompts together."""
    goal: Goal | None = None
    """When its client wants the first token; None if it does not say."""
    computes: bool = True
    """Whether an engine's model computes anything for it (`Dialect.computes`)."""
    only: str | None = None
    """The one instance that can serve it, since it has what the request builds on; None if others can."""

    @property
    def prompt_tokens(self) -> int | None:
        """The prompt's length in tokens; None if it is not known."""
        return None if self.prompt is None or self.prefix_only else len(self.prompt.token_ids)

    @property
    def length_tokens(self) -> int | None:
        """The prompt's length in tokens, estimated if only its beginning is known; None if nothing is."""
        return self.estimated_tokens if self.prefix_only else self.prompt_tokens

    @property
    def weight_tokens(self) -> int:
        """The weight of the whole request: prompt and answers."""
        return (self.prompt_tokens or self.estimated_tokens) + self.generated_tokens

    @property
    def reusable_tokens(self) -> int:
        """How many of the known tokens can be reused at most: a prompt's last token is always computed."""
        known = 0 if self.prompt is None else len(self.prompt.token_ids)
        return known if self.prefix_only else max(0, known - 1)

    def leg_tokens(self, phase: Phase, uncached_tokens: int | None) -> int:
        """How many outstanding tokens a leg adds to its instance: its load, which policies compare with what
        is cached there.

        Answers add nothing: their length is unknown, and a guess would move prompts away from their caches.
        """
        if phase is Phase.PREFILL and uncached_tokens is not None:
            return uncached_tokens
        return self.prompt_tokens or self.estimated_tokens

    def leg_weight_tokens(self, phase: Phase, uncached_tokens: int | None) -> int:
        """How many tokens a leg takes of the limit of its instance: its weight."""
        tokens = self.leg_tokens(phase, uncached_tokens)
        return tokens + self.generated_tokens if phase is Phase.DECODE else tokens


class Constraints(NamedTuple):
    """The instances that one attempt must not use, or only if there is no other."""

    failed: Collection[str] = ()
    """Instances on which earlier attempts failed (a mapping to how often, if several times): used only if
    there is no other. A request waits for an instance that says it is full rather than use one that failed
    twice."""
    tried: Collection[str] = ()
    """Instances that are not used at all."""
    prefill_on: str | None = None
    """The instance to prefer for the prefill leg, unless it is set aside."""
    over_limit: bool = False
    """Whether instances without room by our limits are used if there is no other. Those that say they are
    full never are."""
    kept: Collection[tuple[Phase, str]] = ()
    """Phases and instances whose room is kept for other requests."""
