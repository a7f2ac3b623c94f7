"""Settings that may change while kvproxy runs are read through one reference, each time they count.

Whoever heeds a warm setting (`reloadable` in its declaration) holds the `Rules` and keeps nothing of what
they say: to exchange the configuration is one assignment, and nobody sees half of it. Cold settings are read
from the `Config` that kvproxy started with, so a configuration that takes its place must have them as they
were.
"""

from proxy.config.faults import Deadlines, Health, Retries
from proxy.config.overload import Admission
from proxy.config.service import Config


class Rules:
    """The configuration in force."""

    __slots__ = ("now",)

    def __init__(self, config: Config) -> None:
        self.now = config

    @property
    def deadlines(self) -> Deadlines:
        """How long each phase of a request may take."""
        return self.now.deadlines

    @property
    def retries(self) -> Retries:
        """How often a failed attempt may be followed by another."""
        return self.now.retries

    @property
    def health(self) -> Health:
        """How engines are checked."""
        return self.now.health

    @property
    def admission(self) -> Admission:
        """How requests wait."""
        return self.now.admission
