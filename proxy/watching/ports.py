"""What the watch needs of the engine client beside its answers: when engines were heard, and how they are
reached.
"""

from typing import Protocol

from proxy.config import InstanceSpec
from proxy.watching import checks, health


class WatchClient(checks.CheckClient, health.HealthClient, Protocol):
    """The part of the engine client that the watch needs."""

    def forget(self, instance: str) -> None:
        """An instance is gone."""
        ...

    def reach(self, spec: InstanceSpec) -> None:
        """Speak to an engine as it is named: with TLS, or without."""
        ...
