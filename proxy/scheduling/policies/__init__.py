"""The policies that come with kvproxy, one a file: each only says what giving a leg to a candidate costs.

They are registered in `POLICIES`, from which the choices and the help of `--policy` and the units in the
description of `/explain` are made.
"""

import importlib
from collections.abc import Mapping

from proxy.errors import ConfigError
from proxy.scheduling.policies.approx_prefix import ApproxPrefix
from proxy.scheduling.policies.at_random import AtRandom
from proxy.scheduling.policies.cache_affinity import CacheAffinity
from proxy.scheduling.policies.least_load import LeastLoad
from proxy.scheduling.policies.least_ms import LeastMs
from proxy.scheduling.policies.power_of_two import PowerOfTwo
from proxy.scheduling.policies.round_robin import RoundRobin
from proxy.scheduling.policies.session import Session
from proxy.scheduling.types import AnyPolicy, LegPolicy, Policy

__all__ = [
    "POLICIES",
    "ApproxPrefix",
    "AtRandom",
    "CacheAffinity",
    "LeastLoad",
    "LeastMs",
    "PowerOfTwo",
    "RoundRobin",
    "Session",
    "load_policy",
]

POLICIES: Mapping[str, type[Policy] | type[LegPolicy]] = {
    "least_ms": LeastMs,
    "cache_affinity": CacheAffinity,
    "approx_prefix": ApproxPrefix,
    "session": Session,
    "least_load": LeastLoad,
    "power_of_two": PowerOfTwo,
    "round_robin": RoundRobin,
    "random": AtRandom,
}
"""The policies by the names that `--policy` takes. Each is made without arguments."""


def load_policy(name: str) -> AnyPolicy:
    """A policy by its name in POLICIES, or a user's own by `package.module:Class`. Raises ConfigError."""
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
    if not isinstance(made, Policy | LegPolicy):
        raise ConfigError(
            f"--policy {name}: {class_name} has neither a method costs(leg, candidates) nor prices(view) "
            "and a unit"
        )
    return made
