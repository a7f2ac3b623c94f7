"""What the watch needs of the engine client: to ask engines, to know when they were heard, and how to reach
them.
"""

from typing import Protocol

from proxy.config import InstanceSpec
from proxy.watching import checks, health


class WatchClient(checks.CheckClient, health.HealthClient, Protocol):
    """The part of the engine client that the watch needs."""

    def forget(self, instance: str) -> None:
        """An instance was removed: drop its connections."""
        ...

    def reach(self, spec: InstanceSpec) -> None:
        """From now on speak to an engine with TLS or without, as its name says."""
        ...
