"""Each happening reaches all that listen for its kind, in the order in which they were added, even if one of
them fails.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.happenings import Consumer, Happening
from proxy.observability.family import counted

log = logging.getLogger(__name__)

H = TypeVar("H", bound=Happening)

FAILURES = counted(
    "consumer_failures",
    "Happenings that a consumer of them (a recorder, a series) failed on.",
    ("consumer",),
    more="The log has the first failure of each.",
)


Only = Callable[[Any], bool] | None
"""Which happenings of a kind are heard; None for all."""


class Happenings:
    """Hands happenings on. Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        self._listeners: dict[type[Happening], tuple[tuple[str, Only, Callable[[Any], None]], ...]] = {}
        self.failures: Counter[str] = Counter()
        """How often each consumer raised, by the consumer's name."""

    def add(self, consumer: Consumer) -> None:
        """Hand a consumer the kinds that it `hears` from now on. Its name is that of its class."""
        for kind in consumer.hears:
            self.listen(kind, consumer.hear, type(consumer).__name__)

    def listen(self, kind: type[H], hear: Callable[[H], None], name: str, only: Only = None) -> None:
        """Have `hear` called with each happening of exactly this kind for which `only` is true; `name`:
        under which the failures of both count.
        """
        self._listeners[kind] = (*self._listeners.get(kind, ()), (name, only, hear))

    def tell(self, happening: Happening) -> None:
        """Hand a happening to all that listen for its kind. Raises nothing."""
        asked: Only = None
        wanted = True
        for name, only, hear in self._listeners.get(type(happening), ()):
            try:
                if only is not asked:  # several that follow each other often ask the same
                    wanted = only is None or only(happening)
                    asked = only
                if wanted:
                    hear(happening)
            except Exception:  # the room that tells must not suffer from a consumer's failure
                self.failures[name] += 1
                if self.failures[name] == 1:
                    log.exception("%s failed on %s; it is told this once", name, type(happening).__name__)


class FailureCollector(Collector):
    """Reads how often consumers failed at each scrape."""

    def __init__(self, happenings: Happenings) -> None:
        self._happenings = happenings

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        family = FAILURES.counter()
        for name, count in self._happenings.failures.items():
            family.add_metric([name], count)
        return [family]
