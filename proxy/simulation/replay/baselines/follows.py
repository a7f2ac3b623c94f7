"""A baseline hears of each attempt once that it began, at most once that its prompt is computed, and once
that it ended.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from proxy.scheduling.types import Candidate


class Gauge(Protocol):
    """What an engine tells of itself."""

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def running(self) -> int:
        """Requests in its batch."""
        ...

    @property
    def usage(self) -> float:
        """The share of its KV blocks that are in use."""
        ...


@runtime_checkable
class Follows(Protocol):
    """A policy that hears what becomes of its decisions."""

    scrape_s: float | None
    """Seconds between two looks at the gauges; None if it does not read them."""

    def began(self, number: int, prefill: Candidate, decode: Candidate, prompt_tokens: int) -> None:
        """A request goes to these candidates; `number`: of the request."""
        ...

    def computed(self, number: int) -> None:
        """Its prompt is computed."""
        ...

    def ended(self, number: int) -> None:
        """It has ended, or the attempt has failed."""
        ...

    def scraped(self, gauges: Mapping[str, Gauge]) -> None:
        """The gauges of all engines, by address."""
        ...
