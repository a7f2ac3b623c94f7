"""The policies that come with kvproxy: each says what giving a leg to a candidate costs, nothing more."""

import importlib
from collections.abc import Sequence

from proxy.errors import ConfigError
from proxy.scheduling.types import Candidate, Leg, Policy


class CacheAffinity:
    """Tokens still to be computed: the prompt's uncached ones and the work already waiting there.

    What must be reloaded from a slower tier counts for a share of computing it. For a decode leg the same sum reads: outstanding tokens, less what the instance already has of this prompt.
    A prompt that could not be tokenized is placed by load alone.
    """

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002
        """As `Policy`, in tokens."""
        return [(c.uncached_tokens or 0) + c.reload_cost_tokens + c.load_tokens for c in candidates]


class LeastLoad:
    """The instance with the least outstanding work, in tokens."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002
        """As `Policy`, in tokens."""
        return [c.load_tokens for c in candidates]


class RoundRobin:
    """The instance picked longest ago."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002
        """As `Policy`: the number of the last pick."""
        return [c.last_pick for c in candidates]


POLICIES: dict[str, type[CacheAffinity] | type[LeastLoad] | type[RoundRobin]] = {
    "cache_affinity": CacheAffinity,
    "least_load": LeastLoad,
    "round_robin": RoundRobin,
}


def load_policy(name: str) -> Policy:
    """A policy by its own name, or a user's own by `package.module:Class`. Raises ConfigError."""
    if name in POLICIES:
        return POLICIES[name]()
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(
            f"--policy {name!r} is not known: give one of {', '.join(POLICIES)}, or package.module:Class"
        )
    try:
        made = getattr(importlib.import_module(module_name), class_name)()
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(f"--policy {name}: {type(error).__name__}: {error}") from error
    if not callable(getattr(made, "costs", None)):
        raise ConfigError(f"--policy {name}: {class_name} has no method costs(leg, candidates)")
    policy: Policy = made
    return policy
