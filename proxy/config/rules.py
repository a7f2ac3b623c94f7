"""Settings that may change while kvproxy runs are read through one reference, each time they are used.

Whatever uses a warm setting (`reloadable` in its declaration) keeps the `Rules`, and no value read from them.
So the configuration is exchanged by one assignment, and no reader sees a mixture. Cold settings are read from
the `Config` that kvproxy started with; a configuration that replaces it must have the same cold settings.
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
        """How many requests run, and how others wait."""
        return self.now.admission
